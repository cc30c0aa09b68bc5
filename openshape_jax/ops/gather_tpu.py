"""Picking points by index as one Pallas kernel for TPUs (Mosaic)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

LANES, SUBLANES = 128, 8
ROWS = 64  # most rows of 128 indices that one program looks up
MAX_POINTS = 16 * 1024  # the work grows with the points of a cloud, whatever the number of indices


def gather_tpu(
    table: Float[Array, "B N F"], index: Int[Array, "B M"], interpret: bool = False
) -> Float[Array, "B M F"]:
    """table[b, index[b]] float32, equal to plain indexing; each index below N, N at most MAX_POINTS.

    A TPU has no gather but that inside a register of 128 lanes. So every register of the table is asked for
    the wanted lane, and the answer of the one that has the index is kept: the whole table stays in VMEM.

    Args:
      interpret: run on any platform by Pallas' interpreter, for tests.
    """
    b, n, features = table.shape
    count = index.shape[1]
    size = n + -n % LANES
    # (F, B, 1, size)
    columns = jnp.pad(table.transpose(2, 0, 1), ((0, 0), (0, 0), (0, size - n)))[:, :, None]
    rows = min(ROWS, -(-count // (SUBLANES * LANES)) * SUBLANES)
    padded = jnp.pad(index.astype(jnp.int32), ((0, 0), (0, -count % (rows * LANES))))
    grid = padded.reshape(b, -1, LANES)
    out = pl.pallas_call(
        _kernel,
        jax.ShapeDtypeStruct((features, *grid.shape), jnp.float32),
        grid=(b, grid.shape[1] // rows),
        in_specs=[
            pl.BlockSpec((features, 1, 1, size), lambda i, j: (0, i, 0, 0)),
            pl.BlockSpec((1, rows, LANES), lambda i, j: (i, j, 0)),
        ],
        out_specs=pl.BlockSpec((features, 1, rows, LANES), lambda i, j: (0, i, j, 0)),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        interpret=interpret,
        name="gather_tpu",
    )(columns, grid)
    return out.reshape(features, b, -1)[:, :, :count].transpose(1, 2, 0)


def _kernel(table_ref, index_ref, out_ref):
    """table (F, 1, 1, N), index (1, rows, 128), out (F, 1, rows, 128)."""
    features, _, _, size = table_ref.shape

    def look_up(group, _):
        rows = pl.ds(pl.multiple_of(group * SUBLANES, SUBLANES), SUBLANES)
        index = index_ref[0, rows, :]
        tile_of, at = index >> 7, index & (LANES - 1)  # division lowers only where a TPU is
        found = [jnp.zeros(index.shape, jnp.float32)] * features
        for tile in range(size // LANES):
            here = tile_of == tile
            for f in range(features):
                row = table_ref[f, 0, :, tile * LANES : (tile + 1) * LANES]
                values = jnp.broadcast_to(row, index.shape)
                picked = jnp.take_along_axis(values, at, axis=1, mode="promise_in_bounds")
                found[f] = jnp.where(here, picked, found[f])
        for f in range(features):
            out_ref[f, 0, rows, :] = found[f]

    jax.lax.fori_loop(0, index_ref.shape[1] // SUBLANES, look_up, None)
