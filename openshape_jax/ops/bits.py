"""Words of 32 hits, one bit a point."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

WORD = 32  # points per packed word


def nth_set_bit(word: Int[Array, ...], n: Int[Array, ...]) -> Int[Array, ...]:
    """Position 0..31 int32 of the n-th (from 0) set bit of each word, which has more than n.

    Args:
      word: int32 or uint32, taken as 32 bits. n: int32.
    """
    position = jnp.zeros_like(n)
    for width in (16, 8, 4, 2, 1):
        shifted = jax.lax.shift_right_logical(word, position.astype(word.dtype))
        count = jax.lax.population_count(shifted & jnp.array((1 << width) - 1, word.dtype)).astype(n.dtype)
        beyond = n >= count
        n = jnp.where(beyond, n - count, n)
        position = jnp.where(beyond, position + width, position)
    return position
