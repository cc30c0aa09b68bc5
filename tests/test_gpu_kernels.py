"""The transformer's Pallas kernels for GPUs, interpreted, against the definitions; and their lowering."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from openshape_jax import sharding
from openshape_jax.ops import attention_gpu, gelu, gelu_gpu, norm, norm_gpu
from openshape_jax.ops.attention import plain


def whole(qkv, heads):
    """The definition on columns (3, heads, 64)."""
    b, t, _ = qkv.shape
    q, k, v = jnp.moveaxis(qkv.reshape(b, t, 3, heads, 64), 2, 0)
    return plain(q, k, v).reshape(b, t, -1)


@jax.jit
def interpreted(qkv, g):
    """(output, sums, gradient) of the kernels."""
    out, sums = attention_gpu.forward(qkv, interpret=True)
    return out, sums, attention_gpu.backward(qkv, out, sums, g, interpret=True)


# One patch; a whole tile of them; a whole tile and a part of one.
@pytest.mark.parametrize("tokens", [2, 129, 198])
def test_attention_equals_the_definition_with_its_gradients(tokens):
    heads = 2
    draw = np.random.default_rng(tokens)
    qkv = jnp.asarray(draw.normal(size=(1, tokens, 3 * heads * 64)), jnp.float32)
    g = jnp.asarray(draw.normal(size=(1, tokens, heads * 64)), jnp.float32)
    wanted, pull = jax.vjp(lambda x: whole(x, heads), qkv)
    out, _, grad = interpreted(qkv, g)
    np.testing.assert_allclose(out, wanted, atol=2e-5)
    np.testing.assert_allclose(grad, pull(g)[0], atol=2e-5)


def test_attention_is_exact_where_all_logits_are_far_below_zero():
    """Keys that are not there have logit 0, far above the others."""
    qkv = jnp.concatenate([jnp.full((1, 19, 64), 6.0), jnp.full((1, 19, 64), -6.0)], -1)
    qkv = jnp.concatenate(
        [qkv, jnp.asarray(np.random.default_rng(0).normal(size=(1, 19, 64)), jnp.float32)], -1
    )
    wanted, pull = jax.vjp(lambda x: whole(x, 1), qkv)
    out, _, grad = interpreted(qkv, jnp.ones((1, 19, 64)))
    np.testing.assert_allclose(out, wanted, atol=2e-5)
    np.testing.assert_allclose(grad, pull(jnp.ones_like(out))[0], atol=2e-4)


# 50 rows and 48 columns fill neither tiles nor registers; 2,200 rows go over the programs more than once.
@pytest.mark.parametrize("shape", [(2, 25, 48), (1, 2200, 16)])
@pytest.mark.parametrize("summed", [False, True])
def test_norm_equals_the_definition_with_its_gradients(shape, summed, monkeypatch):
    monkeypatch.setattr(norm_gpu, "PROGRAMS", 3)
    draw = np.random.default_rng(0)
    x, g, beside = (jnp.asarray(2 + draw.normal(size=shape), jnp.float32) for _ in range(3))
    scale, shift = (jnp.asarray(draw.normal(size=shape[-1:]), jnp.float32) for _ in range(2))

    def definition(x, scale, shift):
        return x, norm.plain(x, scale, shift)

    wanted, pull = jax.vjp(definition, x, scale, shift)
    out = norm_gpu.forward(x, scale, shift, norm.EPS, interpret=True)
    np.testing.assert_allclose(out, wanted[1], atol=1e-5)
    grads = pull((beside if summed else jnp.zeros(shape), g))
    grad, *shares = norm_gpu.backward(x, scale, g, beside if summed else None, norm.EPS, interpret=True)
    np.testing.assert_allclose(grad, grads[0], atol=1e-5)
    for share, exact in zip(shares, (*grads[1:], grads[0].reshape(-1, shape[-1]).sum(0)), strict=True):
        np.testing.assert_allclose(share.sum(0), exact, rtol=1e-5, atol=1e-3)


# Of 300 rows the last tile is not full.
@pytest.mark.parametrize("rows", [256, 300])
def test_gelu_gradient_equals_the_definition(rows):
    draw = np.random.default_rng(0)
    g, h = (jnp.asarray(draw.normal(size=(rows, width)), jnp.float32) for width in (128, 256))
    kernel = jnp.asarray(draw.normal(size=(256, 128)), jnp.float32)
    bias = jnp.zeros(256)
    exact = jax.vjp(lambda h, b: gelu.by_tanh(h + b) @ kernel, h, bias)[1](g)
    to_h, shares = gelu_gpu.backward(g, h, kernel, interpret=True)
    np.testing.assert_allclose(to_h, exact[0], atol=1e-4)
    np.testing.assert_allclose(shares.sum(0), exact[1], atol=1e-3)


# Of eight devices each takes its own rows; 21 rows do not divide, and all of them take all.
@pytest.mark.parametrize("rows", [40, 21])
def test_norm_and_mlp_of_several_devices_equal_those_of_one(rows, monkeypatch):
    monkeypatch.setattr(norm, "platform", lambda x: "gpu")
    for module in (norm, gelu):
        monkeypatch.setattr(module, "gpu_kernels", lambda x: True)
    for module, kernel in ((norm_gpu, "forward"), (norm_gpu, "backward"), (gelu_gpu, "backward")):
        monkeypatch.setattr(module, kernel, functools.partial(getattr(module, kernel), interpret=True))
    draw = np.random.default_rng(0)
    x, branch = (jnp.asarray(draw.normal(size=(rows, 128)), jnp.bfloat16) for _ in range(2))
    shapes = ((128,), (128,), (128,), (128, 256), (256,), (256, 128))
    weights = [jnp.asarray(draw.normal(size=shape), jnp.float32) for shape in shapes]

    def value(x, branch, weights):
        scale, shift, bias, *mlp = weights
        total, normed = norm.add_norm(x, branch, scale, shift, bias)
        return (jnp.sin(gelu.mlp(normed, *mlp)) + jnp.sin(total)).astype(jnp.float32).sum()

    gradient = jax.jit(jax.grad(value, argnums=(0, 1, 2)))
    mesh = sharding.make_mesh()
    place = sharding.by_row(mesh) if rows == 40 else sharding.replicated(mesh)
    got = gradient(*jax.device_put((x, branch), place), jax.device_put(weights, sharding.replicated(mesh)))
    for one, exact in zip(jax.tree.leaves(got), jax.tree.leaves(gradient(x, branch, weights)), strict=True):
        one, exact = np.asarray(one, np.float32), np.asarray(exact, np.float32)
        assert np.linalg.norm(one - exact) < 0.01 * np.linalg.norm(exact)


def test_triton_takes_the_kernels_of_the_released_model(gpu_mesh):
    bf16 = jnp.bfloat16
    qkv, out = (jax.ShapeDtypeStruct((8, 385, width), bf16) for width in (1536, 512))
    shapes = ((8 * 385, 512), (8 * 385, 2048), (2048, 512))
    rows, inner, kernel = (jax.ShapeDtypeStruct(shape, bf16) for shape in shapes)
    sums, scale = jax.ShapeDtypeStruct((8, 8, 385), jnp.float32), jax.ShapeDtypeStruct((512,), jnp.float32)
    calls = {
        "attention_gpu": (attention_gpu.forward, (qkv,)),
        "attention_key_grad_gpu": (attention_gpu.backward, (qkv, out, sums, out)),
        "gelu_grad_gpu": (gelu_gpu.backward, (rows, inner, kernel)),
        "norm_gpu": (lambda *a: norm_gpu.forward(*a, norm.EPS), (out, scale, scale)),
        "norm_grad_gpu": (lambda *a: norm_gpu.backward(*a, norm.EPS), (out, scale, out, out)),
    }
    with jax.sharding.use_abstract_mesh(gpu_mesh):
        for name, (call, shapes) in calls.items():
            text = jax.jit(call).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()
            assert name in text
            assert "triton" in text
