"""Linear layers, and the form of their gradients on a CPU with matrix units."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from openshape_jax.ops.placement import batch_axes, platform

# Rows of a product that are turned together, at least and at most.
FEWEST, MOST = 128, 1024
ONES = 8  # rows of ones whose product with a matrix is the sum of its rows: fewer are no product to XLA


def dense(
    x: Float[Array, "... F"], kernel: Float[Array, "F G"], bias: Float[Array, " G"] | None = None
) -> Float[Array, "... G"]:
    """x W + b in x's type, with leading axes flattened."""
    rows = x.reshape(-1, x.shape[-1])
    y = _product(rows, kernel) if _parts(rows) else rows @ kernel.astype(x.dtype)
    if bias is not None:
        y = add_bias(y, bias)
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


def add_bias(x: Float[Array, "R F"], bias: Float[Array, " F"]) -> Float[Array, "R F"]:
    """x + b in x's type."""
    return _add_bias(x, bias) if _for_matrix_units(x) else x + bias.astype(x.dtype)


def _for_matrix_units(x: Float[Array, "R F"]) -> bool:
    """Whether x is bfloat16 on a CPU, and of one device.

    From jaxlib 0.11 on XLA multiplies that in matrix units (Intel's AMX), but only what need not be turned:
    x' g of a weight's gradient would be made in float32, at a quarter of the rate.
    """
    return x.dtype == jnp.bfloat16 and platform(x) == "cpu" and batch_axes(x)[2] == 1


def _parts(x: Float[Array, "R F"]) -> int:
    """In how many parts the rows of x are turned; 0: not at all."""
    if not _for_matrix_units(x):
        return 0
    least = max(-(-len(x) // MOST), 2)  # a loop of one turn is none to XLA
    fitting = (n for n in range(least, len(x) // FEWEST + 1) if len(x) % n == 0)
    return next(fitting, 0)


@jax.custom_vjp
def _product(x: Array, kernel: Array) -> Array:
    return x @ kernel.astype(x.dtype)


def _product_backward(kept: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = kept
    # W' by its axes alone: turned first, it would be one more product in float32.
    to_x = jax.lax.dot_general(g, kernel.astype(g.dtype), (((1,), (1,)), ((), ())))
    # The narrower factor is turned.
    parts = _parts(x)
    to_kernel = _outer(x, g, parts) if x.shape[1] <= g.shape[1] else _outer(g, x, parts).T
    return to_x, to_kernel.astype(kernel.dtype)


_product.defvjp(lambda x, kernel: (_product(x, kernel), (x, kernel)), _product_backward)


def _outer(a: Float[Array, "R F"], b: Float[Array, "R G"], parts: int) -> Float[Array, "F G"]:
    """a' b in float32. The parts of a are turned in a loop: XLA does not see that they go to a product."""
    turned = jax.lax.map(jnp.transpose, a.reshape(parts, -1, a.shape[1]))

    def more(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        return total + jnp.matmul(*part, preferred_element_type=jnp.float32), None

    start = jnp.zeros((a.shape[1], b.shape[1]), jnp.float32)
    return jax.lax.scan(more, start, (turned, b.reshape(parts, -1, b.shape[1])))[0]


@jax.custom_vjp
def _add_bias(x: Array, bias: Array) -> Array:
    return x + bias.astype(x.dtype)


def _add_bias_backward(bias: Array, g: Array) -> tuple[Array, Array]:
    # In float32 this would be wrong: see YNNPACK in runtime.py.
    total = jnp.matmul(jnp.ones((ONES, len(g)), g.dtype), g, preferred_element_type=jnp.float32)[0]
    return g, total.astype(bias.dtype)


_add_bias.defvjp(lambda x, bias: (_add_bias(x, bias), bias), _add_bias_backward)
