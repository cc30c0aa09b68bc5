"""What the tests of set abstraction's kernels share: inputs, and a form's value and gradient."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from openshape_jax.ops.patch_passes import Hidden, Norm, chunked
from openshape_jax.ops.patch_train import Layer

QUICK = {"xla_backend_optimization_level": 0}  # to compile, as a program runs once


def inputs(members: int, channels: int, patches: int = 10):
    """(1, S, K, 9) points, of which many are a patch's first once more, layers, and slopes (S, C)."""
    rng = np.random.default_rng(channels)
    grouped = rng.normal(size=(1, patches, members, 9)).astype(np.float32) + 0.5
    grouped[:, :, members // 2 :] = grouped[:, :, :1]
    layers = [
        Layer(*(0.5 * rng.normal(size=shape).astype(np.float32) for shape in ((a, b), (b,), (b,))))
        for a, b in itertools.pairwise((9, 64, 64, channels))
    ]
    assert (layers[2].scale < 0).any() and (layers[2].scale > 0).any()
    return grouped, layers, rng.normal(size=(patches, channels)).astype(np.float32)


def value_and_gradient(form, x, layers, slope):
    def total(layers, x):
        features, moments = form(x, layers)
        features = features.reshape(slope.shape)
        return (features * slope).sum(), (features, moments)

    slopes = jax.value_and_grad(total, has_aux=True, argnums=(0, 1))
    return jax.jit(slopes, compiler_options=QUICK)(layers, x)


def chunks(grouped, dtype):
    return jnp.asarray(grouped.transpose(0, 2, 1, 3)[None], dtype)


def bfloat16_passes_equal(passes, arranged, by_patch, case) -> None:
    """The passes of `passes` and those in plain XLA, given the maxima: which member has one may hang on a
    rounding, and with it where a gradient goes.

    Args:
      arranged: the points of `case` (of `inputs`, 16 members) as the passes take them, bfloat16.
      by_patch: brings (S, C) into the order of the passes' patches.
    """
    x, (one, two, three), slope = case
    rng = np.random.default_rng(0)
    index = rng.integers(0, 16, slope.shape).astype(np.int32)
    mixed, *vectors = (rng.normal(size=s).astype(np.float32) / 8 for s in ((64, 64), *[(64,)] * 8))
    hidden = Hidden(one.kernel, vectors[0], vectors[0], two.kernel, Norm(*vectors[1:6]))

    @functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
    def every(passes, x, slope, index):
        y2, *found = passes.second(x, hidden)
        top, _, *more = passes.third(x, y2, hidden, three.kernel)
        d_n2, *sums = passes.third_back(x, y2, hidden, three.kernel, slope, index, mixed, vectors[6])
        last = passes.second_back(x, y2, d_n2, hidden, vectors[6], vectors[7])
        mean, cov = passes.inputs(x)
        return mean[:9], cov[:9, :9], *found, top, *more, *sums, last[0], last[1][:9], last[2]

    got = every(passes, arranged, by_patch(slope), by_patch(index))
    wanted = every(chunked, chunks(x, jnp.bfloat16), slope[None, None], index[None, None])
    for a, b in zip(got, wanted, strict=True):
        assert np.linalg.norm(a - b.reshape(a.shape)) < 0.01 * np.linalg.norm(b)


def plain_layers(grouped, weights):
    """Maxima over the members of three layers relu(x W + b), (S, C)."""
    y = jnp.asarray(grouped[0])
    for kernel, bias in zip(weights[::2], weights[1::2], strict=True):
        y = jax.nn.relu(y @ kernel + bias)
    return y.max(1)


def lowered_set_abstraction(config, platform: str, train: bool) -> str:
    """The text of the program of `pointbert.SetAbstraction` on 4 clouds, in training its gradient."""
    from flax import nnx

    from openshape_jax.models import pointbert

    points = jax.ShapeDtypeStruct((4, 1000, 3), jnp.float32)

    def loss(params, rest, xyz):
        sa = nnx.merge(graph, params, rest, copy=True)  # which the statistics may change
        return sa(xyz, xyz, train)[1].astype(jnp.float32).sum()

    graph, params, rest = nnx.split(
        nnx.eval_shape(lambda: pointbert.SetAbstraction(config, rngs=nnx.Rngs(0))), nnx.Param, ...
    )
    program = jax.jit(jax.grad(loss)) if train else jax.jit(loss)
    return program.trace(params, rest, points).lower(lowering_platforms=(platform,)).as_text()
