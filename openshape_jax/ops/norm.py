"""Layer norm, and the choice of its form by platform."""

from __future__ import annotations

import importlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from openshape_jax.ops.attention import HALF
from openshape_jax.ops.dispatch import by_device, gpu_kernels, has_kernels
from openshape_jax.ops.placement import batch_axes, platform

EPS = 1e-5  # of PyTorch's layer and batch norms


def layer_norm(
    x: Float[Array, "... D"], scale: Float[Array, " D"], shift: Float[Array, " D"]
) -> Float[Array, "... D"]:
    """x to mean 0 and variance 1 along its last axis, times scale, plus shift: in float32, then x's type."""
    if not (where := norm_kernel(x)):
        return _without_kernel(x, scale, shift)
    return _kernel(where, False, x, None, None, scale, shift)[0]


def add_norm(
    x: Float[Array, "... D"],
    branch: Float[Array, "... D"] | None,
    scale: Float[Array, " D"],
    shift: Float[Array, " D"],
    bias: Float[Array, " D"] | None = None,
) -> tuple[Float[Array, "... D"], Float[Array, "... D"]]:
    """(x + (branch + bias), its `layer_norm`); x itself without a branch."""
    if where := norm_kernel(x):
        return _kernel(where, True, x, branch, None if branch is None else bias, scale, shift)
    total = add(x, branch, bias)
    return total, _without_kernel(total, scale, shift)


def add(x: Array, branch: Array | None, bias: Array | None = None) -> Array:
    """x + (branch + bias); x itself without a branch."""
    if branch is None:
        return x
    return x + (branch if bias is None else branch + bias.astype(branch.dtype))


def plain(x: Array, scale: Array, shift: Array) -> Array:
    """The definition."""
    return (_unit(x)[0] * scale + shift).astype(x.dtype)


def _unit(x: Array) -> tuple[Array, Array]:
    """(x to mean 0 and variance 1 along its last axis, by what its deviation was multiplied), float32."""
    x32 = x.astype(jnp.float32)
    mean = x32.mean(-1, keepdims=True)
    centred = x32 - mean
    if x.dtype == jnp.float32:
        var = jnp.square(centred).mean(-1, keepdims=True)
    else:  # in one pass; what cancels is far below the rounding of x itself
        var = jnp.maximum(jnp.square(x32).mean(-1, keepdims=True) - jnp.square(mean), 0)
    inverse = jax.lax.rsqrt(var + EPS)
    return centred * inverse, inverse


def _without_kernel(x: Array, scale: Array, shift: Array) -> Array:
    if x.dtype != jnp.float32 or platform(x) != "cpu":
        return plain(x, scale, shift)
    # Within shard_map they become each device's own, as x is: their gradients are then summed over devices.
    scale, shift = (v + jnp.zeros_like(x, shape=v.shape) for v in (scale, shift))
    return _single(x, scale, shift)


@jax.custom_vjp
def _single(x: Array, scale: Array, shift: Array) -> Array:
    """`plain` in float32 on a CPU, each of its results one operation of YNNPACK's (runtime.py)."""
    # Apart from the product behind, which YNNPACK would take with it, and is slower at.
    return jax.lax.optimization_barrier(plain(x, scale, shift))


def _single_backward(kept: tuple[Array, Array, Array], g: Array) -> tuple[Array, Array, Array]:
    x, scale, shift = kept
    # An operation of YNNPACK's has a single result: each makes the norm again. XLA would join what they have
    # in common, and barriers around the same arrays.
    own, slope = jax.lax.optimization_barrier((x, g))
    to_scale = (slope * _unit(own)[0]).reshape(-1, len(scale)).sum(0)
    own, slope, factor = jax.lax.optimization_barrier((x, g, scale))
    unit, inverse = _unit(own)
    slope = slope * factor
    along = (slope * unit).mean(-1, keepdims=True)
    to_x = inverse * (slope - slope.mean(-1, keepdims=True) - unit * along)
    return to_x, to_scale, g.reshape(-1, len(shift)).sum(0)


_single.defvjp(lambda x, scale, shift: (_single(x, scale, shift), (x, scale, shift)), _single_backward)


def norm_kernel(x: Array) -> str | None:
    """Whose kernels take x: "tpu", "gpu" or None; only float16 or bfloat16.

    On TPUs a device's rows come in sixteens and columns in 128s.
    """
    if x.dtype not in HALF:
        return None
    if platform(x) == "tpu" and has_kernels("tpu"):
        devices = batch_axes(x)[2]
        own = x.size // x.shape[-1] // (devices if x.shape[0] % devices == 0 else 1)
        return None if own % 16 or x.shape[-1] % 128 else "tpu"  # STRIP of norm_tpu, lanes of a register
    return "gpu" if gpu_kernels(x) else None


def _run(
    where: str, with_sum: bool, x: Array, branch: Array | None, bias: Array | None, scale: Array, shift: Array
) -> Any:
    """(x + (branch + bias), its norm), or (its norm,) without the sum."""
    return _forward(where, with_sum, x, branch, bias, scale, shift)[0]


_kernel = jax.custom_vjp(_run, nondiff_argnums=(0, 1))


def _made_for(where: str) -> Any:
    """The module of kernels."""
    # Here, as importing Pallas takes a quarter of a second.
    return importlib.import_module(f"openshape_jax.ops.norm_{where}")


def _forward(
    where: str, with_sum: bool, x: Array, branch: Array | None, bias: Array | None, scale: Array, shift: Array
) -> tuple[Any, tuple[Any, ...]]:
    made = _made_for(where)
    if where == "tpu":
        zero = jnp.zeros_like(scale) if bias is None else bias
        run = by_device(lambda x, b, a, s, t: made.forward(x, b, a, s, t, EPS), 3)
        *sums, normed = run(x, branch, zero, scale, shift)
        total = sums[0] if sums else x
    else:  # cuBLAS adds x and the bias to a product as it comes
        total = add(x, branch, bias)
        normed = by_device(lambda x, s, t: made.forward(x, s, t, EPS), 2)(total, scale, shift)
    return ((total, normed) if with_sum else (normed,)), (total, scale, branch is not None, bias)


def _backward(
    where: str, with_sum: bool, kept: tuple[Any, ...], slopes: tuple[Array, ...]
) -> tuple[Any, ...]:
    x, scale, added, bias = kept
    *beside, g = slopes  # the gradient to the sum, if it was returned
    made = _made_for(where)
    run = by_device(lambda x, g, b, s: made.backward(x, s, g, b, EPS), 1)
    grad, *shares = run(x, g, beside[0] if beside else None, scale)
    to_scale, to_shift, *to_bias = (share.sum(0) for share in shares)
    return grad, grad if added else None, None if bias is None else to_bias[0], to_scale, to_shift


_kernel.defvjp(_forward, _backward)
