"""Set abstraction's MLP in training, with its gradient written out, against the plain form."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from openshape_jax import sharding
from openshape_jax.ops.patch_train import EPS, Layer, patch_training

CHUNKS, SHARES, MEMBERS, PATCHES, WIDTHS = 3, 2, 5, 4, (9, 16, 16, 24)


def plain(x, layers, dtype=jnp.float32):
    """The definition, on (..., K, R, F)."""
    moments = []
    for layer in layers:
        y = jnp.matmul(x.astype(dtype), layer.kernel.astype(dtype), preferred_element_type=jnp.float32)
        mean, var = y.mean((0, 1, 2, 3)), y.var((0, 1, 2, 3))
        moments.append((mean, var))
        x = jax.nn.relu((y - mean) / jnp.sqrt(var + EPS) * layer.scale + layer.bias)
    return x.max(2), moments


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(CHUNKS, SHARES, MEMBERS, PATCHES, 9)).astype(np.float32) + 0.5
    x[:, :, 3:] = x[:, :, :1]  # groups that were too small repeat their first member: ties
    layers = [
        Layer(*(rng.normal(size=shape).astype(np.float32) for shape in ((a, b), (b,), (b,))))
        for a, b in itertools.pairwise(WIDTHS)
    ]
    assert (layers[2].scale < 0).any() and (layers[2].scale > 0).any()
    slope = rng.normal(size=(CHUNKS, SHARES, PATCHES, WIDTHS[-1])).astype(np.float32)
    return x, layers, slope


def value_and_gradient(form, x, layers, slope):
    def total(layers, x):
        features, moments = form(x, layers)
        return (features * slope).sum(), (features, moments)

    return jax.jit(jax.value_and_grad(total, has_aux=True, argnums=(0, 1)))(layers, x)


def test_features_moments_and_gradients_are_those_of_the_plain_form(inputs):
    (_, wanted), (slopes, _) = value_and_gradient(plain, *inputs)
    (_, got), (found, to_points) = value_and_gradient(patch_training, *inputs)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(slopes), strict=True):
        assert np.abs(b).max() > 0.1
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())
    assert not to_points.any()


def test_a_channel_that_never_changes_has_finite_gradients(inputs):
    x, layers, slope = inputs
    dead = [layers[0], layers[1]._replace(bias=np.full(16, -1e3, np.float32)), layers[2]]
    (_, (features, _)), slopes = value_and_gradient(patch_training, np.zeros_like(x), dead, slope)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((features, slopes)))


def test_shares_on_two_devices_give_the_same(inputs):
    x, layers, slope = inputs
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    rows = jax.NamedSharding(mesh, jax.P(None, "data"))
    split = jax.device_put(x, rows), jax.device_put(layers, sharding.replicated(mesh))
    (_, wanted), (slopes, _) = value_and_gradient(patch_training, x, layers, slope)
    (_, got), (found, _) = value_and_gradient(patch_training, *split, jax.device_put(slope, rows))
    leaves = zip(jax.tree.leaves((got, found)), jax.tree.leaves((wanted, slopes)), strict=True)
    for a, b in leaves:
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


def test_bfloat16_costs_no_more_than_in_the_plain_form(inputs):
    x, layers, slope = inputs
    half = jnp.asarray(x, jnp.bfloat16)
    exact = value_and_gradient(plain, x, layers, slope)[1]
    rounded = value_and_gradient(lambda x, w: plain(x, w, jnp.bfloat16), half, layers, slope)[1]
    found = value_and_gradient(patch_training, half, layers, slope)[1]
    for a, b, c in zip(*(jax.tree.leaves(slopes[0]) for slopes in (found, rounded, exact)), strict=True):
        assert np.linalg.norm(a - c) < 1.5 * np.linalg.norm(b - c) + 1e-2 * np.linalg.norm(c)
