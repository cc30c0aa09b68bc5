"""Farthest point sampling as one Pallas kernel for TPUs (Mosaic)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

CLOUDS = 8  # clouds of one program: the sublanes of a vector register
CHUNK = 512  # points looked at together: 4 registers for each running value
UNROLLED = 32  # up to so many chunks the scan over a cloud is unrolled entirely
MAX_POINTS = 48 * 1024  # coordinates (double buffered) and distances of 8 clouds in 11 MB of VMEM


def fps_tpu(
    xyz: Float[Array, "B N 3"], num_samples: int, start: Int[Array, B], interpret: bool = False
) -> Int[Array, "B S"]:
    """Indices (B, S) int32, equal to `fps.farthest_points` of each cloud; N at most MAX_POINTS.

    Eight clouds at a time stay in VMEM for the whole loop. Nothing is gathered: a scan over the cloud
    updates the distances and keeps, for each lane, the farthest point so far with its coordinates (a
    later one must be strictly farther, so the first index wins ties); the lanes are then reduced.

    Args:
      xyz: float32. num_samples: S. start: int32, the first index of each cloud.
      interpret: run on any platform by Pallas' interpreter, for tests.
    """
    b, n = xyz.shape[:2]
    more_clouds, more_points = -b % CLOUDS, -n % CHUNK
    rows = jnp.pad(xyz.transpose(2, 0, 1), ((0, 0), (0, more_clouds), (0, more_points)))
    starts = jnp.pad(start.astype(jnp.int32), (0, more_clouds))[:, None]
    slots = num_samples + -num_samples % 128
    size = n + more_points
    chosen = pl.pallas_call(
        functools.partial(_kernel, points=n, num_samples=num_samples),
        jax.ShapeDtypeStruct((b + more_clouds, slots), jnp.int32),
        grid=((b + more_clouds) // CLOUDS,),
        in_specs=[
            pl.BlockSpec((CLOUDS, 1), lambda i: (i, 0)),
            pl.BlockSpec((3, CLOUDS, size), lambda i: (0, i, 0)),
        ],
        out_specs=pl.BlockSpec((CLOUDS, slots), lambda i: (i, 0)),
        scratch_shapes=[pltpu.VMEM((CLOUDS, size), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
        interpret=interpret,
        name="fps_tpu",
    )(starts, rows)
    return chosen[:b, :num_samples]


def _kernel(start_ref, xyz_ref, chosen_ref, nearest_ref, *, points: int, num_samples: int):
    """start (8, 1), xyz (3, 8, size), chosen (8, slots), nearest (8, size) scratch."""
    size = xyz_ref.shape[2]
    chunks = size // CHUNK
    unroll = chunks if chunks <= UNROLLED else 4
    lane = jax.lax.broadcasted_iota(jnp.int32, (CLOUDS, CHUNK), 1)
    slot = jax.lax.broadcasted_iota(jnp.int32, chosen_ref.shape, 1)
    zero = jnp.zeros((CLOUDS, CHUNK), jnp.float32)
    start = start_ref[...]

    def read(c):
        at = pl.ds(pl.multiple_of(c * CHUNK, CHUNK), CHUNK)
        return at, [xyz_ref[axis, :, at] for axis in range(3)]

    def first(c, sums):
        at, xyz = read(c)
        index = lane + c * CHUNK
        # A padded point has distance -1 for ever and is never the farthest.
        nearest_ref[:, at] = jnp.where(index < points, jnp.inf, -1.0).astype(jnp.float32)
        return tuple(s + jnp.where(index == start, a, 0.0) for s, a in zip(sums, xyz, strict=True))

    sums = jax.lax.fori_loop(0, chunks, first, (zero, zero, zero))
    chosen_ref[...] = jnp.where(slot == 0, start, 0)

    def scan(c, carry, last):
        best, chunk, *best_xyz = carry
        at, xyz = read(c)
        distance = sum((a - p) ** 2 for a, p in zip(xyz, last, strict=True))
        distance = jnp.minimum(nearest_ref[:, at], distance)
        nearest_ref[:, at] = distance
        farther = distance > best
        kept = [jnp.where(farther, a, b) for a, b in zip(xyz, best_xyz, strict=True)]
        return jnp.where(farther, distance, best), jnp.where(farther, c, chunk), *kept

    def step(i, last):
        carry = (zero - 2.0, jnp.zeros((CLOUDS, CHUNK), jnp.int32), zero, zero, zero)
        body = functools.partial(scan, last=last)
        best, chunk, *best_xyz = jax.lax.fori_loop(0, chunks, body, carry, unroll=unroll)
        index = chunk * CHUNK + lane
        farthest = best.max(1, keepdims=True)
        winner = jnp.where(best == farthest, index, size - 1).min(1, keepdims=True)
        chosen_ref[...] = jnp.where(slot == i, winner, chosen_ref[...])
        return tuple(jnp.where(index == winner, a, 0.0).sum(1, keepdims=True) for a in best_xyz)

    jax.lax.fori_loop(1, num_samples, step, tuple(s.sum(1, keepdims=True) for s in sums))
