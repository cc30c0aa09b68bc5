"""Augmentation: what each option does, alone, against NumPy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from openshape_jax import augment
from openshape_jax.config import AugmentConfig
from openshape_jax.data import schema

OFF = AugmentConfig(
    dropout=0.0, scale_low=1.0, scale_high=1.0, shift=0.0, tilt_sigma=0.0, azimuth=0.0, gray=0.0
)


def cloud(n=400, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, 3)) * [1, 2, 0.5] + 3).astype(np.float32), rng.random((n, 3)).astype(
        np.float32
    )


@functools.cache
def compiled(changes: tuple):
    config = dataclasses.replace(OFF, **dict(changes))
    return jax.jit(lambda key, xyz, rgb: augment.augment_one(key, xyz, rgb, config))


def one(seed=0, **changes):
    return compiled(tuple(changes.items()))(jax.random.key(seed), *cloud())


def test_unit_sphere_and_off():
    xyz, rgb = cloud()
    expected = schema.to_unit_sphere(xyz).xyz
    np.testing.assert_allclose(augment.unit_sphere(jnp.asarray(xyz)), expected, atol=1e-6)
    got, colour = one()
    np.testing.assert_allclose(got, expected, atol=1e-6)
    np.testing.assert_array_equal(colour, rgb)
    disabled = AugmentConfig(enabled=False)
    np.testing.assert_allclose(
        augment.augment(jax.random.key(0), xyz[None], rgb[None], disabled)[0][0], expected, atol=1e-6
    )


def test_dequantize_is_the_inverse_of_the_stored_form():
    xyz, rgb = cloud()
    xyz = schema.to_unit_sphere(xyz).xyz
    got, colour = augment.dequantize(schema.quantize_xyz(xyz), schema.quantize_rgb(rgb))
    np.testing.assert_allclose(got, xyz, atol=2e-5)
    np.testing.assert_allclose(got, schema.dequantize_xyz(schema.quantize_xyz(xyz)), atol=1e-6)
    np.testing.assert_allclose(colour, rgb, atol=0.5 / 255 + 1e-6)


def test_dropout_moves_points_to_point_0_and_keeps_colour():
    base, rgb = one()
    got, colour = one(1, dropout=0.875)
    moved = ~np.isclose(got, base, atol=1e-6).all(1)
    assert 0 < moved.mean() < 0.875
    np.testing.assert_allclose(got[moved], np.broadcast_to(base[0], (moved.sum(), 3)), atol=1e-6)
    np.testing.assert_array_equal(colour, rgb)
    shares = [
        np.isclose(one(seed, dropout=0.875)[0], base[0], atol=1e-6).all(1).mean() for seed in range(200)
    ]
    assert abs(np.mean(shares) - 0.4375) < 0.05  # the mean of u * 0.875


def test_scale_shift_stretch_mirror_stay_in_range():
    base, _ = one()
    ratio = np.array([np.linalg.norm(one(s, scale_low=0.8, scale_high=1.25)[0][1]) for s in range(100)])
    ratio /= np.linalg.norm(base[1])
    assert 0.8 <= ratio.min() < 0.85
    assert 1.2 < ratio.max() <= 1.25
    shift = np.array([one(s, shift=0.1)[0][1] - base[1] for s in range(100)])
    assert 0.09 < np.abs(shift).max() <= 0.1 + 1e-6
    stretch = np.array([one(s, stretch=0.2)[0][1] / base[1] for s in range(100)])
    assert np.exp(-0.2) - 1e-5 <= stretch.min() < 0.85
    mirrored, _ = one(mirror=1.0)
    np.testing.assert_allclose(mirrored, base * np.array([-1, 1, 1]), atol=1e-6)


def test_rotations():
    base, _ = one()
    headings = []
    for seed in range(50):
        turned, _ = one(seed, azimuth=1.0)
        np.testing.assert_allclose(turned[:, 2], base[:, 2], atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(turned, axis=1), np.linalg.norm(base, axis=1), atol=1e-5)
        headings.append(np.arctan2(turned[1, 1], turned[1, 0]))
    assert np.ptp(headings) > 5  # all around
    for seed in range(20):
        tilted, _ = one(seed, tilt_sigma=1.0, tilt_clip=0.18)
        cosine = (tilted * base).sum(1) / (base**2).sum(1)
        assert cosine.min() > np.cos(0.18 * np.sqrt(3)) - 0.01


def test_gray_takes_the_whole_cloud():
    gray = [np.asarray(one(seed, gray=0.5)[1]) for seed in range(200)]
    whole = [np.all(g == np.float32(0.4)) for g in gray]
    assert abs(np.mean(whole) - 0.5) < 0.12
    assert all(w or not np.any(g == np.float32(0.4)) for w, g in zip(whole, gray, strict=True))


def test_partial_keeps_one_side_and_sparse_keeps_few():
    xyz, _ = cloud()
    base = np.asarray(augment.unit_sphere(jnp.asarray(xyz)))
    kept = np.asarray(augment._keep_some(jax.random.key(3), base, dataclasses.replace(OFF, partial=1.0)))
    assert 0.35 < len(np.unique(kept)) / len(xyz) < 0.95
    lost = np.setdiff1d(np.arange(len(xyz)), kept)
    # A plane separates the kept from the lost: some direction has all kept below all lost.
    direction = jax.random.split(jax.random.key(3), 5)[2]
    height = base @ np.asarray(jax.random.normal(direction, (3,)))
    assert height[kept].max() < height[lost].min()
    counts = []
    for seed in range(60):
        index = augment._keep_some(jax.random.key(seed), base, dataclasses.replace(OFF, sparse=1.0))
        counts.append(len(np.unique(index)))
    assert 64 <= min(counts) < 100
    assert max(counts) > 300
    got, _ = one(partial=1.0, sparse=1.0)
    assert got.shape == xyz.shape
    np.testing.assert_allclose(np.linalg.norm(got, axis=1).max(), 1, atol=1e-5)


def test_noise_has_at_most_the_given_sigma():
    base, _ = one()
    sigmas = [float(np.std(np.asarray(one(s, noise_sigma=0.05)[0]) - base)) for s in range(40)]
    assert max(sigmas) < 0.055
    assert max(sigmas) > 2 * min(sigmas)


@pytest.mark.parametrize("xyz", [np.zeros((64, 3), np.float32), np.ones((64, 3), np.float32)])
def test_coincident_points_stay_finite(xyz):
    config = AugmentConfig(partial=1.0, sparse=1.0, noise_sigma=0.01, stretch=0.2)
    got, _ = augment.augment(jax.random.key(0), xyz[None], xyz[None], config)
    assert np.isfinite(got).all()


def test_every_cloud_of_a_batch_has_its_own_draw_and_the_key_decides():
    xyz, rgb = cloud()
    both = [np.stack([a, a]) for a in (xyz, rgb)]
    first, _ = augment.augment(jax.random.key(0), *both, AugmentConfig())
    again, _ = augment.augment(jax.random.key(0), *both, AugmentConfig())
    other, _ = augment.augment(jax.random.key(1), *both, AugmentConfig())
    np.testing.assert_array_equal(first, again)
    assert np.abs(first[0] - first[1]).max() > 0.1
    assert np.abs(first - other).max() > 0.1


def test_shuffle_reorders_every_cloud_and_keeps_its_points():
    xyz = np.arange(2 * 50 * 3, dtype=np.uint16).reshape(2, 50, 3)
    rgb = (xyz % 251).astype(np.uint8)
    got_xyz, got_rgb = (np.asarray(x) for x in augment.shuffle(jax.random.key(0), xyz, rgb))
    orders = got_xyz[:, :, 0] // 3 - np.array([[0], [50]])
    for cloud in range(2):
        assert sorted(orders[cloud]) == list(range(50))
        np.testing.assert_array_equal(got_xyz[cloud], xyz[cloud][orders[cloud]])
        np.testing.assert_array_equal(got_rgb[cloud], rgb[cloud][orders[cloud]])
    assert (orders[0] != orders[1]).sum() > 40
    # Every point comes first about equally often.
    many = np.broadcast_to(xyz[0, :8], (4000, 8, 3))
    first = np.asarray(augment.shuffle(jax.random.key(1), many, many)[0])[:, 0, 0] // 3
    assert abs(np.bincount(first, minlength=8) - 500).max() < 100
