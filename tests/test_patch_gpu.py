"""Set abstraction's GPU kernels: in interpret mode against plain XLA, their lowering, and their choice."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from openshape_jax import sharding
from openshape_jax.models import pointbert
from openshape_jax.ops import patch, patch_gpu, patch_gpu_kernels
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

interpreted = functools.partial(patch_training, passes=patch_gpu.passes(interpret=True))


def test_training_equals_plain_xla(monkeypatch):
    """96 channels do not fill the last part, 16 members are two tiles, and a device's 4 programs share its 5
    patches unevenly."""
    monkeypatch.setattr(patch_gpu, "PROCESSORS", 4)
    monkeypatch.setattr(patch_gpu, "EACH", dict.fromkeys(patch_gpu.EACH, 1))
    monkeypatch.setattr(patch_gpu_kernels, "TILE", 8)
    x, layers, slope = inputs(16, 96)
    (_, wanted), (slopes, _) = value_and_gradient(patch_training, chunks(x, jnp.float32), layers, slope)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    rows = jax.NamedSharding(mesh, jax.P("data"))
    x, slope = jax.device_put((patch_gpu.arrange(jnp.asarray(x), jnp.float32), slope), rows)
    layers = jax.device_put(layers, sharding.replicated(mesh))
    (_, got), (found, to_points) = value_and_gradient(interpreted, x, layers, slope)
    for a, b in zip(jax.tree.leaves((got, found)), jax.tree.leaves((wanted, slopes)), strict=True):
        assert np.abs(b).max() > 0.1
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())
    assert not to_points.any()


def test_bfloat16_passes_equal_those_in_plain_xla():
    case = inputs(16, 96)
    rows = patch_gpu.arrange(jnp.asarray(case[0]), jnp.bfloat16)
    bfloat16_passes_equal(patch_gpu.passes(interpret=True), rows, lambda values: values, case)


def test_the_first_of_equal_maxima_is_chosen():
    """All members but the first two are the second once more; the second tile holds nothing new."""
    x, (one, two, three), _ = inputs(256, 64, 3)
    x[:, :, 2:] = x[:, :, 1:2]
    x = patch_gpu.arrange(jnp.asarray(x), jnp.float32)
    zero, ones = np.zeros(64, np.float32), np.ones(64, np.float32)
    hidden = Hidden(one.kernel, zero, zero, two.kernel, Norm(zero, ones, ones, ones, zero))
    third = jax.jit(patch_gpu.passes(interpret=True).third, compiler_options=QUICK)
    top, index, mean, var = third(x, None, hidden, three.kernel)
    y = jax.nn.relu(jax.nn.relu(x[..., :9] @ one.kernel) @ two.kernel) @ three.kernel
    np.testing.assert_allclose(top, y.max(1), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(index, y[:, :2].argmax(1))
    assert set(np.unique(index)) == {0, 1}
    np.testing.assert_allclose(mean, y.mean((0, 1)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(var, y.var((0, 1)), rtol=1e-4)


def test_moments_far_from_zero_lose_nothing():
    """A mean a thousand times the deviation leaves no digit of a difference of squares."""
    rng = np.random.default_rng(0)
    y = (1000 + rng.normal(size=(64, 8, 32))).astype(np.float32)
    moments = jnp.zeros(64), jnp.zeros(64)
    for tile in range(8):
        moments = patch_gpu_kernels._more(moments, jnp.asarray(y[:, tile]), jnp.int32(tile))
    exact = y.astype(np.float64).reshape(64, -1)
    np.testing.assert_allclose(moments[0], exact.mean(1), rtol=1e-6)
    np.testing.assert_allclose(moments[1] / 256, exact.var(1), rtol=1e-3)


def test_inference_equals_plain_layers_and_so_do_its_gradients(monkeypatch):
    monkeypatch.setattr(patch_gpu_kernels, "TILE", 8)
    grouped, layers, slope = inputs(16, 96)
    weights = [jnp.asarray(w) for kernel, _, bias in layers for w in (kernel, bias)]
    x = patch_gpu.arrange(jnp.asarray(grouped), jnp.float32)

    wanted, pull = jax.vjp(lambda *w: plain_layers(grouped, w), *weights)
    forward = jax.jit(functools.partial(patch_gpu.forward, interpret=True), compiler_options=QUICK)
    np.testing.assert_allclose(forward(x, *weights), wanted, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(patch, "CHUNK_ROWS", 2 * 16)
    slopes = jax.jit(patch.plain_slopes, compiler_options=QUICK)(x, slope, *weights)
    for a, b in zip(slopes, pull(slope), strict=True):
        assert a.shape == (1, *b.shape)
        np.testing.assert_allclose(a[0], b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


def test_the_model_s_set_abstraction_lowers_for_gpus(gpu_mesh):
    config = pointbert.size(1)
    config.dtype = "bfloat16"
    with jax.sharding.use_abstract_mesh(gpu_mesh):
        inference, training = (lowered_set_abstraction(config, "cuda", train) for train in (False, True))
    assert "patch_gpu" in inference and "patch_third_gpu" not in inference
    for name in ("inputs", "second", "third", "third_back", "outer", "second_back"):
        assert f"patch_{name}_gpu" in training


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((4, 384, 64), "bfloat16", "gpu"),
        ((4, 7, 256), "bfloat16", "gpu"),
        ((4, 384, 64), "float32", None),
        ((4, 384, 48), "bfloat16", None),
        ((4, 384, 8), "bfloat16", None),
        ((4, 384, 512), "bfloat16", None),
        ((2048, 512, 64), "bfloat16", None),  # more than 32-bit offsets reach
    ],
)
def test_which_shapes_the_kernels_take(gpu_mesh, monkeypatch, shape, dtype, expected):
    xyz = jnp.zeros(3)
    with jax.sharding.use_abstract_mesh(gpu_mesh):
        assert patch.patch_kernel(xyz, shape, dtype) == expected
    assert patch.patch_kernel(xyz, shape, dtype) is None  # a program for CPUs
    monkeypatch.setenv("OPENSHAPE_KERNELS", "0")
    with jax.sharding.use_abstract_mesh(gpu_mesh):
        assert patch.patch_kernel(xyz, shape, dtype) is None
