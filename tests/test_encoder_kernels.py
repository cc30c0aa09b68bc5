"""The Pallas kernels of the encoder for TPUs, in interpret mode against plain JAX, and their gradients."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from openshape_jax import sharding
from openshape_jax.ops import attention_tpu, gather_tpu, norm, norm_tpu

attention = importlib.import_module("openshape_jax.ops.attention")  # the package's name is the function's


@pytest.mark.parametrize(("clouds", "points", "features", "count"), [(2, 1000, 6, 9000), (3, 128, 3, 7)])
def test_gather_equals_indexing(clouds, points, features, count):
    rng = np.random.default_rng(points)
    table = rng.normal(size=(clouds, points, features)).astype(np.float32)
    index = rng.integers(0, points, (clouds, count)).astype(np.int32)
    got = gather_tpu.gather_tpu(jnp.asarray(table), jnp.asarray(index), interpret=True)
    np.testing.assert_array_equal(got, [t[i] for t, i in zip(table, index, strict=True)])


# 43 of 48 tokens are real: nobody may attend to the others.
@pytest.mark.parametrize(("tokens", "total"), [(43, 48), (24, 24)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
def test_attention_and_its_gradient(dtype, tolerance, tokens, total):
    rng = np.random.default_rng(total)
    qkv = jnp.asarray(rng.normal(size=(2, total, 3 * 4 * 64)), dtype)
    g = jnp.asarray(rng.normal(size=(2, total, 4 * 64)), dtype).at[:, tokens:].set(0)
    wanted, pull = jax.vjp(lambda x: attention.self_attention(x, 4, tokens), qkv)
    paired = attention.pair_heads(qkv)
    got = attention_tpu.forward(paired, tokens, interpret=True)
    np.testing.assert_allclose(*_f32(got[:, :tokens], wanted[:, :tokens]), atol=tolerance)
    slope = attention_tpu.backward(paired, g, tokens, interpret=True)
    np.testing.assert_allclose(*_f32(slope, attention.pair_heads(pull(g)[0])), atol=tolerance)


def test_attention_keeps_large_logits_finite():
    qkv = 100 * jnp.ones((1, 16, 3 * 128), jnp.bfloat16)
    out = attention_tpu.forward(qkv, 16, interpret=True)
    slope = attention_tpu.backward(qkv, jnp.ones((1, 16, 128), jnp.bfloat16), 16, interpret=True)
    np.testing.assert_allclose(np.asarray(out, np.float32), 100)
    assert np.isfinite(np.asarray(slope, np.float32)).all()


# One strip of rows, and several programs of an odd number of strips.
@pytest.mark.parametrize("shape", [(2, 8, 128), (3, 528, 128)])
@pytest.mark.parametrize("added", [False, True])
def test_norm_and_its_gradients(shape, added):
    draw = np.random.default_rng(0)
    x, branch, g, beside = (jnp.asarray(2 + draw.normal(size=shape), jnp.float32) for _ in range(4))
    bias, scale, shift = (jnp.asarray(draw.normal(size=shape[-1:]), jnp.float32) for _ in range(3))

    def definition(x, branch, bias, scale, shift):
        total = x + branch + bias if added else x
        return total, norm.plain(total, scale, shift)

    wanted, pull = jax.vjp(definition, x, branch, bias, scale, shift)
    got = norm_tpu.forward(x, branch if added else None, bias, scale, shift, norm.EPS, interpret=True)
    for one, exact in zip(got, wanted if added else wanted[1:], strict=True):
        np.testing.assert_allclose(one, exact, atol=1e-5)
    to_x, _, to_bias, *exact = pull((beside if added else jnp.zeros(shape), g))
    grad, *shares = norm_tpu.backward(
        wanted[0], scale, g, beside if added else None, norm.EPS, interpret=True
    )
    np.testing.assert_allclose(grad, to_x, atol=1e-5)
    for share, one in zip(shares, [*exact, to_bias] if added else exact, strict=added):
        assert share.shape == (8, shape[-1])
        np.testing.assert_allclose(share.sum(0), one, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("rows", [32, 48], ids=["split", "does not divide"])
@pytest.mark.parametrize("added", [False, True])
def test_norms_of_several_devices_equal_those_of_one(added, rows, monkeypatch):
    for kernel in ("forward", "backward"):
        interpreted = functools.partial(getattr(norm_tpu, kernel), interpret=True)
        monkeypatch.setattr(norm_tpu, kernel, interpreted)
    draw = np.random.default_rng(0)
    x, branch = (jnp.asarray(draw.normal(size=(rows, 128)), jnp.bfloat16) for _ in range(2))
    vectors = [jnp.asarray(draw.normal(size=128), jnp.float32) for _ in range(3)]

    def value(x, branch, bias, scale, shift):
        out = norm._kernel("tpu", added, x, *((branch, bias) if added else (None, None)), scale, shift)
        return sum((i + 1) * jnp.sin(part.astype(jnp.float32)).sum() for i, part in enumerate(out))

    mesh = sharding.make_mesh(devices=jax.devices()[: 2 if rows == 32 else 5])
    place = sharding.by_row(mesh) if rows == 32 else sharding.replicated(mesh)
    gradient = jax.grad(value, argnums=(0, 1, 2, 3, 4))
    expected = jax.jit(gradient)(x, branch, *vectors)
    got = jax.jit(gradient)(*jax.device_put((x, branch), place), *vectors)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one.astype(np.float32), other.astype(np.float32), rtol=1e-4, atol=1e-3)


def _f32(*arrays):
    return [np.asarray(x, np.float32) for x in arrays]
