"""Attention of all tokens to all tokens, and the choice of its form by platform."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from openshape_jax.ops.dispatch import by_device, gpu_kernels, has_kernels
from openshape_jax.ops.placement import platform

MAX_TOKENS = 640  # of the kernel for TPUs: the weights of a head stay in VMEM
HALF = (jnp.float16, jnp.bfloat16)
HEAD_DIM = 64  # of the encoder and of the kernels
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
    if q.dtype in HALF and has_kernels("cuda"):
        return jax.lax.platform_dependent(q, k, v, cuda=_cudnn, default=plain)
    if _in_turn(q):
        columns = jnp.stack((q, k, v), 2).reshape(*q.shape[:2], -1)
        return head_by_head(q.shape[2], columns).reshape(q.shape)
    return plain(q, k, v)


def _in_turn(x: Float[Array, "B T ..."]) -> bool:
    """Whether one head is taken after the other."""
    return platform(x) == "cpu" and x.shape[1] >= LONG


def pairs_heads(where: str, dtype: str, heads: int, tokens: int) -> bool:
    """Whether `self_attention` is a kernel on this platform, which takes the columns of `pair_heads`."""
    fits = dtype == "bfloat16" and heads % 2 == 0 and tokens <= MAX_TOKENS
    return fits and where == "tpu" and has_kernels("tpu")


def pair_heads(kernel: Float[Array, "... 3HD"]) -> Float[Array, "... 3HD"]:
    """The columns (3, heads, 64) of queries, keys and values in the order (heads / 2, 3, 2, 64)."""
    parts = kernel.reshape(*kernel.shape[:-1], 3, -1, 128)
    return jnp.swapaxes(parts, -3, -2).reshape(kernel.shape)


def self_attention(
    qkv: Float[Array, "B T 3HD"], heads: int, tokens: int, paired: bool = False
) -> Float[Array, "B T HD"]:
    """`attention` of queries, keys and values that stand beside each other in the columns (3, heads, D).

    Args:
      tokens: how many at the front take part; to the rest nobody attends, and what it becomes has no meaning.
      paired: the columns are those of `pair_heads`, and `pairs_heads` is true: a kernel takes them as they
      are.

    On GPUs fit for it a kernel takes float16 or bfloat16 columns of heads of width 64 without `pair_heads`.
    """
    if paired:
        return _tpu(tokens, qkv)
    b, t, width = qkv.shape
    fits = qkv.dtype in HALF and width == 3 * HEAD_DIM * heads and 1 < tokens == t
    if fits and gpu_kernels(qkv):
        return _gpu(qkv)
    own = qkv[:, :tokens]
    if _in_turn(own):
        out = head_by_head(heads, own)
    else:
        q, k, v = jnp.moveaxis(own.reshape(b, tokens, 3, heads, -1), 2, 0)
        out = attention(q, k, v).reshape(b, tokens, -1)
    return out if t == tokens else jnp.pad(out, ((0, 0), (0, t - tokens), (0, 0)))


def first_attention(
    x: Float[Array, "B T C"], kernel: Float[Array, "C 3HD"], heads: int, tokens: int
) -> Float[Array, "B HD"]:
    """`attention` of the first of T tokens to all of them, of which `tokens` at the front take part.

    For a single query keys and values need not be made: q (x K)^T = (q K^T) x^T, and w (x V) = (w x) V.

    Args:
      kernel: makes queries, keys and values of x, which stand beside each other in the columns (3, H, D).
    """
    q, k, v = jnp.moveaxis(kernel.astype(x.dtype).reshape(len(kernel), 3, heads, -1), 1, 0)
    query = jnp.einsum("bc,chd->bhd", x[:, 0], q)
    query = jnp.einsum("bhd,chd->bhc", query, k)
    mixed = _mix(tokens, query * q.shape[-1] ** -0.5, x)
    return jnp.einsum("bhc,chd->bhd", mixed, v).reshape(len(x), -1)


def _mix_run(tokens: int, query: Float[Array, "B H C"], x: Float[Array, "B T C"]) -> Float[Array, "B H C"]:
    """softmax(query x^T) x over the first `tokens` rows of x."""
    return _mix_forward(tokens, query, x)[0]


def _mix_forward(tokens: int, query: Array, x: Array) -> tuple[Array, tuple[Array, ...]]:
    logits = jnp.einsum("bhc,btc->bht", query, x, preferred_element_type=jnp.float32)
    if tokens < x.shape[1]:
        logits = jnp.where(jnp.arange(x.shape[1]) < tokens, logits, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1)
    return jnp.einsum("bht,btc->bhc", weights.astype(x.dtype), x), (query, x, weights)


def _mix_backward(tokens: int, kept: tuple[Array, ...], g: Array) -> tuple[Array, Array]:
    """The gradients to query and x; the latter, as large as x, is one product for both places of x."""
    query, x, weights = kept
    slope = jnp.einsum("bhc,btc->bht", g, x, preferred_element_type=jnp.float32)
    slope = weights * (slope - (weights * slope).sum(-1, keepdims=True))
    left = jnp.concatenate((slope, weights), 1).astype(x.dtype)
    to_x = jnp.einsum("bkt,bkc->btc", left, jnp.concatenate((query, g), 1))
    return jnp.einsum("bht,btc->bhc", left[:, : query.shape[1]], x), to_x


_mix = jax.custom_vjp(_mix_run, nondiff_argnums=(0,))
_mix.defvjp(_mix_forward, _mix_backward)


def plain(q: Array, k: Array, v: Array) -> Array:
    """The definition, (B, T, H, D)."""
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(logits, axis=-1).astype(q.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def _head_by_head(heads: int, qkv: Float[Array, "B T 3HD"]) -> Float[Array, "B T HD"]:
    """The same of the columns (3, heads, D), one head at a time.

    A head's columns are taken from and put into the whole: heads in front would be two copies of everything.
    The batch axis stays whole, so it may be split over devices.
    """
    width = qkv.shape[2] // (3 * heads)

    def head(out: Array, i: Array) -> tuple[Array, None]:
        q, k, v = (_take(qkv, width, i + part * heads) for part in range(3))
        weights, total = _softmax(_product(q, _turn(k)) * width**-0.5, axis=2)
        return _put(out, _product(weights.astype(v.dtype), v) / total, i), None

    return jax.lax.scan(head, jnp.zeros_like(qkv[..., : heads * width]), jnp.arange(heads))[0]


def _softmax(logits: Float[Array, "B T T"], axis: int) -> tuple[Array, Array]:
    """(weights, the sum along the axis by which they are still to be divided)"""
    weights = jnp.exp(logits - logits.max(axis, keepdims=True))
    return weights, weights.sum(axis, keepdims=True)


def _backward(heads: int, qkv: Array, g: Array) -> tuple[Array]:
    """The gradients from queries, keys and values alone.

    The softmax is made again, its sums too: kept, they would be a second result of the forward pass, of
    which YNNPACK then makes no single operation in float32 (in half types, and before jaxlib 0.11, that
    gains and costs next to nothing). Everything of size (T, T) is made transposed, keys first: then no
    product has to turn one of them, which takes a CPU as long as the product itself.
    """
    width = g.shape[2] // heads
    scale = width**-0.5
    g = jax.lax.optimization_barrier(g)  # of a constant YNNPACK would make wrong products: see runtime.py

    def head(columns: Array, i: Array) -> tuple[Array, None]:
        q, k, v = (_take(columns, width, i + part * heads) for part in range(3))
        slope = _take(g, width, i)
        weights, total = _softmax(_product(k, _turn(q)) * scale, axis=1)  # (B, keys, queries)
        weights = weights * (1 / total)
        dv = _product(weights.astype(g.dtype), slope)
        to_weights = _product(v, _turn(slope))
        inner = (weights * to_weights).sum(1, keepdims=True)
        d_logits = (weights * (to_weights - inner)).astype(q.dtype)
        dk = _product(d_logits, q) * scale
        dq = _product(_turn(k), d_logits) * scale
        if q.dtype == jnp.float32:  # or else XLA turns d_logits and not this; in half types that is as fast
            dq = jax.lax.optimization_barrier(dq)
        for part, slope in enumerate((_turn(dq), dk, dv)):  # each in the place of what it is of
            columns = _put(columns, slope, i + part * heads)
        return columns, None

    return (jax.lax.scan(head, qkv, jnp.arange(heads))[0],)


head_by_head = jax.custom_vjp(_head_by_head, nondiff_argnums=(0,))
head_by_head.defvjp(lambda heads, qkv: (_head_by_head(heads, qkv), qkv), _backward)


def _take(x: Float[Array, "B T NHD"], width: int, place: Array) -> Float[Array, "B T D"]:
    """The columns of one head, D = width."""
    return jax.lax.dynamic_slice_in_dim(x, place * width, width, 2)


def _put(x: Float[Array, "B T NHD"], head: Float[Array, "B T D"], place: Array) -> Float[Array, "B T NHD"]:
    """x with the columns of one head set."""
    return jax.lax.dynamic_update_slice_in_dim(x, head.astype(x.dtype), place * head.shape[2], 2)


def _turn(x: Array) -> Array:
    return jnp.swapaxes(x, -1, -2)


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def _cudnn(q: Array, k: Array, v: Array) -> Array:
    b, t = q.shape[:2]
    if t % 2 == 0:
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    # An odd number of tokens has no gradient in cuDNN.
    q, k, v = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (q, k, v))
    there = jnp.full(b, t, jnp.int32)
    return jax.nn.dot_product_attention(
        q, k, v, query_seq_lengths=there, key_value_seq_lengths=there, implementation="cudnn"
    )[:, :t]


@jax.custom_vjp
def _gpu(qkv: Array) -> Array:
    return _gpu_forward(qkv)[0]


def _gpu_forward(qkv: Array) -> tuple[Array, tuple[Array, ...]]:
    from openshape_jax.ops import attention_gpu  # here, as importing Pallas takes a quarter of a second

    out, sums = by_device(attention_gpu.forward)(qkv)
    return out, (qkv, out, sums)


def _gpu_backward(kept: tuple[Array, ...], g: Array) -> tuple[Array]:
    from openshape_jax.ops import attention_gpu

    return (by_device(attention_gpu.backward)(*kept, g),)


_gpu.defvjp(_gpu_forward, _gpu_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tpu(tokens: int, qkv: Array) -> Array:
    from openshape_jax.ops import attention_tpu  # here, as importing Pallas takes a quarter of a second

    return by_device(functools.partial(attention_tpu.forward, tokens=tokens))(qkv)


def _tpu_backward(tokens: int, qkv: Array, g: Array) -> tuple[Array]:
    from openshape_jax.ops import attention_tpu

    return (by_device(functools.partial(attention_tpu.backward, tokens=tokens))(qkv, g),)


_tpu.defvjp(lambda tokens, qkv: (_tpu(tokens, qkv), qkv), _tpu_backward)
