"""Nearest neighbours against a NumPy sort: duplicates, ties, padding, orders that defeat shortcuts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from openshape_jax import sharding
from openshape_jax.ops import knn

nearest = jax.jit(knn.nearest, static_argnames=("count", "k", "block", "precision"))


def oracle(queries, own, rows, k):
    """Indices by (inner product downwards, index); exact for small whole numbers."""
    sims = queries.astype(np.float64) @ rows.T.astype(np.float64)
    for query, index in enumerate(own):
        if index >= 0:
            sims[query, index] = -np.inf
    order = np.argsort(-sims, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(sims, order, 1)


def padded(rows, block=knn.BLOCK, fill=1e3):
    """With rows behind the last that would win if they counted."""
    extra = knn.padded_size(len(rows), block) - len(rows)
    return np.concatenate([rows, np.full((extra, rows.shape[1]), fill, np.float32)])


def check(rows, k, block=knn.BLOCK):
    own = np.arange(len(rows), dtype=np.int32)
    index, sims = nearest(rows, own, padded(rows, block), count=len(rows), k=k, block=block)
    expected, values = oracle(rows, own, rows, k)
    np.testing.assert_array_equal(index, expected)
    np.testing.assert_array_equal(sims, values)


def whole_numbers(seed, n, width):
    return np.random.default_rng(seed).integers(-2, 3, (n, width)).astype(np.float32)


@pytest.mark.parametrize(
    ("n", "k", "block", "width"),
    [
        (2, 1, 64, 3),  # a single neighbour
        (40, 31, knn.BLOCK, 4),  # N far below the block
        (33, 32, 32, 3),  # everybody else is a neighbour
        (500, 31, 64, 4),  # k above what a block's few groups hold
        (500, 7, 128, 2),  # 25 different rows: ties everywhere, duplicates of the query itself
        (1000, 5, 256, 1),  # products may be -0
        (1024, 40, 512, 16),  # no padding
    ],
)
def test_equals_oracle_with_ties_and_duplicates(n, k, block, width):
    check(whole_numbers(n, n, width), k, block)


def test_all_rows_equal_gives_the_lowest_indices():
    check(np.ones((300, 4), np.float32), 31, 64)


@pytest.mark.parametrize("ascending", [True, False])
def test_any_order_of_the_database(ascending):
    # Ascending, each block replaces the whole list; descending, no later block has anything to offer.
    angle = np.linspace(0, 80, 600)[:: -1 if ascending else 1]
    rows = np.stack([angle, np.ones(600)], 1).astype(np.float32).round()
    query = np.array([[-1, 0], [1, 0]], np.float32)
    own = np.array([-1, -1], np.int32)
    index, sims = nearest(query, own, padded(rows, 64, -1e3), count=600, k=20, block=64)
    expected, values = oracle(query, own, rows, 20)
    np.testing.assert_array_equal(index, expected)
    np.testing.assert_array_equal(sims, values)


def test_unit_vectors_of_real_width():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, 256))
    rows = (centres[rng.integers(40, size=2000)] + 0.5 * rng.normal(size=(2000, 256))).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    own = np.arange(2000, dtype=np.int32)
    expected, values = oracle(rows, own, rows, 31)
    index, sims = nearest(rows, own, padded(rows, 512, 0), count=2000, k=31, block=512)
    np.testing.assert_allclose(sims, values, atol=1e-6)
    assert (np.asarray(index) == expected).mean() > 0.999  # rounding may swap values closer than 1e-7
    assert not (np.asarray(index) == own[:, None]).any()
    assert all(len(set(row)) == 31 for row in np.asarray(index))
    rough, rounded = nearest(
        rows, own, padded(rows, 512, 0), count=2000, k=31, block=512, precision="bfloat16"
    )
    np.testing.assert_allclose(rounded, values, atol=1e-2)
    overlap = [
        len(set(a) & set(b)) for a, b in zip(np.asarray(rough).tolist(), expected.tolist(), strict=True)
    ]
    assert np.mean(overlap) > 28


def test_eight_devices_and_one_agree():
    rows = whole_numbers(3, 640, 8)
    own = np.arange(640, dtype=np.int32)
    mesh = sharding.make_mesh()
    by_row, whole = sharding.by_row(mesh).spec, sharding.replicated(mesh).spec
    one = functools.partial(knn.nearest, count=640, k=9, block=128)
    split = jax.jit(
        jax.shard_map(one, mesh=mesh, in_specs=(by_row, by_row, whole), out_specs=by_row, check_vma=False)
    )
    for a, b in zip(split(rows, own, rows), one(rows, own, rows), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_whole_matrix_is_never_there():
    n, queries = 20_000, 64
    shapes = (
        jax.ShapeDtypeStruct((queries, 16), jnp.float32),
        jax.ShapeDtypeStruct((queries,), jnp.int32),
        jax.ShapeDtypeStruct((knn.padded_size(n, 1024), 16), jnp.float32),
    )
    memory = nearest.lower(*shapes, count=n, k=31, block=1024).compile().memory_analysis()
    assert memory.temp_size_in_bytes < queries * n * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 40}, "k is 40 but there are 40 rows: choose k from 1 to 39"),
        ({"k": 0}, "k is 0"),
        ({"count": 70}, "the database has 64 rows; pad it to 128"),
        ({"block": 48}, "block is 48; it must be a multiple of 32"),
        ({"precision": "float16"}, "precision is 'float16'; it must be one of float32, bfloat16"),
    ],
)
def test_unusable_arguments(change, message):
    rows = whole_numbers(0, 64, 3)
    arguments = {"count": 40, "k": 5, "block": 64, **change}
    with pytest.raises(ValueError, match=message):
        knn.nearest(rows, np.arange(64, dtype=np.int32), rows, **arguments)
    with pytest.raises(
        ValueError, match=r"queries \(64, 2\) and database \(64, 3\) must have the same width"
    ):
        knn.nearest(rows[:, :2], np.arange(64, dtype=np.int32), rows, count=40, k=5)
