"""Ball query in plain JAX: the form for CPUs and the reference of the kernels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from openshape_jax.ops.bits import WORD, nth_set_bit

CENTRES = 16  # centres handled together: bounds the hit mask at CENTRES x N


def first_in_ball(
    xyz: Float[Array, "N 3"], centres: Float[Array, "S 3"], radius: float, num_samples: int
) -> Int[Array, "S K"]:
    """Indices (S, K) int32 of `ball_query` of one cloud, in plain XLA for any platform.

    Hits are packed into 32-bit words; the k-th hit is found by a cumulative count over words and a
    binary search inside one word, so nothing is ever sorted.

    Args:
      xyz, centres: float32. radius: in their unit. num_samples: K.
    """
    n = xyz.shape[0]
    pad = -n % WORD
    rows = jnp.pad(xyz.T, ((0, 0), (0, pad)))
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
        bit = nth_set_bit(jnp.take_along_axis(words, word, 1), rank[None] - before)
        index = word * WORD + bit
        found = rank[None] < upto[:, -1:]
        first = jnp.where(upto[:, -1:] > 0, index[:, :1], 0)
        return jnp.where(found, index, first).astype(jnp.int32)

    s = centres.shape[0]
    grid = jnp.pad(centres, ((0, -s % CENTRES), (0, 0))).reshape(-1, CENTRES, 3)
    return jax.lax.map(one_chunk, grid).reshape(-1, num_samples)[:s]
