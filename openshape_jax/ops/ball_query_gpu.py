"""Ball query as one Pallas kernel for NVIDIA GPUs (Triton)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

CENTRES = 4  # centres of one program
CHUNK = 512  # points looked at together
WARPS = 4
MAX_POINTS = 1 << 24  # any cloud: points are read as they are needed


def ball_query_gpu(
    xyz: Float[Array, "B N 3"],
    centres: Float[Array, "B S 3"],
    radius: float,
    num_samples: int,
    interpret: bool = False,
) -> Int[Array, "B S K"]:
    """Indices (B, S, K) int32, equal to `ball_query.first_in_ball` of each cloud.

    One program scans the points in index order for 4 centres: a cumulative count gives each hit its
    place, where it is stored if that is below K, and the scan ends when every centre has K hits.

    Args:
      xyz, centres: float32. radius: in their unit. num_samples: K.
      interpret: run on any platform by Pallas' interpreter, for tests.
    """
    b, n = xyz.shape[:2]
    s = centres.shape[1]
    # A padded point is infinitely far from every centre.
    rows = jnp.pad(xyz.transpose(0, 2, 1), ((0, 0), (0, 0), (0, -n % CHUNK)), constant_values=jnp.inf)
    centres = jnp.pad(centres.transpose(0, 2, 1), ((0, 0), (0, 0), (0, -s % CENTRES)))
    found = pl.pallas_call(
        functools.partial(_kernel, limit=radius**2),
        jax.ShapeDtypeStruct((b, centres.shape[2], num_samples + 1), jnp.int32),
        grid=(b, centres.shape[2] // CENTRES),
        in_specs=[
            pl.BlockSpec((None, *rows.shape[1:]), lambda i, j: (i, 0, 0)),
            pl.BlockSpec((None, 3, CENTRES), lambda i, j: (i, 0, j)),
        ],
        out_specs=pl.BlockSpec((None, CENTRES, num_samples + 1), lambda i, j: (i, j, 0)),
        compiler_params=plgpu.CompilerParams(num_warps=WARPS, num_stages=1),
        interpret=interpret,
        name="ball_query_gpu",
    )(rows, centres)
    return found[:, :s, :num_samples]


def _kernel(xyz_ref, centre_ref, found_ref, *, limit: float):
    """xyz (3, size), centre (3, 4), found (4, K + 1).

    Masked-off lanes are sent to the last column: the interpreter writes their place back unchanged,
    which must not hit a place that another lane stores to.
    """
    size, k = xyz_ref.shape[1], found_ref.shape[1] - 1
    centre = [centre_ref[axis, :] for axis in range(3)]
    row = jnp.broadcast_to(jnp.arange(CENTRES)[:, None], (CENTRES, CHUNK))
    column = jnp.arange(CHUNK, dtype=jnp.int32)

    def unfinished(carry):
        offset, count, _ = carry
        return (offset < size) & (jnp.min(count) < k)

    def scan(carry):
        offset, count, first = carry
        points = [xyz_ref[axis, pl.ds(offset, CHUNK)] for axis in range(3)]
        d2 = sum((p[None, :] - c[:, None]) ** 2 for p, c in zip(points, centre, strict=True))
        hit = jnp.less_equal(d2, limit)
        index = jnp.broadcast_to((offset + column)[None, :], hit.shape)
        upto = jnp.cumsum(hit.astype(jnp.int32), axis=1)
        place = count[:, None] + upto - 1
        stored = hit & (place < k)
        plgpu.store(found_ref.at[row, jnp.where(stored, place, k)], index, mask=stored)
        first = jnp.minimum(first, jnp.min(jnp.where(hit, index, size), axis=1))
        return offset + CHUNK, count + jnp.sum(hit.astype(jnp.int32), axis=1), first

    begin = jnp.zeros((CENTRES,), jnp.int32)
    _, count, first = jax.lax.while_loop(unfinished, scan, (jnp.int32(0), begin, begin + size))
    first = jnp.broadcast_to(jnp.where(count > 0, first, 0)[:, None], (CENTRES, CHUNK))
    for c in range(0, k, CHUNK):
        place = jnp.broadcast_to(c + column[None, :], (CENTRES, CHUNK))
        rest = (place >= count[:, None]) & (place < k)
        plgpu.store(found_ref.at[row, jnp.where(rest, place, k)], first, mask=rest)
