"""Speed of the whole training step, where its time goes, and what share of the device it uses.

    # a laptop
    python experiments/train_speed/run.py --config configs/pointbert_s.py --config.batch_size=16
    # a GPU
    python experiments/train_speed/run.py --config configs/pointbert_l.py --config.batch_size=512 \\
        --config.model.dtype=bfloat16 --repeats 20

The step is that of a real run: state.jit_train_step. Its parts are programs of their own, each with its
gradients where the step has them, so their sum exceeds the step by what overlaps or is fused. Input is the
time that the pipeline takes for a batch of the synthetic set, alone; in a run it works beside the device.
Utilisation is the model's operations (openshape_jax.models.flops) over the time and the measured peak, which
is that of large matrix products of the same type.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from openshape_jax import config as config_lib
from openshape_jax import losses, models, optim, runtime, sharding, state
from openshape_jax.augment import augment, dequantize
from openshape_jax.data import build, pipeline
from openshape_jax.models import flops
from openshape_jax.ops import ball_query, farthest_point_sampling
from openshape_jax.overrides import split_argv

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "encoder_speed"))
from run import ellipsoids, matmul_rate, seconds


def main() -> None:
    """Prints the table of one config."""
    rest, overrides = split_argv(sys.argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--without_input", action="store_true", help="where Grain and TFDS are not installed")
    args = parser.parse_args(rest[1:])
    config = config_lib.load(args.config, overrides)
    runtime.prepare(config.cpu_devices)
    mesh = sharding.make_mesh(max(config.fsdp, 1))
    device = jax.devices()[0]
    print(
        f"{args.config} {' '.join(overrides)}: {device.device_kind} ({jax.device_count()}), "
        f"jax {jax.__version__}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}"
    )
    batch = example(config)
    step, gigabytes = whole_step(config, mesh, batch)
    found = seconds({"step": step, **parts(config, mesh, batch)}, args.repeats)
    peak = matmul_rate(config.model.dtype, mesh)
    needed = flops.training(config.model) * config.batch_size
    whole = found.pop("step")
    print(
        f"step {whole:.3f} s, {config.batch_size / whole:.1f} shapes/s, {needed / whole / peak:.0%} of the "
        f"matmul peak ({peak / 1e12:.2f} TFLOP/s), {gigabytes:.2f} GB"
    )
    print("| part | seconds | of the step |\n|---|---|---|")
    if not args.without_input:
        found["input (beside the device)"] = input_seconds(config)
    for name, taken in found.items():
        print(f"| {name} | {taken:.4f} | {taken / whole:.0%} |")


def example(config: config_lib.Config) -> dict[str, np.ndarray]:
    """A batch of points on random ellipsoids and random targets."""
    rng = np.random.default_rng(0)
    rows: dict[str, np.ndarray] = {}
    for name, shape in state.batch_shapes(config).items():
        if shape.dtype == bool:
            rows[name] = np.ones(shape.shape, bool)
        elif np.issubdtype(shape.dtype, np.floating):
            rows[name] = rng.normal(size=shape.shape).astype(shape.dtype)
        elif name == "xyz":
            xyz = ellipsoids(rng, *shape.shape[:2])
            rows[name] = ((xyz + 1) / 2 * np.iinfo(shape.dtype).max).astype(shape.dtype)
        elif name == "rgb":
            rows[name] = rng.integers(0, np.iinfo(shape.dtype).max, shape.shape).astype(shape.dtype)
        else:
            rows[name] = np.arange(np.prod(shape.shape), dtype=np.int32).reshape(shape.shape)
    return rows


def whole_step(
    config: config_lib.Config, mesh: jax.sharding.Mesh, rows: dict
) -> tuple[Callable[[], Any], float]:
    """(a call of the step on the same batch, its memory in GB on all devices)."""
    places = sharding.of_state(jax.eval_shape(lambda: state.init(config)), mesh)
    now = [jax.jit(lambda: state.init(config), out_shardings=places)()]
    batch = sharding.put_batch(rows, mesh)
    step = state.jit_train_step(config, mesh, places)
    step = step.lower(now[0], batch).compile()

    def call() -> Any:
        now[0], values = step(now[0], batch)
        return values["loss"]

    m = step.memory_analysis()
    used = m.temp_size_in_bytes + m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
    return call, mesh.size * used / 1e9


def parts(config: config_lib.Config, mesh: jax.sharding.Mesh, rows: dict) -> dict[str, Callable[[], Any]]:
    """A call of each part of the step, as a program of its own."""
    c, b = config.model, config.batch_size
    whole, by_row = sharding.replicated(mesh), sharding.by_row(mesh)
    encoder, jit = models.build(c, nnx.Rngs(0)), runtime.jit_of_model(c.dtype)
    points = jit(lambda p, q: augment(jax.random.key(0), *dequantize(p, q), config.augment))
    stored = jax.device_put((rows["xyz"], rows["rgb"]), by_row)
    xyz, rgb = points(*stored)

    def geometry(x: jax.Array) -> jax.Array:
        def one(cloud: jax.Array) -> jax.Array:
            centres = cloud[farthest_point_sampling(cloud, c.patches)]
            return ball_query(cloud, centres, c.radius, c.nsample)

        return jax.vmap(one)(x)

    def gradient(module: nnx.Module, fn: Callable[..., jax.Array]) -> Callable[..., Any]:
        graph, *state = nnx.split(module, nnx.Param, ...)
        weights, others = jax.device_put(tuple(map(nnx.to_pure_dict, state)), whole)

        def square(w: Any, others: Any, *a: jax.Array) -> jax.Array:
            return jnp.square(fn(nnx.merge(graph, nnx.State(w), nnx.State(others)), *a)).sum()

        made = jit(jax.grad(square))
        return lambda *a: made(weights, others, *a)

    tokens = jax.device_put(np.zeros((b, (c.train_patches or c.patches) + 1, c.dim), c.dtype), by_row)
    keep = state.draw_patches(jax.random.key(2), c, b)  # of all patches those that a step uses
    abstraction = gradient(encoder.sa, lambda m, x, r: m(x, r, True, keep=keep)[1].astype(jnp.float32))
    transformer = gradient(encoder.transformer, lambda m, t: m(t).astype(jnp.float32))
    emb = jax.device_put(np.random.default_rng(1).normal(size=(b, c.embed_dim)).astype(np.float32), by_row)
    targets = sharding.put_batch({k: rows[k] for k in ("text", "has_text")}, mesh)

    def loss(e: jax.Array, t: jax.Array, has: jax.Array) -> jax.Array:
        shapes = losses.shapes(e.astype(c.dtype))
        task = losses.Task(t, has, jnp.float32(14.28))
        texts, images = losses.contrastive(shapes, [task, task])  # the same, for the time that they take
        return texts[0] + images[0]

    tx = optim.optimizer(config.optim, config.steps)
    first = jax.device_put(state.init(config), whole)
    update = jit(lambda p, o: optax.apply_updates(p, tx.update(jax.tree.map(jnp.ones_like, p), o, p)[0]))
    calls = {
        "augmentation": points,
        "FPS and ball query": jit(geometry),
        "set abstraction, with both": abstraction,
        "transformer": transformer,
        "loss": jit(jax.grad(loss)),
        "update": update,
    }
    inputs = {
        "augmentation": stored, "FPS and ball query": (xyz,), "set abstraction, with both": (xyz, rgb),
        "transformer": (tokens,), "loss": (emb, *targets.values()), "update": (first.params, first.opt_state),
    }  # fmt: skip
    return {name: (lambda f=f, a=inputs[name]: f(*a)) for name, f in calls.items()}


def input_seconds(config: config_lib.Config, batches: int = 5) -> float:
    """The median time of the pipeline for a batch of the synthetic set."""
    config.data.datasets, config.data.weights, config.model.embed_dim = ("primitives/tiny",), (), 512
    build.build_synthetic(config.data.datasets, config.data.data_dir)
    taken = []
    with closing(pipeline.batches(config, 0)) as stream:
        next(stream)
        for _ in range(batches + config.data.prefetch):
            start = time.perf_counter()
            next(stream)
            taken.append(time.perf_counter() - start)
    return float(np.median(taken[config.data.prefetch :]))


if __name__ == "__main__":
    main()
