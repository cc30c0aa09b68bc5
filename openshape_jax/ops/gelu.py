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
FITS = 128  # what the kernel's widths are multiples of


def exact(x: Array) -> Array:
    """By erf as PyTorch has it: jax.nn.gelu takes erfc, which costs more (experiments/tpu_dryrun)."""
    x32 = x.astype(jnp.float32)  # in bfloat16, 1 + erf would have nothing left of the negative tail
    return (0.5 * x32 * (1 + jax.lax.erf(x32 * np.float32(0.5**0.5)))).astype(x.dtype)


def by_tanh(x: Array) -> Array:
    """Within 5e-4 of it, a tenth of what bfloat16 rounds off: cuBLAS applies it to a product as it comes."""
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
    x: Float[Array, "R D"], up: Float[Array, "D F"], bias: Float[Array, " F"], down: Float[Array, "F E"]
) -> Float[Array, "R E"]:
    """GELU(x up + bias) down, GELU by tanh: of NVIDIA GPUs, with a gradient that one kernel makes of GELU,
    the product behind it and the bias in front of it."""
    return _forward(x, up, bias, down)[0]


def _forward(x: Array, up: Array, bias: Array, down: Array) -> tuple[Array, tuple[Array, ...]]:
    h = x @ up.astype(x.dtype) + bias.astype(x.dtype)
    active = by_tanh(h)
    return active @ down.astype(x.dtype), (x, h, active, up, bias, down)


def _backward(kept: tuple[Array, ...], g: Array) -> tuple[Any, ...]:
    from openshape_jax.ops import gelu_gpu  # here, as importing Pallas takes a quarter of a second

    x, h, active, up, bias, down = kept
    to_h, shares = by_device(gelu_gpu.backward, 1)(g, h, down.astype(h.dtype))
    to_up, to_down = (_over_rows(a, b).astype(to.dtype) for a, b, to in ((x, to_h, up), (active, g, down)))
    to_x = jnp.einsum("rf,df->rd", to_h, up.astype(h.dtype))
    return to_x, to_up, shares.sum(0).astype(bias.dtype), to_down


def _over_rows(a: Float[Array, "R F"], b: Float[Array, "R G"]) -> Float[Array, "F G"]:
    return jnp.einsum("rf,rg->fg", a, b)


mlp.defvjp(_forward, _backward)
