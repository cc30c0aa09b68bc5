"""Layer norm, after an addition or alone, as Pallas kernels for TPUs (Mosaic), forward and backward.

XLA makes several passes over memory of each, and the sums over rows that gradients need in passes of their
own: here every array is read or written once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

SUBLANES = 8
STRIP = 16  # rows that are computed together: a register of bfloat16 has as many
MOST_STRIPS = 32  # of one program
VMEM = 64 << 20  # bytes that the compiler may use


def forward(
    x: Float[Array, "... D"],
    branch: Float[Array, "... D"] | None,
    bias: Float[Array, " D"],
    scale: Float[Array, " D"],
    shift: Float[Array, " D"],
    eps: float,
    interpret: bool = False,
) -> tuple[Array, ...]:
    """(x + (branch + bias), its layer norm) (..., D) in x's type; without a branch the norm of x alone.

    Args:
      x: a multiple of 16 rows, D of 128. bias, scale, shift: float32. eps: added to the variance.
      interpret: run on any platform by Pallas' interpreter, for tests.
    """
    flat = [a.reshape(-1, a.shape[-1]) for a in (x, branch) if a is not None]
    grid, tile, vector = _specs(flat[0])
    out = pl.pallas_call(
        functools.partial(_forward_kernel, eps=eps),
        [jax.ShapeDtypeStruct(flat[0].shape, x.dtype)] * len(flat),
        grid=grid,
        in_specs=[vector] * 3 + [tile] * len(flat),
        out_specs=[tile] * len(flat),
        compiler_params=_params("parallel"),
        cost_estimate=_cost(flat[0], 2 * len(flat)),
        interpret=interpret,
        name="norm_tpu",
    )(bias[None], scale[None], shift[None], *flat)
    return tuple(a.reshape(x.shape) for a in out)


def backward(
    x: Float[Array, "... D"],
    scale: Float[Array, " D"],
    g: Float[Array, "... D"],
    beside: Float[Array, "... D"] | None,
    eps: float,
    interpret: bool = False,
) -> tuple[Array, Array, Array, Array]:
    """The gradients to x (..., D) in its type, and to scale, shift and bias as shares (8, D) float32 to be
    summed.

    Args:
      x: what was normed. g: the gradient to its norm.
      beside: a gradient to x itself, which is added; or None.
    """
    flat = [a.reshape(-1, a.shape[-1]) for a in (x, g, beside) if a is not None]
    grid, tile, vector = _specs(flat[0])
    share = jax.ShapeDtypeStruct((SUBLANES, x.shape[-1]), jnp.float32)
    grad, *shares = pl.pallas_call(
        functools.partial(_backward_kernel, eps=eps),
        [jax.ShapeDtypeStruct(flat[0].shape, x.dtype), share, share, share],
        grid=grid,
        in_specs=[vector] + [tile] * len(flat),
        out_specs=[tile] + [pl.BlockSpec(share.shape, lambda i: (0, 0))] * 3,
        compiler_params=_params("arbitrary"),
        cost_estimate=_cost(flat[0], len(flat) + 1),
        interpret=interpret,
        name="norm_grad_tpu",
    )(scale[None], *flat)
    return grad.reshape(x.shape), *shares


def _specs(x: Array) -> tuple[tuple[int], pl.BlockSpec, pl.BlockSpec]:
    """(grid, block of rows, block of a vector)"""
    rows, width = x.shape
    strips = next(s for s in range(MOST_STRIPS, 0, -1) if rows // STRIP % s == 0)
    each = strips * STRIP
    vector = pl.BlockSpec((1, width), lambda i: (0, 0))
    return (rows // each,), pl.BlockSpec((each, width), lambda i: (i, 0)), vector


def _params(semantics: Literal["parallel", "arbitrary"]) -> pltpu.CompilerParams:
    return pltpu.CompilerParams(dimension_semantics=(semantics,), vmem_limit_bytes=VMEM)


def _cost(x: Array, arrays: int) -> pl.CostEstimate:
    return pl.CostEstimate(flops=10 * x.size, transcendentals=0, bytes_accessed=arrays * x.nbytes)


def _normed(x: Float[Array, "R D"], eps: float) -> tuple[Array, Array]:
    """(x to mean 0 and variance 1, 1 / sqrt(variance + eps) (R, 1))."""
    part = 1 / x.shape[1]
    centred = x - x.sum(1, keepdims=True) * part
    rate = jax.lax.rsqrt(jnp.square(centred).sum(1, keepdims=True) * part + eps)
    return centred * rate, rate


def _strips(rows: int, body: Callable[[Any, Any], Any], start: Any) -> Any:
    """body(where the strip is, what the strips before it made) of all strips, one after the other."""
    at = lambda i: pl.ds(pl.multiple_of(i * STRIP, STRIP), STRIP)  # noqa: E731
    return jax.lax.fori_loop(0, rows // STRIP, lambda i, made: body(at(i), made), start)


def _forward_kernel(bias_ref, scale_ref, shift_ref, *refs, eps: float):
    """refs: x, branch, sum, norm; or x, norm."""
    x_ref, out_ref = refs[0], refs[-1]
    bias, scale, shift = bias_ref[...], scale_ref[...], shift_ref[...]

    def one(at, _):
        x = x_ref[at].astype(jnp.float32)
        if len(refs) == 4:
            # The sum is rounded before it is normed, as it is where the gradients take it from.
            total = (x + (refs[1][at].astype(jnp.float32) + bias)).astype(x_ref.dtype)
            refs[2][at] = total
            x = total.astype(jnp.float32)
        out_ref[at] = (_normed(x, eps)[0] * scale + shift).astype(out_ref.dtype)

    _strips(x_ref.shape[0], one, None)


def _backward_kernel(scale_ref, x_ref, g_ref, *refs, eps: float):
    """refs: the gradient beside it if there is one, then the results."""
    *beside, grad_ref, scale_grad, shift_grad, bias_grad = refs
    sums = scale_grad, shift_grad, bias_grad
    scale, part = scale_ref[...], 1 / x_ref.shape[1]

    @pl.when(pl.program_id(0) == 0)
    def _():
        for ref in sums:
            ref[...] = jnp.zeros(ref.shape, ref.dtype)

    def one(at, seen):
        normed, rate = _normed(x_ref[at].astype(jnp.float32), eps)
        g = g_ref[at].astype(jnp.float32)
        slope = g * scale
        along = (slope * normed).sum(1, keepdims=True) * part
        grad = (slope - slope.sum(1, keepdims=True) * part - normed * along) * rate
        if beside:
            grad += beside[0][at].astype(jnp.float32)
        grad_ref[at] = grad.astype(grad_ref.dtype)
        return tuple(
            before + new.reshape(-1, SUBLANES, new.shape[1]).sum(0)
            for before, new in zip(seen, (g * normed, g, grad), strict=True)
        )

    zeros = jnp.zeros(scale_grad.shape, jnp.float32)
    for ref, share in zip(sums, _strips(x_ref.shape[0], one, (zeros,) * 3), strict=True):
        ref[...] += share
