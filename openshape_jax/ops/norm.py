"""Layer norm, and the choice of its form by platform."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from openshape_jax.ops.dispatch import by_device, has_kernels
from openshape_jax.ops.placement import platform

EPS = 1e-5  # of PyTorch's layer and batch norms


def layer_norm(
    x: Float[Array, "... D"], scale: Float[Array, " D"], shift: Float[Array, " D"]
) -> Float[Array, "... D"]:
    """x to mean 0 and variance 1 along its last axis, times scale, plus shift: in float32, then x's type."""
    return _normed(x, scale, shift) if _has_kernel(x) else plain(x, scale, shift)


def add_norm(
    x: Float[Array, "... D"],
    branch: Float[Array, "... D"],
    scale: Float[Array, " D"],
    shift: Float[Array, " D"],
) -> tuple[Float[Array, "... D"], Float[Array, "... D"]]:
    """(x + branch, its `layer_norm`)."""
    if _has_kernel(x):
        return _added(x, branch, scale, shift)
    return x + branch, plain(x + branch, scale, shift)


def plain(x: Array, scale: Array, shift: Array) -> Array:
    """The definition."""
    x32 = x.astype(jnp.float32)
    mean = x32.mean(-1, keepdims=True)
    centred = x32 - mean
    if x.dtype == jnp.float32:
        var = jnp.square(centred).mean(-1, keepdims=True)
    else:  # in one pass; what cancels is far below the rounding of x itself
        var = jnp.maximum(jnp.square(x32).mean(-1, keepdims=True) - jnp.square(mean), 0)
    return (centred * jax.lax.rsqrt(var + EPS) * scale + shift).astype(x.dtype)


def _has_kernel(x: Array) -> bool:
    half = x.dtype in (jnp.float16, jnp.bfloat16)
    return half and x.ndim == 3 and platform(x) == "gpu" and has_kernels("cuda")


@jax.custom_vjp
def _normed(x: Array, scale: Array, shift: Array) -> Array:
    return _normed_forward(x, scale, shift)[0]


def _normed_forward(x: Array, scale: Array, shift: Array) -> tuple[Array, tuple[Array, Array]]:
    from openshape_jax.ops import norm_gpu  # here, as importing Pallas takes a quarter of a second

    return by_device(lambda x, s, t: norm_gpu.forward(x, None, s, t, EPS)[0], 2)(x, scale, shift), (x, scale)


def _normed_backward(kept: tuple[Array, Array], g: Array) -> tuple[Array, Array, Array]:
    from openshape_jax.ops import norm_gpu

    grad, *shares = by_device(lambda x, g, s: norm_gpu.backward(x, s, g, None, EPS), 1)(kept[0], g, kept[1])
    return grad, *(share.sum(0) for share in shares)


_normed.defvjp(_normed_forward, _normed_backward)


@jax.custom_vjp
def _added(x: Array, branch: Array, scale: Array, shift: Array) -> tuple[Array, Array]:
    return _added_forward(x, branch, scale, shift)[0]


def _added_forward(
    x: Array, branch: Array, scale: Array, shift: Array
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    from openshape_jax.ops import norm_gpu

    out = by_device(lambda x, b, s, t: norm_gpu.forward(x, b, s, t, EPS), 2)(x, branch, scale, shift)
    return out, (out[0], scale)


def _added_backward(
    kept: tuple[Array, Array], slopes: tuple[Array, Array]
) -> tuple[Array, Array, Array, Array]:
    from openshape_jax.ops import norm_gpu

    beside, g = slopes
    run = by_device(lambda x, g, beside, s: norm_gpu.backward(x, s, g, beside, EPS), 1)
    grad, *shares = run(kept[0], g, beside, kept[1])
    return grad, grad, *(share.sum(0) for share in shares)


_added.defvjp(_added_forward, _added_backward)
