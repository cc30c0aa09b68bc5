"""Ball query: the first points in index order within a radius."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

WORD = 32  # points per packed word
CENTRES = 16  # centres handled together: bounds the hit mask at CENTRES x N


def _nth_set_bit(word: Array, n: Array) -> Array:
    """Position 0..31 of the n-th (from 0) set bit of each uint32 word, which has more than n."""
    position = jnp.zeros_like(n)
    for width in (16, 8, 4, 2, 1):
        low = (word >> position.astype(jnp.uint32)) & jnp.uint32((1 << width) - 1)
        count = jax.lax.population_count(low).astype(n.dtype)
        beyond = n >= count
        n = jnp.where(beyond, n - count, n)
        position = jnp.where(beyond, position + width, position)
    return position


def ball_query(
    xyz: Float[Array, "N 3"], centres: Float[Array, "S 3"], radius: float, num_samples: int
) -> Int[Array, "S K"]:
    """Indices (S, K) int32 of the first K points, in index order, with squared distance <= radius².

    A group with fewer than K members is filled with its first member, as the reference does; it is
    not a nearest-neighbour search, so points should be shuffled. A centre without any member gets
    index 0.

    Hits are packed into 32-bit words; the k-th hit is found by a cumulative count over words and a
    binary search inside one word, so nothing is ever sorted.

    Args:
      xyz: (N, 3) points. centres: (S, 3) same unit. Both are taken as float32.
      radius: in the unit of xyz.
      num_samples: K.

    Raises:
      ValueError: a wrong shape, or K < 1.
    """
    if xyz.ndim != 2 or xyz.shape[1] != 3 or centres.ndim != 2 or centres.shape[1] != 3:
        raise ValueError(f"xyz {xyz.shape} and centres {centres.shape} must be (N, 3) and (S, 3).")
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}; it must be at least 1.")
    n = xyz.shape[0]
    pad = -n % WORD
    rows = jnp.pad(xyz.astype(jnp.float32).T, ((0, 0), (0, pad)))
    valid = jnp.arange(n + pad) < n
    limit = jnp.float32(radius**2)
    bits = jnp.left_shift(jnp.uint32(1), jnp.arange(WORD, dtype=jnp.uint32))

    def one_chunk(chunk: Array) -> Array:  # (C, 3) -> (C, K)
        d2 = sum((rows[a][None, :] - chunk[:, a, None]) ** 2 for a in range(3))
        hit = (d2 <= limit) & valid
        words = jnp.where(hit.reshape(len(chunk), -1, WORD), bits, 0).sum(-1, dtype=jnp.uint32)
        upto = jnp.cumsum(jax.lax.population_count(words).astype(jnp.int32), axis=1)  # (C, W)
        rank = jnp.arange(num_samples, dtype=jnp.int32)
        word = jax.vmap(lambda row: jnp.searchsorted(row, rank, side="right", method="scan_unrolled"))(upto)
        word = jnp.minimum(word, words.shape[1] - 1)
        before = jnp.take_along_axis(upto - jax.lax.population_count(words).astype(jnp.int32), word, 1)
        bit = _nth_set_bit(jnp.take_along_axis(words, word, 1), rank[None] - before)
        index = word * WORD + bit
        found = rank[None] < upto[:, -1:]
        first = jnp.where(upto[:, -1:] > 0, index[:, :1], 0)
        return jnp.where(found, index, first).astype(jnp.int32)

    s = centres.shape[0]
    grid = jnp.pad(centres.astype(jnp.float32), ((0, -s % CENTRES), (0, 0))).reshape(-1, CENTRES, 3)
    return jax.lax.map(one_chunk, grid).reshape(-1, num_samples)[:s]
