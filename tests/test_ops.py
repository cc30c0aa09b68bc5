"""Farthest point sampling and ball query against brute force, the original, and their properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openshape_jax.ops import ball_query, farthest_point_sampling
from openshape_jax.ops.bits import nth_set_bit


def fps_oracle(xyz: np.ndarray, k: int, start: int = 0) -> np.ndarray:
    chosen, nearest = [start], np.full(len(xyz), np.inf, np.float32)
    while len(chosen) < k:
        nearest = np.minimum(nearest, ((xyz - xyz[chosen[-1]]) ** 2).sum(1, dtype=np.float32))
        chosen.append(int(np.argmax(nearest)))  # the first index wins ties
    return np.array(chosen)


def ball_oracle(xyz: np.ndarray, centres: np.ndarray, radius: float, k: int) -> np.ndarray:
    out = np.zeros((len(centres), k), int)
    for s, c in enumerate(centres):
        hits = np.flatnonzero(((xyz - c) ** 2).sum(1, dtype=np.float32) <= np.float32(radius**2))[:k]
        if len(hits):
            out[s] = hits[0]
            out[s, : len(hits)] = hits
    return out


def grid_cloud(seed: int, n: int) -> np.ndarray:
    """Points on a coarse grid: many exact ties and duplicates, no rounding in the distances."""
    return np.random.default_rng(seed).integers(-8, 9, (n, 3)).astype(np.float32) / 8


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**31), n=st.sampled_from([1, 5, 127, 128, 129, 300]), start=st.integers(0, 299))
def test_fps_equals_oracle_with_ties(seed, n, start):
    xyz, start = grid_cloud(seed, n), start % n
    k = min(n, 40)
    np.testing.assert_array_equal(farthest_point_sampling(xyz, k, start), fps_oracle(xyz, k, start))


@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(0, 2**31),
    n=st.sampled_from([1, 31, 32, 33, 300]),
    radius=st.sampled_from([0.01, 0.5, 9.0]),
)
def test_ball_query_equals_oracle(seed, n, radius):
    xyz = grid_cloud(seed, n)
    centres = np.concatenate([xyz[:17], [[50.0, 0, 0]]]).astype(np.float32)
    np.testing.assert_array_equal(ball_query(xyz, centres, radius, 20), ball_oracle(xyz, centres, radius, 20))


def test_indices_of_the_original(golden):
    fps = jax.vmap(lambda p: farthest_point_sampling(p, 24))(golden["xyz"])
    np.testing.assert_array_equal(fps, golden["fps_index"])
    centres = np.take_along_axis(golden["xyz"], np.asarray(fps)[..., None], 1)
    ball = jax.vmap(lambda p, c: ball_query(p, c, 0.35, 16))(golden["xyz"], centres)
    np.testing.assert_array_equal(ball, golden["ball_index"])


def test_fps_chooses_the_same_points_in_any_order_and_place():
    xyz = np.random.default_rng(3).normal(size=(500, 3)).astype(np.float32)
    order = np.r_[0, 1 + np.random.default_rng(4).permutation(499)]
    base = np.asarray(farthest_point_sampling(xyz, 30))
    np.testing.assert_array_equal(order[np.asarray(farthest_point_sampling(xyz[order], 30))], base)
    np.testing.assert_array_equal(farthest_point_sampling(xyz * 4 + np.float32(8), 30), base)


def test_coincident_points():
    same = np.ones((40, 3), np.float32)
    np.testing.assert_array_equal(farthest_point_sampling(same, 5), np.zeros(5))
    np.testing.assert_array_equal(ball_query(same, same[:1], 0.1, 4), [[0, 1, 2, 3]])


def test_half_precision_input_is_computed_in_float32():
    xyz = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float16)
    expected = fps_oracle(xyz.astype(np.float32), 30)
    np.testing.assert_array_equal(farthest_point_sampling(jnp.asarray(xyz), 30), expected)


def testnth_set_bit():
    words = np.array([0b1, 0b10110, 0xFFFFFFFF, 0x80000000], np.uint32)
    got = nth_set_bit(jnp.asarray(words), jnp.asarray([0, 2, 31, 0], jnp.int32))
    np.testing.assert_array_equal(got, [0, 4, 31, 31])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: farthest_point_sampling(jnp.zeros((4, 3)), 5), "xyz has 4 points; cannot sample 5"),
        (lambda: farthest_point_sampling(jnp.zeros((2, 4, 3)), 2), "Use jax.vmap"),
        (lambda: ball_query(jnp.zeros((4, 3)), jnp.zeros((2, 3)), 0.1, 0), "num_samples is 0"),
        (lambda: ball_query(jnp.zeros((4, 2)), jnp.zeros((2, 3)), 0.1, 1), r"\(4, 2\)"),
    ],
)
def test_errors_name_value_and_fix(call, message):
    with pytest.raises(ValueError, match=message):
        call()
