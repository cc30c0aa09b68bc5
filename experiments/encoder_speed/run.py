"""Speed and memory of the encoder: one table of forward pass and training step.

    python experiments/encoder_speed/run.py [--scalings 1,4,5] [--batches 8,16] [--dtype float32]
    python experiments/encoder_speed/run.py --cpu_devices 2                  # the batch over two CPU devices
    python experiments/encoder_speed/run.py --peer my_module:make_model      # a PyTorch model beside it

Times are medians of calls in turn; "of peak" is the share of the rate at which this process multiplies large
matrices of the same type, measured before every row. Memory is the compiled program's own figure (arguments,
results and scratch) of all devices. The split times each part of the forward pass alone.

A peer is a function of the scaling that returns a torch.nn.Module which maps xyz (B, N, 3) and features
(B, N, 6) to (B, D) embeddings; it runs in turn with ours, on the CPU, in a process of its own (`peer.py`): in
ours it would have the allocator's settings of `runtime.prepare` too. It needs torch in this environment.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from openshape_jax import losses, models, optim, runtime, sharding
from openshape_jax.config import ModelConfig, OptimConfig
from openshape_jax.models import flops, pointbert
from openshape_jax.ops import ball_query, farthest_point_sampling


def timed(call: Callable[[], Any]) -> float:
    """Seconds of a call; on accelerators five follow each other before the clock is read, as steps do."""
    row = 1 if jax.default_backend() == "cpu" else 5
    start = time.perf_counter()
    jax.block_until_ready([call() for _ in range(row)][-1])
    return (time.perf_counter() - start) / row


def medians(clocks: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """The median of what each clock tells, called in turn, so that noise falls on all of them."""
    for clock in clocks.values():
        clock()  # compiled, and warm
    taken = [{name: clock() for name, clock in clocks.items()} for _ in range(repeats)]
    return {name: float(np.median([times[name] for times in taken])) for name in clocks}


def seconds(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """The median time of each call, made in turn."""
    return medians({name: functools.partial(timed, call) for name, call in calls.items()}, repeats)


def matmul_rate(dtype: str, mesh: jax.sharding.Mesh, repeats: int = 5) -> float:
    """Operations a second of large matrix products, one on each device."""
    n = 2048 if jax.default_backend() == "cpu" else 8192
    a = jax.random.normal(jax.random.key(0), (mesh.size, n, n)).astype(dtype)
    a = jax.device_put(a, sharding.by_row(mesh))
    product = jax.jit(lambda a: a @ a, out_shardings=sharding.by_row(mesh))
    return mesh.size * 2 * n**3 / seconds({"product": lambda: product(a)}, repeats)["product"]


def ellipsoids(rng: np.random.Generator, batch: int, points: int) -> np.ndarray:
    """Points (B, N, 3) float32 of random ellipsoids in the unit sphere, as near each other as on shapes."""
    xyz = rng.normal(size=(batch, points, 3)).astype(np.float32)
    xyz /= np.linalg.norm(xyz, axis=-1, keepdims=True)
    return xyz * rng.uniform(0.3, 1, (batch, 1, 3)).astype(np.float32)


def clouds(batch: int, points: int, mesh: jax.sharding.Mesh) -> tuple[jax.Array, jax.Array]:
    """`ellipsoids` with random colours, (B, N, 3) twice, split by row."""
    rng = np.random.default_rng(0)
    xyz, rows = ellipsoids(rng, batch, points), sharding.by_row(mesh)
    return jax.device_put(xyz, rows), jax.device_put(rng.random((batch, points, 3), np.float32), rows)


class Ours:
    """The compiled forward pass and training step of a size."""

    def __init__(self, c: ModelConfig, xyz: jax.Array, rgb: jax.Array, mesh: jax.sharding.Mesh):
        from flax import nnx

        whole, rows = sharding.replicated(mesh), sharding.by_row(mesh)
        self._points, self._devices = (xyz, rgb), mesh.size
        tx = optim.optimizer(OptimConfig(), 1000)
        params, self.stats = jax.device_put(models.split(models.build(c, nnx.Rngs(0))), whole)
        self.params, self.opt_state = params, jax.device_put(tx.init(params), whole)
        target = jax.random.normal(jax.random.key(1), (len(xyz), c.embed_dim))

        def loss(params: Any, stats: Any, xyz: jax.Array, rgb: jax.Array) -> Any:
            emb, stats = models.apply(c, params, stats, xyz, rgb, train=True)
            shapes = losses.shapes(emb)
            task = losses.Task(target[:, None], jnp.ones((len(emb), 1), bool), jnp.float32(14.28))
            [(value, _)] = losses.contrastive(shapes, [task])
            return value, stats

        def step(params: Any, stats: Any, opt_state: Any, xyz: jax.Array, rgb: jax.Array) -> Any:
            (_, stats), grads = jax.value_and_grad(loss, has_aux=True)(params, stats, xyz, rgb)
            updates, opt_state = tx.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), stats, opt_state

        jit = runtime.jit_of_model(c.dtype)
        forward = jit(
            lambda p, s, x, r: models.apply(c, p, s, x, r)[0],
            in_shardings=(whole, whole, rows, rows),
        )
        self._forward = forward.lower(self.params, self.stats, xyz, rgb).compile()
        lowered = jit(
            step,
            donate_argnums=(0, 1, 2),
            in_shardings=(whole,) * 3 + (rows,) * 2,
            out_shardings=whole,
        ).lower(self.params, self.stats, self.opt_state, xyz, rgb)
        start = time.perf_counter()
        self._step = lowered.compile()
        self.compile_seconds = time.perf_counter() - start

    def forward(self) -> Any:
        return self._forward(self.params, self.stats, *self._points)

    def step(self) -> Any:
        state = self.params, self.stats, self.opt_state
        self.params, self.stats, self.opt_state = self._step(*state, *self._points)
        return self.params

    def gigabytes(self, name: str) -> float:
        m = getattr(self, f"_{name}").memory_analysis()
        used = (
            m.temp_size_in_bytes + m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
        )
        return self._devices * used / 1e9


def split(c: ModelConfig, xyz: jax.Array, rgb: jax.Array, repeats: int) -> dict[str, float]:
    """Seconds of the parts of a forward pass, each as a program of its own."""
    from flax import nnx

    model, jit = models.build(c, nnx.Rngs(0)), runtime.jit_of_model(c.dtype)
    sample = jit(jax.vmap(lambda x: farthest_point_sampling(x, c.patches)))
    centres = jnp.take_along_axis(xyz, sample(xyz)[..., None], 1)
    query = jit(jax.vmap(lambda x, s: ball_query(x, s, c.radius, c.nsample)))
    abstraction = jit(lambda x, r: model.sa(x, r, False)[1])
    tokens = jnp.zeros((len(xyz), c.patches + 1, c.dim), c.dtype)
    transformer = jit(lambda t: model.transformer(t))
    calls = {
        "FPS": lambda: sample(xyz),
        "ball query": lambda: query(xyz, centres),
        "set abstraction": lambda: abstraction(xyz, rgb),
        "transformer": lambda: transformer(tokens),
    }
    found = seconds(calls, repeats)
    found["set abstraction"] -= found["FPS"] + found["ball query"]  # the module does all three
    return found


class Peer:
    """A PyTorch model in a process of its own (`peer.py`), which ends with the block."""

    def __init__(self, spec: str, scaling: int, xyz: jax.Array, rgb: jax.Array):
        self._folder = tempfile.TemporaryDirectory()
        points = f"{self._folder.name}/points.npz"
        np.savez(points, xyz=np.asarray(xyz), rgb=np.asarray(rgb))
        command = [sys.executable, f"{Path(__file__).parent}/peer.py", spec, str(scaling), points]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *error: Any) -> None:
        self._process.communicate()  # the end of its input
        self._folder.cleanup()

    def timed(self, name: str) -> float:
        """Seconds of a "forward" or a "step"."""
        assert self._process.stdin and self._process.stdout
        print(name, file=self._process.stdin, flush=True)
        if not (line := self._process.stdout.readline()):
            raise SystemExit("The peer ended; its own message stands above.")
        return float(line)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--scalings", default="1,4,5")
    parser.add_argument("--batches", default="8,16")
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--cpu_devices", type=int, default=1, help="of the machine's cores, without accelerator"
    )
    parser.add_argument("--remat", action="store_true", help="recompute the transformer's activations")
    parser.add_argument("--peer", metavar="MODULE:FUNCTION")
    args = parser.parse_args()
    if args.peer and not importlib.util.find_spec("torch"):
        raise SystemExit("--peer needs torch in this environment: pip install torch (about 200 MB for CPUs).")
    runtime.prepare(args.cpu_devices)
    mesh = sharding.make_mesh()
    device = jax.devices()[0]
    versions = f"jax {jax.__version__}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}"
    print(f"{device.device_kind} ({jax.device_count()}), {args.dtype}, {args.points} points, {versions}")
    head = "| scaling | batch | pass | seconds | shapes/s | of peak | GB | compile s | peer s | ratio |"
    print(head + "\n|" + "---|" * (head.count("|") - 1))
    parts = []
    for scaling in map(int, args.scalings.split(",")):
        c = pointbert.size(scaling)
        c.dtype, c.remat = args.dtype, args.remat
        needed = sum(flops.forward(c).values())
        for batch in map(int, args.batches.split(",")):
            xyz, rgb = clouds(batch, args.points, mesh)
            ours = Ours(c, xyz, rgb, mesh)
            peak = matmul_rate(args.dtype, mesh)
            found: dict[str, float] = {}
            with Peer(args.peer, scaling, xyz, rgb) if args.peer else nullcontext() as peer:
                for name, call in (("forward", ours.forward), ("step", ours.step)):
                    clocks = {name: functools.partial(timed, call)}
                    if peer:
                        clocks[f"peer {name}"] = functools.partial(peer.timed, name)
                    found |= medians(clocks, args.repeats)
            for name, passes in (("forward", 1), ("step", 3)):
                t, other = found[name], found.get(f"peer {name}")
                beside = f"{other:.2f} | {other / t:.2f}" if other else " | "
                compiling = f"{ours.compile_seconds:.0f}" if name == "step" else ""
                share, memory = passes * batch * needed / t / peak, ours.gigabytes(name)
                cells = f"{t:.3f} | {batch / t:.1f} | {share:.0%} | {memory:.2f} | {compiling} | {beside}"
                print(f"| {scaling} | {batch} | {name} | {cells} |", flush=True)
            parts.append((scaling, batch, split(c, xyz, rgb, args.repeats)))
    print(
        "\nforward, by part (seconds)\n| scaling | batch | " + " | ".join(parts[0][2]) + " |\n|" + "---|" * 6
    )
    for scaling, batch, times in parts:
        print(f"| {scaling} | {batch} | " + " | ".join(f"{t:.3f}" for t in times.values()) + " |")


if __name__ == "__main__":
    main()
