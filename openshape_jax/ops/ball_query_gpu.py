"""Ball query as one Pallas kernel for NVIDIA GPUs (Triton)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

LANES = 32  # centres that go together, one a thread: more would be handed from thread to thread for a store
GROUPS = 2  # of them in a program, which share what it reads
CENTRES = GROUPS * LANES
CHUNK = 16  # points read together
MAX_POINTS = 1 << 24  # any cloud: points are read as they are needed


def ball_query_gpu(
    xyz: Float[Array, "B N 3"],
    centres: Float[Array, "B S 3"],
    radius: float,
    num_samples: int,
    interpret: bool = False,
) -> Int[Array, "B S K"]:
    """Indices (B, S, K) int32, equal to `ball_query.first_in_ball` of each cloud.

    One program scans the points in index order for 64 centres, two for each thread: a hit is stored at the
    place that the count of its centre's hits says, and the scan ends when every centre has K.

    Args:
      xyz, centres: float32. radius: in their unit. num_samples: K.
      interpret: run on any platform by Pallas' interpreter, for tests.
    """
    b, n = xyz.shape[:2]
    s = centres.shape[1]
    # A padded point is infinitely far from every centre.
    rows = jnp.pad(xyz.transpose(0, 2, 1), ((0, 0), (0, 0), (0, -n % CHUNK)), constant_values=jnp.inf)
    # Padding asks what the last centre asks, and does not keep the scan going.
    centres = jnp.pad(centres.transpose(0, 2, 1), ((0, 0), (0, 0), (0, -s % CENTRES)), mode="edge")
    found = pl.pallas_call(
        functools.partial(_kernel, limit=radius**2, k=num_samples),
        jax.ShapeDtypeStruct((b, centres.shape[2] * (num_samples + 1)), jnp.int32),
        grid=(b, centres.shape[2] // CENTRES),
        in_specs=[
            pl.BlockSpec((None, *rows.shape[1:]), lambda i, j: (i, 0, 0)),
            pl.BlockSpec((None, 3, CENTRES), lambda i, j: (i, 0, j)),
        ],
        out_specs=pl.BlockSpec((None, CENTRES * (num_samples + 1)), lambda i, j: (i, j)),
        compiler_params=plgpu.CompilerParams(num_warps=LANES // 32, num_stages=1),
        interpret=interpret,
        name="ball_query_gpu",
    )(rows, centres)
    return found.reshape(b, -1, num_samples + 1)[:, :s, :num_samples]


def _kernel(xyz_ref, centre_ref, found_ref, *, limit: float, k: int):
    """xyz (3, size), centre (3, CENTRES), found (CENTRES (K + 1),).

    The interpreter writes the place of a masked-off lane back unchanged: the column after the last is for
    centres that have K hits.
    """
    size, firsts = xyz_ref.shape[1], range(0, CENTRES, LANES)
    centres = [[centre_ref[axis, pl.ds(at, LANES)] for axis in range(3)] for at in firsts]
    # Places are counted through all of found: an index of a row and one of a column cost more to add.
    begin = tuple((at + jnp.arange(LANES)) * (k + 1) for at in firsts)

    def unfinished(carry):
        offset, places = carry
        left = functools.reduce(jnp.minimum, (at - b for at, b in zip(places, begin, strict=True)))
        return (offset < size) & (jnp.min(left) < k)

    def scan(carry):
        offset, places = carry
        # All are read before anything is stored: the compiler cannot know that they lie elsewhere.
        points = [[xyz_ref[axis, offset + i] for axis in range(3)] for i in range(CHUNK)]
        for i, point in enumerate(points):
            places = tuple(map(functools.partial(look, offset + i, point), begin, centres, places))
        return offset + CHUNK, places

    def look(index, point, begin, centre, place):
        """The places of the next hits after this point."""
        x, y, z = ((p - c) ** 2 for p, c in zip(point, centre, strict=True))
        hit = (x + y + z <= limit) & (place < begin + k)
        plgpu.store(found_ref.at[place], jnp.broadcast_to(index, place.shape), mask=hit)
        return place + hit.astype(jnp.int32)

    _, places = jax.lax.while_loop(unfinished, scan, (jnp.int32(0), begin))
    for start, end in zip(begin, places, strict=True):
        first = jnp.where(end > start, plgpu.load(found_ref.at[start]), 0)

        def fill(column, _, start=start, end=end, first=first):
            plgpu.store(found_ref.at[start + column], first, mask=start + column >= end)

        jax.lax.fori_loop(0, k, fill, None)
