"""Attention: every form against NumPy, gradients too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from openshape_jax import sharding
from openshape_jax.ops import attention as public
from openshape_jax.ops.attention import LONG, first_attention, head_by_head, plain, self_attention


def oracle(q, k, v):
    out = np.zeros(q.shape)
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            logits = q[b, :, h].astype(np.float64) @ k[b, :, h].T / np.sqrt(q.shape[-1])
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            out[b, :, h] = weights / weights.sum(-1, keepdims=True) @ v[b, :, h]
    return out


def draw(tokens, dtype=np.float32):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(2, tokens, 3, 16)), dtype) for _ in range(3)]


def by_head(q, k, v):
    columns = jnp.stack((q, k, v), 2).reshape(*q.shape[:2], -1)
    return head_by_head(q.shape[2], columns).reshape(q.shape)


@pytest.mark.parametrize("form", [plain, by_head, public])
@pytest.mark.parametrize("tokens", [1, 7, LONG + 5])
def test_every_form_equals_the_definition(form, tokens):
    q, k, v = draw(tokens)
    np.testing.assert_allclose(jax.jit(form)(q, k, v), oracle(*map(np.asarray, (q, k, v))), atol=1e-5)


def loss(form, *arrays):
    return (form(*arrays).astype(jnp.float32) ** 2).sum()


# Of a width whose root is no power of two, scaling in half precision would round once more.
@pytest.mark.parametrize(
    ("dtype", "width", "tolerance"),
    [("float32", 16, 1e-5), ("float32", 20, 1e-5), ("bfloat16", 20, 5e-3), ("float16", 20, 7e-4)],
)
def test_gradients_are_those_of_the_definition_in_float32(dtype, width, tolerance):
    arrays = [x.astype(dtype) for x in jax.random.normal(jax.random.key(0), (3, 2, 20, 3, width))]
    slopes = jax.jit(jax.grad(loss, argnums=(1, 2, 3)), static_argnums=0)
    exact = slopes(plain, *(x.astype(jnp.float32) for x in arrays))
    for mine, right in zip(slopes(by_head, *arrays), exact, strict=True):
        assert mine.dtype == dtype
        difference = np.linalg.norm(mine.astype(jnp.float32) - right)
        assert difference < tolerance * np.linalg.norm(right)


@pytest.mark.parametrize("padding", [0, 3])
def test_columns_side_by_side_equal_the_definition_with_its_gradients(padding):
    q, k, v = draw(LONG + 5)
    qkv = jnp.stack((q, k, v), 2).reshape(2, LONG + 5, -1)
    qkv = jnp.pad(qkv, ((0, 0), (0, padding), (0, 0)), constant_values=9.0)

    def ours(qkv):
        return self_attention(qkv, 3, LONG + 5)[:, : LONG + 5]

    def definition(qkv):
        parts = jnp.moveaxis(qkv[:, : LONG + 5].reshape(2, LONG + 5, 3, 3, 16), 2, 0)
        return plain(*parts).reshape(2, LONG + 5, -1)

    got, pull = jax.vjp(jax.jit(ours), qkv)
    wanted, pull_definition = jax.vjp(definition, qkv)
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    np.testing.assert_allclose(pull(got)[0], pull_definition(got)[0], atol=1e-5)


def test_a_head_at_a_time_works_within_shard_map():
    mesh = sharding.make_mesh(devices=jax.devices()[:2])
    qkv = jnp.stack(draw(LONG), 2).reshape(2, LONG, -1)
    rows = jax.sharding.PartitionSpec(mesh.axis_names)
    run = jax.shard_map(lambda x: head_by_head(3, x), mesh=mesh, in_specs=rows, out_specs=rows)
    np.testing.assert_allclose(jax.jit(run)(qkv), head_by_head(3, qkv), atol=1e-6)


@pytest.mark.parametrize("tokens", [40, LONG + 5])
def test_bfloat16_keeps_a_float32_softmax(tokens):
    q, k, v = draw(tokens, jnp.bfloat16)
    out = jax.jit(public)(q * 8, k * 8, v)
    assert out.dtype == jnp.bfloat16
    expected = oracle(*(np.asarray(x.astype(jnp.float32)) for x in (q * 8, k * 8, v)))
    np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=0.03)


# Rows after the sixth are padding: they have numbers, and nobody may attend to them.
@pytest.mark.parametrize("tokens", [6, 9])
def test_the_first_of_all_equals_attention_with_its_gradients(tokens):
    rng, heads = np.random.default_rng(0), 3
    x, kernel = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 9, 20), (20, 3 * heads * 16)))

    def definition(x, kernel):
        q, k, v = jnp.moveaxis((x[:, :tokens] @ kernel).reshape(2, tokens, 3, heads, 16), 2, 0)
        return plain(q, k, v)[:, 0].reshape(2, -1)

    wanted, pull = jax.vjp(definition, x, kernel)
    got, pull_ours = jax.vjp(jax.jit(lambda x, kernel: first_attention(x, kernel, heads, tokens)), x, kernel)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    g = jnp.asarray(rng.normal(size=got.shape), jnp.float32)
    for one, other in zip(pull_ours(g), pull(g), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
