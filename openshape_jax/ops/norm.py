"""Layer norm, and the choice of its form by platform."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from openshape_jax.ops.attention import HALF
from openshape_jax.ops.dispatch import by_device, gpu_kernels

EPS = 1e-5  # of PyTorch's layer and batch norms


def layer_norm(
    x: Float[Array, "... D"], scale: Float[Array, " D"], shift: Float[Array, " D"]
) -> Float[Array, "... D"]:
    """x to mean 0 and variance 1 along its last axis, times scale, plus shift: in float32, then x's type."""
    return _kernel(x, None, scale, shift)[0] if _has_kernel(x) else plain(x, scale, shift)


def add_norm(
    x: Float[Array, "... D"],
    branch: Float[Array, "... D"],
    scale: Float[Array, " D"],
    shift: Float[Array, " D"],
) -> tuple[Float[Array, "... D"], Float[Array, "... D"]]:
    """(x + branch, its `layer_norm`)."""
    if _has_kernel(x):
        return _kernel(x, branch, scale, shift)
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
    return x.dtype in HALF and x.ndim == 3 and gpu_kernels(x)


@jax.custom_vjp
def _kernel(x: Array, branch: Array | None, scale: Array, shift: Array) -> Any:
    """(x + branch, its norm), or (the norm of x,) without a branch."""
    return _forward(x, branch, scale, shift)[0]


def _forward(x: Array, branch: Array | None, scale: Array, shift: Array) -> tuple[Any, tuple[Any, ...]]:
    from openshape_jax.ops import norm_gpu  # here, as importing Pallas takes a quarter of a second

    out = by_device(lambda x, b, s, t: norm_gpu.forward(x, b, s, t, EPS), 2)(x, branch, scale, shift)
    return out, (x if branch is None else out[0], scale)


def _backward(kept: tuple[Any, ...], slopes: tuple[Array, ...]) -> tuple[Any, ...]:
    from openshape_jax.ops import norm_gpu

    *beside, g = slopes  # the gradient to the sum, if there was one
    run = by_device(lambda x, g, b, s: norm_gpu.backward(x, s, g, b, EPS), 1)
    grad, *shares = run(kept[0], g, beside[0] if beside else None, kept[1])
    return grad, grad if beside else None, *(share.sum(0) for share in shares)


_kernel.defvjp(_forward, _backward)
