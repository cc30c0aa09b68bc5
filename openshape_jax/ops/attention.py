"""Attention of all tokens to all tokens, and the choice of its form by platform."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from openshape_jax.ops.dispatch import has_kernels

LONG = 128  # tokens from which a CPU does better to take one head after the other


def attention(
    q: Float[Array, "B T H D"], k: Float[Array, "B T H D"], v: Float[Array, "B T H D"]
) -> Float[Array, "B T H D"]:
    """softmax(q k^T / sqrt(D)) v of every head; the softmax is float32 whatever the type.

    | where | form |
    |---|---|
    | float16 or bfloat16 on a GPU fit for it | cuDNN's fused attention: the (T, T) weights are never stored |
    | a CPU, from 128 tokens | head after head: the weights stay in its caches, made again for gradients |
    | anything else | plain XLA |
    """
    if q.dtype in (jnp.float16, jnp.bfloat16) and has_kernels("cuda"):
        return jax.lax.platform_dependent(q, k, v, cuda=_cudnn, default=plain)
    if jax.default_backend() == "cpu" and q.shape[1] >= LONG:
        return head_by_head(q, k, v)
    return plain(q, k, v)


def plain(q: Array, k: Array, v: Array) -> Array:
    """The definition, (B, T, H, D)."""
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(logits, axis=-1).astype(q.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def head_by_head(q: Array, k: Array, v: Array) -> Array:
    """The same, one head at a time; the batch axis stays whole, so it may be split over devices."""

    @jax.checkpoint
    def one(q, k, v):  # (B, T, D)
        return plain(q[:, :, None], k[:, :, None], v[:, :, None])[:, :, 0]

    heads = jax.lax.map(lambda qkv: one(*qkv), tuple(jnp.moveaxis(x, 2, 0) for x in (q, k, v)))
    return jnp.moveaxis(heads, 0, 2)


def _cudnn(q: Array, k: Array, v: Array) -> Array:
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
