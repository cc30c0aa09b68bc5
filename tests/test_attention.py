"""Attention: every form against NumPy, gradients too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from openshape_jax.ops import attention as public
from openshape_jax.ops.attention import LONG, first_attention, head_by_head, plain


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


def test_gradients_of_the_forms_agree():
    arrays = draw(20)
    grads = [
        jax.grad(lambda *a, f=f: (f(*a) ** 2).sum(), argnums=(0, 1, 2))(*arrays) for f in (plain, by_head)
    ]
    for a, b in zip(*grads, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_bfloat16_keeps_a_float32_softmax():
    q, k, v = draw(40, jnp.bfloat16)
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
