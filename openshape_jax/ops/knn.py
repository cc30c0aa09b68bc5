"""Exact nearest neighbours by cosine: blocks of a matrix product with a running list of the best.

A block of the database is multiplied with all queries at once, and its similarities are never sorted as a
whole: they are reduced to the maxima of groups of GROUP neighbours in index order, the few best groups of
each query are taken out, and only their members compete with the list. That is exact, ties included:
an entry of the k best, ordered by (value, index), lies in one of the k best groups, ordered by (maximum,
index), as each better group holds at least one better entry.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

GROUP = 32  # entries of a group: about the square root of a block, so that both stages cost the same
FEW = 8  # groups taken out of a block where no query has more that could enter its list
BLOCK = 8192  # rows of the database multiplied at once
PRECISIONS = ("float32", "bfloat16")


def padded_size(count: int, block: int = BLOCK) -> int:
    """The rows P of the array that `nearest` wants of a database with `count` rows."""
    unit = GROUP if count <= block else block
    return -(-count // unit) * unit


def nearest(
    queries: Float[Array, "Q D"],
    own: Int[Array, Q],
    database: Float[Array, "P D"],
    count: int,
    k: int,
    block: int = BLOCK,
    precision: str = "float32",
) -> tuple[Int[Array, "Q K"], Float[Array, "Q K"]]:
    """(indices (Q, k) int32, inner products (Q, k) float32) of the k nearest rows, the best first.

    Ties go to the lower index. Jit it with the last four arguments static. Memory beyond the arguments:
    about Q x block float32.

    Args:
      queries: unit vectors. own: (Q,) index of each query's own row, which is no neighbour; -1 for none.
      database: unit vectors, padded to `padded_size(count, block)` rows with anything finite.
      count: number N of real rows.
      precision: "float32", or "bfloat16" for operands rounded to that (accelerators: several times faster,
        similarities good to two digits).

    Raises:
      ValueError: k is not from 1 to N - 1; rows are not padded; widths differ; a wrong block or precision.
    """
    total = database.shape[0]
    if not 0 < k < count:
        raise ValueError(f"k is {k} but there are {count} rows: choose k from 1 to {count - 1}.")
    if block % GROUP:
        raise ValueError(f"block is {block}; it must be a multiple of {GROUP}.")
    if total != padded_size(count, block):
        raise ValueError(
            f"the database has {total} rows; pad it to {padded_size(count, block)} (knn.padded_size)."
        )
    if queries.shape[1] != database.shape[1]:
        raise ValueError(f"queries {queries.shape} and database {database.shape} must have the same width.")
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}.")
    width = min(block, total)

    def one_block(b: Array, best: tuple[Array, Array]) -> tuple[Array, Array]:
        first = b * width
        rows = jax.lax.dynamic_slice_in_dim(database, first, width)
        column = first + jnp.arange(width, dtype=jnp.int32)
        sims = _product(queries, rows, precision)
        sims = jnp.where(sims == 0, 0.0, sims)  # top_k holds -0 for less than 0
        sims = jnp.where((column < count) & (column != own[:, None]), sims, -jnp.inf)
        grouped = sims.reshape(len(queries), -1, GROUP)
        top = grouped.max(-1)
        # Equal is not enough: what is in the list has a lower index.
        entering = (top > best[0][:, -1:]).sum(-1).max()
        sizes = [min(size, top.shape[1]) for size in (FEW, k)]
        ways = [lambda best: best, *(lambda best, n=n: _merge(best, grouped, top, first, n) for n in sizes)]
        return jax.lax.switch((entering > 0).astype(jnp.int32) + (entering > FEW), ways, best)

    start = jnp.full((len(queries), k), -jnp.inf), jnp.zeros((len(queries), k), jnp.int32)
    values, index = jax.lax.fori_loop(0, total // width, one_block, start)
    return index, values


def _product(a: Float[Array, "Q D"], b: Float[Array, "W D"], precision: str) -> Float[Array, "Q W"]:
    if precision == "bfloat16":
        a, b = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
        return jnp.matmul(a, b.T, preferred_element_type=jnp.float32)
    return jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)


def _merge(
    best: tuple[Array, Array], grouped: Float[Array, "Q G M"], top: Float[Array, "Q G"], first: Array, n: int
) -> tuple[Array, Array]:
    """The list (values, index), each (Q, k), merged with the members of the n best groups of each query."""
    values, index = best
    chosen = jnp.sort(jax.lax.top_k(top, n)[1], -1)[..., None]  # in index order, for the ties
    members = jnp.take_along_axis(grouped, chosen, 1).reshape(len(top), -1)
    number = (first + chosen * GROUP + jnp.arange(GROUP, dtype=jnp.int32)).reshape(len(top), -1)
    # top_k prefers the earlier place: the list before the block, the block by index.
    values, place = jax.lax.top_k(jnp.concatenate([values, members], 1), values.shape[1])
    return values, jnp.take_along_axis(jnp.concatenate([index, number], 1), place, 1)
