"""GELU, exact and by tanh, and the MLP around it on NVIDIA GPUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from openshape_jax.ops.attention import HALF
from openshape_jax.ops.dispatch import by_device, gpu_kernels

RATE, CUBIC = np.float32((2 / np.pi) ** 0.5), np.float32(0.044715)
FITS = 128  # both widths are multiples of it: gelu_gpu makes whole tiles


def exact(x: Array) -> Array:
    """By erf as PyTorch has it: jax.nn.gelu takes erfc, which costs more (experiments/tpu_dryrun)."""
    x32 = x.astype(jnp.float32)  # in bfloat16, 1 + erf would have nothing left of the negative tail
    return (0.5 * x32 * (1 + jax.lax.erf(x32 * np.float32(0.5**0.5)))).astype(x.dtype)


def by_tanh(x: Array) -> Array:
    """GELU by tanh, within 5e-4 of `exact`, a tenth of what bfloat16 rounds off.

    Departure: OpenShape's is exact. This form cuBLAS applies to a product as it comes.
    """
    return jax.nn.gelu(x, approximate=True)


def slope_by_tanh(x: Array, tanh: Callable[[Array], Array] = jnp.tanh) -> Array:
    """The derivative of 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) (arXiv 1606.08415); x float32."""
    square = x * x
    t = tanh(x * (RATE + RATE * CUBIC * square))
    return 0.5 + 0.5 * t + (1 - t * t) * (x * (0.5 * RATE + 1.5 * RATE * CUBIC * square))


def mlp_kernel(x: Float[Array, "R D"], width: int) -> bool:
    """Whether `mlp` takes x and an inner width."""
    return x.dtype in HALF and gpu_kernels(x) and width % FITS == x.shape[-1] % FITS == 0


@jax.custom_vjp
def mlp(
    x: Float[Array, "R D"], up: Float[Array, "D F"], bias: Float[Array, " F"], down: Float[Array, "F D"]
) -> Float[Array, "R D"]:
    """GELU(x up + bias) down, GELU by tanh, for NVIDIA GPUs and where `mlp_kernel` is true.

    In its gradient one kernel makes the product behind the GELU, the GELU's slope and the sum for the bias.
    """
    return _forward(x, up, bias, down)[0]


def _forward(x: Array, up: Array, bias: Array, down: Array) -> tuple[Array, tuple[Array, ...]]:
    h = x @ up.astype(x.dtype) + bias.astype(x.dtype)
    active = by_tanh(h)  # cuBLAS writes both in one go, so both are kept
    return active @ down.astype(x.dtype), (x, h, active, up, bias, down)


def _backward(kept: tuple[Array, ...], g: Array) -> tuple[Any, ...]:
    from openshape_jax.ops import gelu_gpu  # here, as importing Pallas takes a quarter of a second

    x, h, active, up, bias, down = kept
    to_h, shares = by_device(gelu_gpu.backward, 1)(g, h, down.astype(h.dtype))
    to_up, to_down = jnp.einsum("rd,rf->df", x, to_h), jnp.einsum("rf,rd->fd", active, g)
    to_x = jnp.einsum("rf,df->rd", to_h, up.astype(h.dtype))
    return to_x, to_up.astype(up.dtype), shares.sum(0).astype(bias.dtype), to_down.astype(down.dtype)


mlp.defvjp(_forward, _backward)
