"""Ball query as one Pallas kernel for TPUs (Mosaic)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from openshape_jax.ops.bits import WORD, nth_set_bit

LANES, SUBLANES = 128, 8
CENTRES = 64  # centres of one program
MAX_POINTS = 128 * 1024  # keeps the coordinates of a cloud (double buffered) within 4 MB of VMEM


def ball_query_tpu(
    xyz: Float[Array, "B N 3"],
    centres: Float[Array, "B S 3"],
    radius: float,
    num_samples: int,
    interpret: bool = False,
) -> Int[Array, "B S K"]:
    """Indices (B, S, K) int32, equal to `ball_query.first_in_ball` of each cloud; N at most MAX_POINTS.

    The points are laid out 32 x W, so that bit j of word w is the hit of point 32 w + j and a word is
    packed without moving anything between lanes. Counts are accumulated over the words by a product
    with a triangular matrix of ones (exact: whole numbers below 2^24); the word of the k-th hit is then
    found by a binary search whose probes are gathers inside one register of 128 lanes, and the bit
    inside the word by halving. Nothing leaves VMEM but the result.

    Args:
      xyz, centres: float32. radius: in their unit. num_samples: K.
      interpret: run on any platform by Pallas' interpreter, for tests.
    """
    b, n = xyz.shape[:2]
    s = centres.shape[1]
    words = -(-n // (WORD * LANES)) * LANES
    # A padded point is infinitely far from every centre.
    rows = jnp.pad(xyz, ((0, 0), (0, words * WORD - n), (0, 0)), constant_values=jnp.inf)
    rows = rows.reshape(b, words, WORD, 3).transpose(0, 3, 2, 1)  # (B, 3, 32, W)
    centres = jnp.pad(centres, ((0, 0), (0, -s % CENTRES), (0, 0)))
    slots = num_samples + -num_samples % LANES
    ones = jnp.triu(jnp.ones((LANES, LANES), jnp.bfloat16))
    found = pl.pallas_call(
        functools.partial(_kernel, limit=radius**2, unroll=not interpret),
        jax.ShapeDtypeStruct((b, centres.shape[1], slots), jnp.int32),
        grid=(b, centres.shape[1] // CENTRES),
        in_specs=[
            pl.BlockSpec((1, 3, WORD, words), lambda i, j: (i, 0, 0, 0)),
            pl.BlockSpec((1, CENTRES, 3), lambda i, j: (i, j, 0)),
            pl.BlockSpec((LANES, LANES), lambda i, j: (0, 0)),
        ],
        out_specs=pl.BlockSpec((1, CENTRES, slots), lambda i, j: (i, j, 0)),
        scratch_shapes=[pltpu.VMEM((CENTRES, words), jnp.int32)] * 2,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        interpret=interpret,
        name="ball_query_tpu",
    )(rows, centres, ones)
    return found[:, :s, :num_samples]


def _kernel(xyz_ref, centre_ref, ones_ref, found_ref, word_ref, upto_ref, *, limit: float, unroll: bool):
    """xyz (1, 3, 32, W), centre (1, 64, 3), ones (128, 128), found (1, 64, slots); scratch (64, W)."""
    words = word_ref.shape[1]
    tiles = [pl.ds(t, LANES) for t in range(0, words, LANES)]

    def pack(group, _):
        rows = pl.ds(pl.multiple_of(group * SUBLANES, SUBLANES), SUBLANES)
        centre = [centre_ref[0, rows, axis : axis + 1] for axis in range(3)]
        none = jnp.zeros((SUBLANES, LANES), jnp.int32)
        for tile in tiles:

            def add_bit(bit, word, tile=tile):
                d2 = sum((xyz_ref[0, a, pl.ds(bit, 1), tile] - centre[a]) ** 2 for a in range(3))
                return word | jnp.where(d2 <= limit, jnp.left_shift(jnp.int32(1), bit), 0)

            word_ref[rows, tile] = jax.lax.fori_loop(0, WORD, add_bit, none, unroll=unroll)

    jax.lax.fori_loop(0, CENTRES // SUBLANES, pack, None)

    total = jnp.zeros((CENTRES, 1), jnp.float32)
    for tile in tiles:
        count = jax.lax.population_count(word_ref[:, tile]).astype(jnp.bfloat16)
        upto = total + jnp.dot(count, ones_ref[...], preferred_element_type=jnp.float32)
        upto_ref[:, tile] = upto.astype(jnp.int32)
        total = upto[:, -1:]

    def search(group, _):
        rows = pl.ds(pl.multiple_of(group * SUBLANES, SUBLANES), SUBLANES)
        lane = jax.lax.broadcasted_iota(jnp.int32, (SUBLANES, LANES), 1)
        upto = [upto_ref[rows, tile] for tile in tiles]
        word = [word_ref[rows, tile] for tile in tiles]
        total = upto[-1][:, -1:]
        first = None
        for slot in range(0, found_ref.shape[2], LANES):
            rank = lane + slot
            tile_of = sum((u[:, -1:] <= rank).astype(jnp.int32) for u in upto[:-1]) + jnp.zeros_like(rank)
            at = jnp.zeros_like(rank)
            for step in (64, 32, 16, 8, 4, 2, 1):
                at = jnp.where(_pick(upto, tile_of, at + (step - 1)) <= rank, at + step, at)
            bits = _pick(word, tile_of, at)
            before = _pick(upto, tile_of, at) - jax.lax.population_count(bits)
            index = (tile_of * LANES + at) * WORD + nth_set_bit(bits, rank - before)
            first = jnp.where(total > 0, index[:, :1], 0) if first is None else first
            found_ref[0, rows, pl.ds(slot, LANES)] = jnp.where(rank < total, index, first)

    jax.lax.fori_loop(0, CENTRES // SUBLANES, search, None)


def _pick(tiles: list[Array], tile_of: Array, at: Array) -> Array:
    """tiles[tile_of][row, at] (8, 128), where every tile is (8, 128)."""
    out = jnp.take_along_axis(tiles[0], at, axis=1, mode="promise_in_bounds")
    for t, tile in enumerate(tiles[1:], 1):
        out = jnp.where(tile_of == t, jnp.take_along_axis(tile, at, axis=1, mode="promise_in_bounds"), out)
    return out
