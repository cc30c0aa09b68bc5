"""Farthest point sampling as one Pallas kernel for NVIDIA GPUs (Triton)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

CHUNK = 2048  # points held together; Triton wants a power of two
WARPS = 16
MAX_POINTS = (
    16 * 1024
)  # coordinates and distances of one cloud fill the 256 KB of a multiprocessor's registers


def fps_gpu(
    xyz: Float[Array, "B N 3"], num_samples: int, start: Int[Array, B], interpret: bool = False
) -> Int[Array, "B S"]:
    """Indices (B, S) int32, equal to `fps.farthest_points` of each cloud; N at most MAX_POINTS.

    One program samples one cloud from the first point to the last, so nothing is launched in the loop.
    Coordinates and distances stay in registers; only the three coordinates of the chosen point are
    read again, and its index is written, in each iteration.

    Args:
      xyz: float32. num_samples: S. start: int32, the first index of each cloud.
      interpret: run on any platform by Pallas' interpreter, for tests.
    """
    b, n = xyz.shape[:2]
    rows = jnp.pad(xyz.transpose(0, 2, 1), ((0, 0), (0, 0), (0, -n % CHUNK)))
    return pl.pallas_call(
        functools.partial(_kernel, points=n, num_samples=num_samples),
        jax.ShapeDtypeStruct((b, num_samples), jnp.int32),
        grid=(b,),
        in_specs=[
            pl.BlockSpec((None,), lambda i: (i,)),
            pl.BlockSpec((None, *rows.shape[1:]), lambda i: (i, 0, 0)),
        ],
        out_specs=pl.BlockSpec((None, num_samples), lambda i: (i, 0)),
        compiler_params=plgpu.CompilerParams(num_warps=WARPS, num_stages=1),
        interpret=interpret,
        name="fps_gpu",
    )(start.astype(jnp.int32), rows)


def _kernel(start_ref, xyz_ref, chosen_ref, *, points: int, num_samples: int):
    """start (), xyz (3, size), chosen (S,)."""
    chunks = range(0, xyz_ref.shape[1], CHUNK)
    index = jnp.arange(CHUNK, dtype=jnp.int32)
    xyz = [[xyz_ref[axis, pl.ds(c, CHUNK)] for axis in range(3)] for c in chunks]
    # A padded point has distance -1 for ever and is never the farthest.
    nearest = tuple(jnp.where(index + c < points, jnp.inf, -1.0).astype(jnp.float32) for c in chunks)
    start = start_ref[...]
    chosen_ref[0] = start

    def step(i, carry):
        last, nearest = carry
        point = [xyz_ref[axis, last] for axis in range(3)]
        new, best, at = [], jnp.full((CHUNK,), -2.0, jnp.float32), index
        for c, own, old in zip(chunks, xyz, nearest, strict=True):
            distance = sum((a - p) ** 2 for a, p in zip(own, point, strict=True))
            new.append(jnp.minimum(old, distance))
            farther = new[-1] > best  # strictly: the first index wins ties
            best, at = jnp.where(farther, new[-1], best), jnp.where(farther, index + c, at)
        last = jnp.min(jnp.where(best == jnp.max(best), at, points - 1))
        chosen_ref[i] = last
        return last, tuple(new)

    jax.lax.fori_loop(1, num_samples, step, (start, nearest))
