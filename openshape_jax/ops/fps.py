"""Farthest point sampling."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

BLOCK = 128  # points per block of the two-level arg-max


def farthest_point_sampling(
    xyz: Float[Array, "N 3"], num_samples: int, start: int | Int[Array, ""] = 0
) -> Int[Array, S]:
    """Indices (S,) int32 of points, each the farthest from all those chosen before it.

    The first index wins ties, which is DGL's rule; the first chosen point is `start` (DGL draws it at
    random, here it is 0 unless asked, so that embeddings are reproducible). Where fewer than
    `num_samples` points are distinct, the rest repeats index 0.

    The points lie as separate rows of x, y and z in blocks of 128, and the arg-max is taken over the
    maxima of blocks first: on a CPU this is several times faster than a plain loop over (N, 3).

    Args:
      xyz: (N, 3) coordinates, any unit; computed in float32 whatever the input type.
      num_samples: number S of indices.
      start: index of the first point.

    Raises:
      ValueError: xyz is not (N, 3), or has fewer than `num_samples` points.
    """
    if xyz.ndim != 2 or xyz.shape[1] != 3:
        raise ValueError(f"xyz has shape {xyz.shape}; expected (N, 3). Use jax.vmap for a batch.")
    n = xyz.shape[0]
    if n < num_samples:
        raise ValueError(f"xyz has {n} points; cannot sample {num_samples}: give at least that many.")
    pad = -n % BLOCK
    rows = jnp.pad(xyz.astype(jnp.float32).T, ((0, 0), (0, pad)))
    x, y, z = rows.reshape(3, -1, BLOCK)
    # A padded point has distance -1 for ever and is never the farthest.
    nearest = jnp.where(jnp.arange(n + pad) < n, jnp.inf, -1.0).reshape(-1, BLOCK).astype(jnp.float32)

    def step(i, carry):
        nearest, chosen = carry
        last = chosen[i - 1]
        px, py, pz = rows[0, last], rows[1, last], rows[2, last]
        nearest = jnp.minimum(nearest, (x - px) ** 2 + (y - py) ** 2 + (z - pz) ** 2)
        block = jnp.argmax(nearest.max(1))
        index = block * BLOCK + jnp.argmax(nearest[block])
        return nearest, chosen.at[i].set(index.astype(jnp.int32))

    chosen = jnp.zeros(num_samples, jnp.int32).at[0].set(start)
    return jax.lax.fori_loop(1, num_samples, step, (nearest, chosen))[1]
