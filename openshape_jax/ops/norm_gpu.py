"""Layer norm as Pallas kernels for NVIDIA GPUs (Triton), forward and backward.

XLA makes several passes over memory of each, in float32 for the gradients: here every array is read or
written once, row after row, so that the products before and behind take it as it lies.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from openshape_jax.ops.slices_gpu import masked

TILE = 2048  # most numbers of the rows that a program holds
WARPS = 4
PROGRAMS = 1056  # of the gradients, each with sums over its rows: eight for each multiprocessor of an H100


def forward(
    x: Float[Array, "... D"],
    scale: Float[Array, " D"],
    shift: Float[Array, " D"],
    eps: float,
    interpret: bool = False,
) -> Float[Array, "... D"]:
    """The layer norm of x (..., D), in its type.

    Args:
      scale, shift: float32. eps: added to the variance.
      interpret: run on any platform by Pallas' interpreter, for tests.
    """
    flat = x.reshape(-1, x.shape[-1])
    rows, width = flat.shape
    each = _rows_each(width)
    whole = pl.BlockSpec((rows, width), lambda i: (0, 0))
    vector = pl.BlockSpec((width,), lambda i: (0,))
    out = pl.pallas_call(
        functools.partial(_forward_kernel, rows=each, eps=eps),
        jax.ShapeDtypeStruct((rows, width), x.dtype),
        grid=(pl.cdiv(rows, each),),
        in_specs=[vector, vector, whole],
        out_specs=whole,
        compiler_params=plgpu.CompilerParams(num_warps=WARPS, num_stages=1),
        interpret=interpret,
        name="norm_gpu",
    )(scale, shift, flat)
    return out.reshape(x.shape)


def backward(
    x: Float[Array, "... D"],
    scale: Float[Array, " D"],
    g: Float[Array, "... D"],
    beside: Float[Array, "... D"] | None,
    eps: float,
    interpret: bool = False,
) -> tuple[Array, Array, Array, Array]:
    """The gradients to x (..., D) in its type, and to scale, shift and a bias that was added to x as shares
    (n, D) float32 to be summed.

    Args:
      x: what was normed. g: the gradient to its norm.
      beside: a gradient to x itself, which is added; or None.
    """
    flat = [a.reshape(-1, a.shape[-1]) for a in (x, g, beside) if a is not None]
    rows, width = flat[0].shape
    each = _rows_each(width)
    programs = min(PROGRAMS, pl.cdiv(rows, each))
    whole = pl.BlockSpec((rows, width), lambda i: (0, 0))
    share = pl.BlockSpec((None, width), lambda i: (i, 0))
    shares = jax.ShapeDtypeStruct((programs, width), jnp.float32)
    grad, *sums = pl.pallas_call(
        functools.partial(_backward_kernel, rows=each, programs=programs, eps=eps),
        [jax.ShapeDtypeStruct((rows, width), x.dtype), shares, shares, shares],
        grid=(programs,),
        in_specs=[pl.BlockSpec((width,), lambda i: (0,)), *[whole] * len(flat)],
        out_specs=[whole, share, share, share],
        compiler_params=plgpu.CompilerParams(num_warps=WARPS, num_stages=1),
        interpret=interpret,
        name="norm_grad_gpu",
    )(scale, *flat)
    return grad.reshape(x.shape), *sums


def _rows_each(width: int) -> int:
    return max(1, TILE // pl.next_power_of_2(width))


class _Tile:
    """Loads and stores of some rows of arrays (rows, width), whatever lies outside of them left alone."""

    def __init__(self, shape: tuple[int, ...], first: Array, rows: int):
        columns = pl.next_power_of_2(shape[1])
        self.column = jnp.arange(columns)
        self.there = self.column < shape[1]
        row = first + jnp.arange(rows)
        self.mask = (row < shape[0])[:, None] & self.there[None]
        self.at = (masked(first, rows), masked(0, columns))
        self.width = shape[1]

    def load(self, ref) -> Array:
        return plgpu.load(ref.at[self.at], mask=self.mask, other=0.0).astype(jnp.float32)

    def vector(self, ref) -> Array:
        return plgpu.load(ref.at[masked(0, len(self.column))], mask=self.there, other=0.0)[None]

    def store(self, ref, value: Array) -> None:
        plgpu.store(ref.at[self.at], value.astype(ref.dtype), mask=self.mask)

    def normed(self, x: Array, eps: float) -> tuple[Array, Array]:
        """(x (rows, columns) to mean 0 and variance 1, 1 / sqrt(variance + eps) (rows, 1))."""
        centred = jnp.where(self.mask, x - (jnp.sum(x, axis=1) / self.width)[:, None], 0)
        rate = jax.lax.rsqrt(jnp.sum(centred * centred, axis=1) / self.width + eps)[:, None]
        return centred * rate, rate


def _forward_kernel(scale_ref, shift_ref, x_ref, out_ref, *, rows: int, eps: float):
    tile = _Tile(x_ref.shape, pl.program_id(0) * rows, rows)
    normed, _ = tile.normed(tile.load(x_ref), eps)
    tile.store(out_ref, normed * tile.vector(scale_ref) + tile.vector(shift_ref))


def _backward_kernel(scale_ref, x_ref, g_ref, *refs, rows: int, programs: int, eps: float):
    """refs: the gradient beside it if there is one, then the results."""
    *beside, grad_ref, scale_grad_ref, shift_grad_ref, bias_grad_ref = refs
    program, count = pl.program_id(0), x_ref.shape[0]

    def body(i, sums):
        tile = _Tile(x_ref.shape, (program + i * programs) * rows, rows)
        normed, rate = tile.normed(tile.load(x_ref), eps)
        g = tile.load(g_ref)
        slope = g * tile.vector(scale_ref)
        along = jnp.sum(slope * normed, axis=1)[:, None] / tile.width
        grad = (slope - jnp.sum(slope, axis=1)[:, None] / tile.width - normed * along) * rate
        if beside:
            grad = grad + tile.load(beside[0])
        tile.store(grad_ref, grad)
        return sums[0] + g * normed, sums[1] + g, sums[2] + grad

    zeros = jnp.zeros((rows, pl.next_power_of_2(x_ref.shape[1])), jnp.float32)
    sums = jax.lax.fori_loop(0, pl.cdiv(count, rows * programs), body, (zeros,) * 3)
    tile = _Tile(x_ref.shape, jnp.int32(0), rows)
    for ref, share in zip((scale_grad_ref, shift_grad_ref, bias_grad_ref), sums, strict=True):
        plgpu.store(ref.at[masked(0, len(tile.column))], jnp.sum(share, axis=0), mask=tile.there)
