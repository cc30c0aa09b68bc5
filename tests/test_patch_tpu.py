"""Set abstraction's TPU kernels: in interpret mode against plain XLA, their lowering, and their choice."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from openshape_jax import sharding
from openshape_jax.models import pointbert
from openshape_jax.ops import patch, patch_tpu
from openshape_jax.ops.patch_passes import Hidden, Norm
from openshape_jax.ops.patch_train import patch_training
from tests.patch_cases import (
    QUICK,
    bfloat16_passes_equal,
    chunks,
    inputs,
    lowered_set_abstraction,
    plain_layers,
    value_and_gradient,
)

interpreted = functools.partial(patch_training, passes=patch_tpu.passes(interpret=True))


def tiles(grouped, dtype):
    return patch_tpu.arrange(jax.vmap(patch_tpu.by_eights)(jnp.asarray(grouped)), dtype)


@pytest.mark.parametrize(("patches", "devices"), [(48, 2), (8, 1)])
def test_training_equals_plain_xla(patches, devices):
    """96 channels do not fill the last lanes; a device's 3 tiles are of one share, in no pairs."""
    x, layers, slope = inputs(16, 96, patches)
    (_, wanted), (slopes, _) = value_and_gradient(patch_training, chunks(x, jnp.float32), layers, slope)
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    by_row = jax.NamedSharding(mesh, jax.P("data"))
    x, slope = jax.device_put((tiles(x, jnp.float32), slope), by_row)
    layers = jax.device_put(layers, sharding.replicated(mesh))
    (_, got), (found, to_points) = value_and_gradient(interpreted, x, layers, slope)
    for a, b in zip(jax.tree.leaves((got, found)), jax.tree.leaves((wanted, slopes)), strict=True):
        assert np.abs(b).max() > 0.1
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())
    assert not to_points.any()


def test_bfloat16_passes_equal_those_in_plain_xla():
    case = inputs(16, 96, 16)
    by_tile = lambda values: values.reshape(-1, 8, values.shape[1])  # noqa: E731
    bfloat16_passes_equal(patch_tpu.passes(interpret=True), tiles(case[0], jnp.bfloat16), by_tile, case)


def test_the_first_of_equal_maxima_is_chosen():
    """All members but the first two are the second once more: the other half of a tile holds nothing new."""
    x, (one, two, three), _ = inputs(64, 64, 8)
    x[:, :, 2:] = x[:, :, 1:2]
    zero, ones = np.zeros(64, np.float32), np.ones(64, np.float32)
    hidden = Hidden(one.kernel, zero, zero, two.kernel, Norm(zero, ones, ones, ones, zero))
    third = jax.jit(patch_tpu.passes(interpret=True).third, compiler_options=QUICK)
    top, index, mean, var = third(tiles(x, jnp.float32), None, hidden, three.kernel)
    y = jax.nn.relu(jax.nn.relu(x[0] @ one.kernel) @ two.kernel) @ three.kernel
    np.testing.assert_allclose(top[0], y.max(1), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(index[0], y[:, :2].argmax(1))
    assert set(np.unique(index)) == {0, 1}
    np.testing.assert_allclose(mean, y.mean((0, 1)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(var, y.var((0, 1)), rtol=1e-4)


@pytest.mark.parametrize("middle", [0, 60])
def test_moments_far_from_zero_lose_nothing(middle):
    """bfloat16 products of rows about a pivot, against float64 on the same bfloat16 rows; without a pivot
    their squares, of 3600, would leave three digits of a variance of 1."""
    _, (one, two, three), _ = inputs(32, 96)
    x = np.random.default_rng(middle).normal(size=(1, 256, 32, 9)) + middle
    x = np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32)
    kernel = np.asarray(jnp.asarray(one.kernel / 4, jnp.bfloat16), np.float32)
    shift = (middle - (x @ kernel).mean((0, 1, 2))).astype(np.float32)
    bias, zero, ones = np.full(64, middle, np.float32), np.zeros(64, np.float32), np.ones(64, np.float32)
    eye = np.eye(64, dtype=np.float32)
    hidden = Hidden(kernel, shift, bias, two.kernel, None)
    last = Hidden(kernel, shift, bias, eye, Norm(bias, ones, ones, ones, zero))
    passes, rows = patch_tpu.passes(interpret=True), tiles(x, jnp.bfloat16)

    h = jnp.asarray(jax.nn.relu(x[0] @ kernel + shift), jnp.bfloat16)
    exact = np.asarray(h, np.float64).reshape(-1, 64)

    def check(moments, rows):
        np.testing.assert_allclose(moments[0], rows.mean(0), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(moments[1], rows.var(0), rtol=1e-3)

    mean, cov = passes.inputs(rows)
    mean, cov = mean[:9], cov[:9, :9]
    check((mean, jnp.diag(cov)), x.astype(np.float64).reshape(-1, 9))
    np.testing.assert_allclose(cov, np.cov(x.reshape(-1, 9).T.astype(np.float64), bias=True), atol=3e-3)
    for found, weights in (
        (passes.second(rows, hidden)[1:], two.kernel),
        (passes.third(rows, None, last, three.kernel)[2:], three.kernel),
    ):
        check(found, exact @ np.asarray(jnp.asarray(weights, jnp.bfloat16), np.float64))


def test_inference_equals_plain_layers_and_has_gradients(monkeypatch):
    grouped, layers, slope = inputs(32, 96, 24)
    layers = [(jnp.asarray(kernel), jnp.asarray(bias)) for kernel, _, bias in layers]
    weights = [w for layer in layers for w in layer]
    wanted = plain_layers(grouped, weights)
    forward = functools.partial(patch_tpu.forward, interpret=True)
    got = jax.jit(forward, compiler_options=QUICK)(tiles(grouped, jnp.float32), *weights)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)

    monkeypatch.setattr(patch_tpu, "forward", forward)
    ordered = jax.vmap(lambda x: patch.member_order(x, "tpu"))(jnp.asarray(grouped))
    slopes = jax.grad(lambda layers: (patch.patch_features(ordered, layers, "tpu") * slope).sum())(layers)
    wanted = patch.plain_slopes(jnp.asarray(grouped[0], jnp.bfloat16), slope, *weights)
    for a, b in zip(jax.tree.leaves(slopes), wanted, strict=True):
        np.testing.assert_allclose(a, b[0], rtol=1e-5, atol=1e-5 * np.abs(b).max())


def test_the_model_s_set_abstraction_lowers_for_tpus(tpu_mesh):
    config = pointbert.size(4)
    config.dtype = "bfloat16"
    with jax.sharding.use_abstract_mesh(tpu_mesh):
        inference, training = (lowered_set_abstraction(config, "tpu", train) for train in (False, True))
    assert "patch_tpu" in inference and "patch_third_tpu" not in inference
    for name in ("inputs", "second", "third", "third_back", "second_back"):
        assert f"patch_{name}_tpu" in training


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((4, 384, 64), "bfloat16", "tpu"),
        ((4, 64, 256), "bfloat16", "tpu"),
        ((4, 384, 64), "float32", None),
        ((4, 380, 64), "bfloat16", None),
        ((4, 384, 16), "bfloat16", None),
        ((4, 384, 512), "bfloat16", None),
    ],
)
def test_which_shapes_the_kernels_take(tpu_mesh, shape, dtype, expected):
    with jax.sharding.use_abstract_mesh(tpu_mesh):
        assert patch.patch_kernel(jnp.zeros(3), shape, dtype) == expected
