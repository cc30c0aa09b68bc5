"""Farthest point sampling in plain JAX: the form for CPUs and the reference of the kernels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

BLOCK = 128  # points per block of the two-level arg-max


def farthest_points(xyz: Float[Array, "N 3"], num_samples: int, start: Int[Array, ""] | int) -> Int[Array, S]:
    """Indices (S,) int32 of `farthest_point_sampling` of one cloud, as an XLA loop for any platform.

    The points lie as separate rows of x, y and z in blocks of 128, and the arg-max is taken over the
    maxima of blocks first: on a CPU this is several times faster than a plain loop over (N, 3).

    Args:
      xyz: float32. num_samples: S, at most N. start: the first index.
    """
    n = xyz.shape[0]
    pad = -n % BLOCK
    rows = jnp.pad(xyz.T, ((0, 0), (0, pad)))
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
