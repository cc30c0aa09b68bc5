"""The shared MLP of set abstraction and its maximum over each patch as Pallas kernels for TPUs (Mosaic).

The activations of all grouped points, a thousand times the points themselves, stay in VMEM: XLA writes each
layer's to HBM and reads them again.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

SUBLANES = 8  # patches of a tile: its points are the members of eight patches, member by member
FEATURES = 16  # rows of a tile, the features of a point and zeros
TILES = 8  # of one program
VMEM = 64 << 20  # bytes that the compiler may use


def tiles(grouped: Float[Array, "B S K F"]) -> Float[Array, "n 16 8K"]:
    """The points in tiles of 8 patches; S must be a multiple of 8 and F at most 16."""
    b, s, k, f = grouped.shape
    parts = grouped.reshape(b * s // SUBLANES, SUBLANES, k, f).transpose(0, 3, 2, 1)
    return jnp.pad(parts.reshape(-1, f, k * SUBLANES), ((0, 0), (0, FEATURES - f), (0, 0)))


def forward(
    points: Float[Array, "n 16 8K"], *weights: Array, interpret: bool = False
) -> Float[Array, "n 8 C"]:
    """bfloat16 maxima over the members of each patch of relu(relu(relu(x W1 + b1) W2 + b2) W3 + b3).

    Args:
      points: of `tiles`.
      weights: W1 (F, 64), b1, W2, b2, W3 (64, C), b3 in float32; products are of bfloat16, sums float32.
      interpret: run on any platform by Pallas' interpreter, for tests.
    """
    n, _, width = points.shape
    inputs, each = _prepare(weights), _tiles_each(n)
    channels = inputs[4].shape[1]
    return pl.pallas_call(
        functools.partial(_forward_kernel, members=width // SUBLANES),
        jax.ShapeDtypeStruct((n, SUBLANES, channels), jnp.bfloat16),
        grid=(n // each,),
        in_specs=[_tile((each, FEATURES, width)), *map(_whole, inputs)],
        out_specs=_tile((each, SUBLANES, channels)),
        compiler_params=_params("parallel"),
        cost_estimate=_cost(points, inputs, 1),
        interpret=interpret,
        name="patch_tpu",
    )(points, *inputs)


def backward(
    points: Float[Array, "n 16 8K"], g: Float[Array, "n 8 C"], *weights: Array, interpret: bool = False
) -> tuple[Array, ...]:
    """The gradients (1, ...) to the weights of `forward`, from that to its result, in float32.

    Members that share a maximum share its gradient evenly, as `jnp.max` has it.
    """
    n, _, width = points.shape
    features = weights[0].shape[0]
    inputs, each = _prepare(weights), _tiles_each(n)
    shapes = [jax.ShapeDtypeStruct(w.shape, jnp.float32) for w in inputs]
    grads = pl.pallas_call(
        functools.partial(_backward_kernel, members=width // SUBLANES),
        shapes,
        grid=(n // each,),
        in_specs=[_tile((each, FEATURES, width)), _tile((each, *g.shape[1:])), *map(_whole, inputs)],
        out_specs=[_whole(s) for s in shapes],
        compiler_params=_params("arbitrary"),
        cost_estimate=_cost(points, inputs, 3),
        interpret=interpret,
        name="patch_grad_tpu",
    )(points, g, *inputs)
    out = [grads[0][:features], *grads[1:]]
    return tuple((x if i % 2 == 0 else x[0])[None] for i, x in enumerate(out))


def _prepare(weights: Sequence[Array]) -> list[Array]:
    """The kernels in bfloat16, the first with FEATURES rows; biases (1, C) float32."""
    first, *rest = weights
    padded = jnp.pad(first, ((0, FEATURES - len(first)), (0, 0)))
    return [x[None] if x.ndim == 1 else x.astype(jnp.bfloat16) for x in (padded, *rest)]


def _tiles_each(n: int) -> int:
    return next(t for t in range(TILES, 0, -1) if n % t == 0)


def _tile(shape: tuple[int, ...]) -> pl.BlockSpec:
    return pl.BlockSpec(shape, lambda i: (i, *[0] * (len(shape) - 1)))


def _whole(array: Array | jax.ShapeDtypeStruct) -> pl.BlockSpec:
    return pl.BlockSpec(array.shape, lambda i: (0,) * len(array.shape))


def _params(semantics: Literal["parallel", "arbitrary"]) -> pltpu.CompilerParams:
    return pltpu.CompilerParams(dimension_semantics=(semantics,), vmem_limit_bytes=VMEM)


def _cost(points: Array, weights: Sequence[Array], passes: int) -> pl.CostEstimate:
    flops = 2 * passes * len(points) * points.shape[2] * sum(w.size for w in weights[::2])
    return pl.CostEstimate(flops=flops, transcendentals=0, bytes_accessed=points.size * 4)


def _dot(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    dims = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def _hidden(x: Array, w1, b1, w2, b2) -> tuple[Array, Array]:
    """Both hidden layers (8K, 64) of a tile x (16, 8K)."""
    h1 = jnp.maximum(_dot(x.T.astype(jnp.bfloat16), w1[...], (1, 0)) + b1[...], 0).astype(jnp.bfloat16)
    return h1, jnp.maximum(_dot(h1, w2[...], (1, 0)) + b2[...], 0).astype(jnp.bfloat16)


def _forward_kernel(x_ref, w1, b1, w2, b2, w3, b3, out_ref, *, members: int):
    def one(i, _):
        _, h2 = _hidden(x_ref[i], w1, b1, w2, b2)
        last = _dot(h2, w3[...], (1, 0)).reshape(members, SUBLANES, -1)
        out_ref[i] = jnp.maximum(last.max(0) + b3[...], 0).astype(out_ref.dtype)

    jax.lax.fori_loop(0, x_ref.shape[0], one, None)


def _backward_kernel(x_ref, g_ref, w1, b1, w2, b2, w3, b3, d1, e1, d2, e2, d3, e3, *, members: int):
    """d1, d2, d3 and e1, e2, e3: gradients of the kernels and biases, summed over all programs."""

    @pl.when(pl.program_id(0) == 0)
    def _():
        for ref in (d1, e1, d2, e2, d3, e3):
            ref[...] = jnp.zeros(ref.shape, ref.dtype)

    def one(i, _):
        x = x_ref[i]
        h1, h2 = _hidden(x, w1, b1, w2, b2)
        last = _dot(h2, w3[...], (1, 0)).reshape(members, SUBLANES, -1)
        top = last.max(0)
        g = jnp.where(top + b3[...] > 0, g_ref[i].astype(jnp.float32), 0)
        best = last == top
        share = g / best.astype(jnp.float32).sum(0)
        g3 = jnp.where(best, share, 0).reshape(members * SUBLANES, -1).astype(jnp.bfloat16)
        d3[...] += _dot(h2, g3, (0, 0))
        e3[...] += g.sum(0, keepdims=True)
        g2 = jnp.where(h2 > 0, _dot(g3, w3[...], (1, 1)), 0)
        e2[...] += g2.sum(0, keepdims=True)
        g2 = g2.astype(jnp.bfloat16)
        d2[...] += _dot(h1, g2, (0, 0))
        g1 = jnp.where(h1 > 0, _dot(g2, w2[...], (1, 1)), 0)
        e1[...] += g1.sum(0, keepdims=True)
        d1[...] += _dot(x.astype(jnp.bfloat16), g1.astype(jnp.bfloat16), (1, 0))

    jax.lax.fori_loop(0, x_ref.shape[0], one, None)
