"""What robustness is measured against: each change does what it says, and is a function of its seed."""

import itertools

import numpy as np
import pytest
from scipy import optimize, stats

from openshape_jax.data.schema import GRAY
from openshape_jax.evals import conditions
from openshape_jax.evals.conditions import ANY, HOLES, KINDS, Condition, changed

N = 400


@pytest.fixture(scope="module")
def cloud() -> tuple[np.ndarray, np.ndarray]:
    """(xyz, rgb) of an unsymmetric cloud, no two points alike."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=(N, 3)) * [1, 2, 3] + [4, 5, 6]).astype(np.float32), rng.random(
        (N, 3), np.float32
    )


def unit(xyz: np.ndarray) -> np.ndarray:
    centred = xyz.astype(np.float64) - xyz.astype(np.float64).mean(0)
    return centred / np.linalg.norm(centred, axis=1).max()


def after(kind: str, level: float, cloud, keys=(3, 0)) -> tuple[np.ndarray, np.ndarray]:
    return changed(Condition(kind, level), *cloud, keys)


def rows_of(kept: np.ndarray, xyz: np.ndarray) -> np.ndarray:
    """Which points of the normalised cloud were kept."""
    distance = np.abs(kept[:, None] - unit(xyz)[None]).max(-1)
    assert (distance.min(1) < 1e-6).all()
    return distance.argmin(1)


@pytest.mark.parametrize("kind", KINDS)
def test_clean_levels_change_nothing_and_every_level_is_a_function_of_cloud_and_draw(kind, cloud):
    for level in KINDS[kind].levels:
        xyz, rgb = after(kind, level, cloud)
        assert xyz.dtype == rgb.dtype == np.float32
        assert xyz.shape == rgb.shape
        assert len(xyz)
        again = after(kind, level, cloud)
        np.testing.assert_array_equal(xyz, again[0])
        np.testing.assert_array_equal(rgb, again[1])
        if Condition(kind, level).clean:
            np.testing.assert_allclose(xyz, unit(cloud[0]), atol=1e-6)
            np.testing.assert_array_equal(rgb, cloud[1])
        elif kind not in ("points", "scale") and (kind, level) != ("colour", 1):  # those have nothing random
            other = after(kind, level, cloud, (3, 1))
            assert not (np.array_equal(other[0], xyz) and np.array_equal(other[1], rgb))
    assert KINDS[kind].clean in KINDS[kind].levels


@pytest.mark.parametrize("kind", KINDS)
def test_position_and_size_of_the_stored_cloud_do_not_matter(kind, cloud):
    xyz, rgb = cloud
    level = KINDS[kind].levels[1]
    moved = changed(Condition(kind, level), xyz.astype(np.float64) * 7 + [1, -2, 3], rgb, (3, 0))
    np.testing.assert_allclose(moved[0], after(kind, level, cloud)[0], atol=1e-5)


@pytest.mark.parametrize("level", [0.1, 0.25, 0.5, 0.75])
def test_a_cut_leaves_one_side_of_a_plane(level, cloud):
    kept = rows_of(after("cut", level, cloud)[0], cloud[0])
    assert len(kept) == N - round(level * N)
    assert (np.diff(kept) > 0).all()  # in their order
    # There is a plane with all of the kept on one side and all of the lost on the other (a linear program).
    points, lost = unit(cloud[0]), np.setdiff1d(np.arange(N), kept)
    sign = np.r_[np.ones(len(kept)), -np.ones(len(lost))]
    rows = sign[:, None] * np.c_[points[np.r_[kept, lost]], np.ones(N)]
    found = optimize.linprog(np.zeros(4), A_ub=rows, b_ub=np.full(N, -1e-6), bounds=[(None, None)] * 4)
    assert found.status == 0
    rng = np.random.default_rng(0)
    rows = sign[:, None] * np.c_[points[rng.permutation(N)], np.ones(N)]
    wrong = optimize.linprog(np.zeros(4), A_ub=rows, b_ub=np.full(N, -1e-6), bounds=[(None, None)] * 4)
    assert wrong.status == 2  # no plane parts points at random: the program can tell


@pytest.mark.parametrize("kind", ["cut", "dropout", "points"])
def test_what_a_mild_level_loses_a_severe_one_loses_too(kind, cloud):
    levels = [x for x in conditions.levels(kind, N) if not Condition(kind, x).clean]
    kept = [set(rows_of(after(kind, level, cloud)[0], cloud[0]).tolist()) for level in levels]
    assert all(small < large for large, small in itertools.pairwise(kept))


def test_points_keeps_the_first_and_offers_no_more_than_there_are(cloud):
    np.testing.assert_array_equal(rows_of(after("points", 128, cloud)[0], cloud[0]), np.arange(128))
    assert conditions.levels("points", 2048) == [0, 1024, 512, 256, 128]
    assert conditions.levels("points", 10_000) == [0, 5000, 2048, 1024, 512, 256, 128]


@pytest.mark.parametrize("level", [0.1, 0.5, 0.75])
def test_holes_are_the_nearest_points_of_a_few_centres(level, cloud):
    kept = rows_of(after("holes", level, cloud)[0], cloud[0])
    assert len(kept) == N - round(level * N)
    points, lost = unit(cloud[0]), np.setdiff1d(np.arange(N), kept)
    # A lost point lies nearer to other lost ones than points do that are lost at random.
    spread = np.linalg.norm(points[lost][:, None] - points[lost], axis=-1)
    np.fill_diagonal(spread, np.inf)
    rng = np.random.default_rng(0)
    random = points[rng.choice(N, len(lost), replace=False)]
    apart = np.linalg.norm(random[:, None] - random, axis=-1)
    np.fill_diagonal(apart, np.inf)
    nearest = min(len(lost) // HOLES - 1, 8)
    assert np.sort(spread, 1)[:, nearest].mean() < np.sort(apart, 1)[:, nearest].mean()


def test_dropout_and_noise_have_their_size(cloud):
    assert abs(len(after("dropout", 0.5, cloud)[0]) / N - 0.5) < 0.1
    noise = after("noise", 0.05, cloud)[0] - unit(cloud[0])
    assert stats.kstest(noise.ravel() / 0.05, "norm").pvalue > 0.001
    one = (cloud[0][:1], cloud[1][:1])
    assert len(after("dropout", 0.99, one)[0]) == 1  # never nothing


def rotation_of(kind: str, level: float, cloud, draw: int) -> np.ndarray:
    """The matrix that the change applied, by least squares."""
    turned = after(kind, level, cloud, (0, draw))[0].astype(np.float64)
    return np.linalg.lstsq(unit(cloud[0]), turned, rcond=None)[0].T


def test_turns_are_rotations_by_the_angle_they_say(cloud):
    for draw in range(20):
        about_z = rotation_of("rotation_z", 45, cloud, draw)
        np.testing.assert_allclose(about_z[2], [0, 0, 1], atol=1e-6)
        assert np.degrees(np.arccos(np.clip((np.trace(about_z) - 1) / 2, -1, 1))) <= 45 + 1e-4
        any_axis = rotation_of("rotation", 60, cloud, draw)
        np.testing.assert_allclose(any_axis @ any_axis.T, np.eye(3), atol=1e-5)
        assert np.linalg.det(any_axis) == pytest.approx(1, abs=1e-5)
        assert np.degrees(np.arccos((np.trace(any_axis) - 1) / 2)) == pytest.approx(60, abs=1e-2)


def test_the_severest_turn_is_uniform_over_all_rotations(cloud):
    small = (cloud[0][:20], cloud[1][:20])
    matrices = np.stack([rotation_of("rotation", ANY, small, draw) for draw in range(600)])
    # Under the uniform (Haar) measure an angle t has density (1 - cos t) / pi; entries are uniform in -1..1.
    angle = np.arccos(np.clip((np.trace(matrices, axis1=1, axis2=2) - 1) / 2, -1, 1))
    assert stats.kstest(angle, lambda t: (t - np.sin(t)) / np.pi).pvalue > 0.001
    assert stats.kstest(matrices[:, 2, 2], "uniform", (-1, 2)).pvalue > 0.001


def test_colour_scale_and_shift(cloud):
    _, rgb = after("colour", 0.25, cloud)
    grey = (rgb == np.float32(GRAY)).all(1)
    assert 0.15 < grey.mean() < 0.35
    np.testing.assert_array_equal(rgb[~grey], cloud[1][~grey])
    assert (after("colour", 1, cloud)[1] == np.float32(GRAY)).all()
    np.testing.assert_allclose(after("scale", 2, cloud)[0], 2 * unit(cloud[0]), atol=1e-6)
    moved = after("shift", 0.3, cloud)[0] - unit(cloud[0])
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), 0.3, atol=1e-5)
    assert not Condition("scale", 2).normalized
    assert not Condition("shift", 0.3).normalized
