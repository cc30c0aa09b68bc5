"""XLA forms of the geometry operations that the TPU kernels are compared with; one cloud each."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from openshape_jax.ops.bits import WORD, nth_set_bit


def fps_onehot(xyz: Float[Array, "N 3"], num_samples: int, start: Int[Array, ""]) -> Int[Array, S]:
    """Farthest point sampling whose loop gathers nothing: the chosen point is summed out by a mask."""
    index = jnp.arange(len(xyz), dtype=jnp.int32)
    slot = jnp.arange(num_samples, dtype=jnp.int32)

    def step(i, carry):
        nearest, last, chosen = carry
        point = jnp.where(index[:, None] == last, xyz, 0.0).sum(0)
        nearest = jnp.minimum(nearest, sum((xyz[:, a] - point[a]) ** 2 for a in range(3)))
        last = jnp.where(nearest == nearest.max(), index, len(xyz) - 1).min()
        return nearest, last, jnp.where(slot == i, last, chosen)

    carry = jnp.full(len(xyz), jnp.inf), start, jnp.where(slot == 0, start, 0)
    return jax.lax.fori_loop(1, num_samples, step, carry)[2]


def ball_query_count(
    xyz: Float[Array, "N 3"], centres: Float[Array, "S 3"], radius: float, num_samples: int
) -> Int[Array, "S K"]:
    """Ball query by comparing every point's cumulative count with every rank: (S, K, N) comparisons."""
    d2 = sum((xyz[None, :, a] - centres[:, a, None]) ** 2 for a in range(3))
    upto = jnp.cumsum((d2 <= radius**2).astype(jnp.int32), axis=1)
    rank = jnp.arange(num_samples, dtype=jnp.int32)
    return _padded((upto[:, None] <= rank[:, None]).sum(-1, dtype=jnp.int32), rank, upto[:, -1:])


def ball_query_onehot(
    xyz: Float[Array, "N 3"], centres: Float[Array, "S 3"], radius: float, num_samples: int
) -> Int[Array, "S K"]:
    """Ball query on words of 32 hits: counts by a triangular product, words picked by one-hot masks."""
    padded = jnp.pad(xyz, ((0, -len(xyz) % WORD), (0, 0)), constant_values=jnp.inf)
    rows = padded.reshape(-1, WORD, 3).transpose(2, 1, 0)  # (3, 32, W)
    d2 = sum((rows[a] - centres[:, a, None, None]) ** 2 for a in range(3))
    bits = jnp.left_shift(jnp.uint32(1), jnp.arange(WORD, dtype=jnp.uint32))
    words = jnp.where(d2 <= radius**2, bits[:, None], 0).sum(1, dtype=jnp.uint32)  # (S, W)
    w = words.shape[1]
    count = jax.lax.population_count(words).astype(jnp.bfloat16)  # exact: at most 32
    upto = jnp.dot(count, jnp.triu(jnp.ones((w, w), jnp.bfloat16)), preferred_element_type=jnp.float32)
    upto = upto.astype(jnp.int32)
    rank = jnp.arange(num_samples, dtype=jnp.int32)
    passed = upto[:, None] <= rank[:, None]  # (S, K, W)
    word = passed.sum(-1, dtype=jnp.int32)
    before = jnp.where(passed, upto[:, None], 0).max(-1)
    onehot = jnp.arange(w, dtype=jnp.int32) == word[..., None]
    picked = jnp.where(onehot, words[:, None], 0).sum(-1, dtype=jnp.uint32)
    return _padded(word * WORD + nth_set_bit(picked, rank - before), rank, upto[:, -1:])


def _padded(index: Array, rank: Array, total: Array) -> Array:
    """index (S, K) where rank < total, else the first of the row, or 0 where there is none."""
    return jnp.where(rank < total, index, jnp.where(total > 0, index[:, :1], 0))
