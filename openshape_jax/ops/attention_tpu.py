"""Attention of all tokens to all tokens as Pallas kernels for TPUs (Mosaic), forward and backward.

A program takes two heads of one shape, the 128 lanes of a register, straight from the columns of the joint
product for queries, keys and values: nothing is transposed or copied in front of it, and the (T, T) weights
never leave VMEM. Instead of cutting the two heads apart, the other head's columns are set to zero, which
costs the matrix unit nothing as it is 128 wide anyway.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

LANES, HEAD_DIM = 128, 64
SCALE = HEAD_DIM**-0.5  # of the logits, a power of two
VMEM = 64 << 20  # bytes that the compiler may use


def forward(qkv: Float[Array, "B T 3HD"], tokens: int, interpret: bool = False) -> Float[Array, "B T HD"]:
    """`attention.plain` of heads of width 64, in the order of columns (heads / 2, query key value, 2, 64).

    Args:
      qkv: T at most 640.
      tokens: how many of the T keys there are; the rest is padding, and nobody attends to it.
      interpret: run on any platform by Pallas' interpreter, for tests.
    """
    b, t, width = qkv.shape
    pairs = width // (3 * LANES)
    return pl.pallas_call(
        functools.partial(_forward_kernel, tokens=tokens),
        jax.ShapeDtypeStruct((b, t, pairs * LANES), qkv.dtype),
        grid=(b, pairs),
        in_specs=[_columns(t, 3 * LANES)],
        out_specs=_columns(t, LANES),
        compiler_params=_params(),
        cost_estimate=_cost(qkv, 2),
        interpret=interpret,
        name="attention_tpu",
    )(qkv)


def backward(
    qkv: Float[Array, "B T 3HD"], g: Float[Array, "B T HD"], tokens: int, interpret: bool = False
) -> Float[Array, "B T 3HD"]:
    """The gradient to qkv, from the gradient to what `forward` returns; the weights are made again."""
    b, t, width = qkv.shape
    return pl.pallas_call(
        functools.partial(_backward_kernel, tokens=tokens),
        jax.ShapeDtypeStruct(qkv.shape, qkv.dtype),
        grid=(b, width // (3 * LANES)),
        in_specs=[_columns(t, 3 * LANES), _columns(t, LANES)],
        out_specs=_columns(t, 3 * LANES),
        compiler_params=_params(),
        cost_estimate=_cost(qkv, 5),
        interpret=interpret,
        name="attention_grad_tpu",
    )(qkv, g)


def _columns(t: int, width: int) -> pl.BlockSpec:
    """All tokens of one shape, and the columns of one pair of heads."""
    return pl.BlockSpec((1, t, width), lambda i, j: (i, 0, j))


def _cost(qkv: Array, products: int) -> pl.CostEstimate:
    b, t, width = qkv.shape
    heads = width // (3 * HEAD_DIM)
    flops = products * 2 * b * heads * t * t * HEAD_DIM
    return pl.CostEstimate(flops=flops, transcendentals=b * heads * t * t, bytes_accessed=2 * qkv.nbytes)


def _params() -> pltpu.CompilerParams:
    return pltpu.CompilerParams(dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=VMEM)


def _dot(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    dims = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def _without_padding(logits: Array, tokens: int, axis: int) -> Array:
    """The logits, those of keys from `tokens` on so low that their weights are 0."""
    if logits.shape[axis] == tokens:
        return logits
    return jnp.where(jax.lax.broadcasted_iota(jnp.int32, logits.shape, axis) < tokens, logits, -1e30)


def _mine(head: int, x: Array) -> Array:
    """Which columns of x belong to one of the two heads."""
    lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    return lane < HEAD_DIM if head == 0 else lane >= HEAD_DIM


def _parts(ref) -> list[Array]:
    """Queries, keys and values (T, 128)."""
    return [ref[0, :, part * LANES : (part + 1) * LANES] for part in range(3)]


def _forward_kernel(qkv_ref, out_ref, *, tokens: int):
    """qkv (1, T, 384), out (1, T, 128)."""
    q, k, v = _parts(qkv_ref)
    outs = []
    for head in range(2):
        logits = _dot(jnp.where(_mine(head, q), q, 0), k, (1, 1)) * SCALE
        logits = _without_padding(logits, tokens, 1)
        weights = jnp.exp(logits - logits.max(1, keepdims=True))
        total = weights.sum(1, keepdims=True)
        outs.append(_dot(weights.astype(v.dtype), v, (1, 0)) / total)
    out_ref[0] = jnp.where(_mine(0, outs[0]), *outs).astype(out_ref.dtype)


def _backward_kernel(qkv_ref, g_ref, out_ref, *, tokens: int):
    """qkv and out (1, T, 384), g (1, T, 128).

    The (T, T) arrays are keys by queries: their sums over keys need no lanes moved.
    """
    q, k, v = _parts(qkv_ref)
    q *= SCALE  # exact, and cheaper than a product with all logits
    g = g_ref[0]
    dqs, dks, dvs = [], [], []
    for head in range(2):
        mine = _mine(head, k)
        logits = _dot(jnp.where(mine, k, 0), q, (1, 1))
        logits = _without_padding(logits, tokens, 0)
        weights = jnp.exp(logits - logits.max(0, keepdims=True))
        weights *= 1 / weights.sum(0, keepdims=True)
        dvs.append(_dot(weights.astype(g.dtype), g, (1, 0)))
        slope = _dot(jnp.where(mine, v, 0), g, (1, 1))
        inner = (weights * slope).sum(0, keepdims=True)
        d_logits = (weights * (slope - inner)).astype(q.dtype)
        dks.append(_dot(d_logits, q, (1, 0)))
        dqs.append(_dot(d_logits, k, (0, 0)) * SCALE)
    for part, both in enumerate((dqs, dks, dvs)):
        columns = slice(part * LANES, (part + 1) * LANES)
        out_ref[0, :, columns] = jnp.where(_mine(0, both[0]), *both).astype(out_ref.dtype)
