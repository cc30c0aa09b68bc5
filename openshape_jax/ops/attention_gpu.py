"""Attention of all tokens to all tokens as Pallas kernels for NVIDIA GPUs (Triton), forward and backward.

The form is that of FlashAttention (arXiv 2205.14135 and 2307.08691): tiles of queries against tiles of keys,
the (T, T) weights stay in registers and are made again for the gradients. Two things fit it to this encoder:

- The kernels take the columns of the joint product for queries, keys and values as they are and write
  gradients into columns of the same order: nothing is cut apart, transposed or padded around them.
- Tokens are one class token and patches in whole tiles, 385 = 1 + 3 x 128. As a key the class token starts
  the running softmax, and as a query it is a tile of its own of 16 rows, so it costs no tile of 128.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from openshape_jax.ops.attention import HEAD_DIM
from openshape_jax.ops.slices_gpu import masked

TILE = 128  # rows of the side that a program keeps
FEW = 16  # rows of the class token's tile, the fewest that a matrix product takes
# Of each kernel: rows of the side that it goes through, warps, and steps that are under way at a time.
FORWARD, QUERY_GRAD, KEY_GRAD = (64, 4, 3), (64, 8, 3), (32, 4, 3)
SCALE = HEAD_DIM**-0.5 * math.log2(math.e)  # from a product of query and key to a logit of base 2

Power = Callable[[Array, Array], Array]


def forward(
    qkv: Float[Array, "B T 3HD"], interpret: bool = False
) -> tuple[Float[Array, "B T HD"], Float[Array, "B H T"]]:
    """(`attention.plain` of heads of width 64 in the columns (3, H, 64), log2 of the sums of 2^logits).

    Args:
      qkv: any number T of tokens; products are made in its type, the softmax in float32.
      interpret: run on any platform by Pallas' interpreter, for tests.
    """
    b, t, width = qkv.shape
    heads = width // (3 * HEAD_DIM)
    return pl.pallas_call(
        functools.partial(_forward_kernel, tokens=t, step=FORWARD[0], power=_power(interpret)),
        (
            jax.ShapeDtypeStruct((b, t, heads * HEAD_DIM), qkv.dtype),
            jax.ShapeDtypeStruct((b, heads, t), jnp.float32),
        ),
        grid=(_tiles(t) + 1, heads, b),
        in_specs=[_columns(t, part * heads) for part in range(3)],
        out_specs=(_columns(t), _numbers(t)),
        compiler_params=_params(FORWARD),
        interpret=interpret,
        name="attention_gpu",
    )(qkv, qkv, qkv)


def backward(
    qkv: Float[Array, "B T 3HD"],
    out: Float[Array, "B T HD"],
    sums: Float[Array, "B H T"],
    g: Float[Array, "B T HD"],
    interpret: bool = False,
) -> Float[Array, "B T 3HD"]:
    """The gradient to qkv, from what `forward` returned and the gradient g to its first part."""
    b, t, width = qkv.shape
    heads = width // (3 * HEAD_DIM)
    qkv_columns = [_columns(t, part * heads) for part in range(3)]
    grid = (_tiles(t) + 1, heads, b)
    # Every program takes all columns of the result, and writes those of its head.
    result = pl.BlockSpec((None, t, width), lambda i, h, b: (b, 0, 0))
    grads, means = pl.pallas_call(
        functools.partial(_query_kernel, tokens=t, step=QUERY_GRAD[0], power=_power(interpret)),
        (jax.ShapeDtypeStruct(qkv.shape, qkv.dtype), jax.ShapeDtypeStruct(sums.shape, jnp.float32)),
        in_specs=[*qkv_columns, _columns(t), _columns(t), _numbers(t)],
        out_specs=(result, _numbers(t)),
        grid=grid,
        compiler_params=_params(QUERY_GRAD),
        interpret=interpret,
        name="attention_query_grad_gpu",
    )(qkv, qkv, qkv, out, g, sums)
    return pl.pallas_call(
        functools.partial(_key_kernel, tokens=t, step=KEY_GRAD[0], heads=heads, power=_power(interpret)),
        jax.ShapeDtypeStruct(qkv.shape, qkv.dtype),
        in_specs=[*qkv_columns, _columns(t), _numbers(t), _numbers(t), result],
        out_specs=result,
        input_output_aliases={6: 0},  # which has the gradients to the queries
        grid=grid,
        compiler_params=_params(KEY_GRAD),
        interpret=interpret,
        name="attention_key_grad_gpu",
    )(qkv, qkv, qkv, g, sums, means, grads)


def _params(settings: tuple[int, int, int]) -> plgpu.CompilerParams:
    return plgpu.CompilerParams(num_warps=settings[1], num_stages=settings[2])


def _tiles(tokens: int) -> int:
    return -(-(tokens - 1) // _tile(tokens))


def _tile(tokens: int) -> int:
    return min(TILE, max(FEW, pl.next_power_of_2(tokens - 1)))


def _columns(tokens: int, first: int = 0) -> pl.BlockSpec:
    """All tokens of one shape, and the columns of one head."""
    return pl.BlockSpec((None, tokens, HEAD_DIM), lambda i, h, b: (b, 0, first + h))


def _numbers(tokens: int) -> pl.BlockSpec:
    """A number of each token of one head."""
    return pl.BlockSpec((None, None, tokens), lambda i, h, b: (b, h, 0))


def _each_tile(tokens: int, run: Callable[[Array | int, int, int | None], None]) -> None:
    """run(first row, rows, how many of all tokens there are or None if the rows are all there) for this
    program's tile: one of the patches', or the class token's."""
    tile, program = _tile(tokens), pl.program_id(0)
    limit = tokens if (tokens - 1) % tile else None
    pl.when(program < _tiles(tokens))(lambda: run(1 + program * tile, tile, limit))
    pl.when(program == _tiles(tokens))(lambda: run(0, FEW, 1))


def _over_steps(tokens: int, step: int, body: Callable, start: tuple[Array, ...]) -> tuple[Array, ...]:
    """body(first row, rows, limit or None, carry) -> carry over all tokens but the class token."""
    rows = min(step, _tile(tokens))
    limit = tokens if (tokens - 1) % rows else None
    count = -(-(tokens - 1) // rows)
    return jax.lax.fori_loop(0, count, lambda i, carry: body(1 + i * rows, rows, limit, carry), start)


def _mask(first: Array | int, rows: int, limit: int | None) -> Any:
    """Which rows are there; None for all of them."""
    return None if limit is None else first + jnp.arange(rows) < limit


def _load(ref, first: Array | int, rows: int, limit: int | None) -> Array:
    """Rows of ref, with zeros from row `limit` on."""
    mask = _mask(first, rows, limit)
    if mask is not None and len(ref.shape) == 2:
        mask = mask[:, None]
    at = ref.at[masked(first, rows)] if len(ref.shape) == 1 else ref.at[masked(first, rows), :]
    return plgpu.load(at, mask=mask, other=None if mask is None else 0.0)


def _store(
    ref, first: Array | int, rows: int, limit: int | None, value: Array, columns: Any = slice(None)
) -> None:
    mask = _mask(first, rows, limit)
    if len(ref.shape) == 1:
        plgpu.store(ref.at[masked(first, rows)], value, mask=mask)
    else:
        mask = None if mask is None else mask[:, None]
        plgpu.store(ref.at[masked(first, rows), columns], value.astype(ref.dtype), mask=mask)


def _class_row(ref) -> Array:
    return ref[0, :].astype(jnp.float32)


def _power(interpret: bool) -> Power:
    """(x, y that broadcasts to it) -> 2^(SCALE x - y): a multiply-add and an instruction for the power, whose
    results below 2^-126 are 0 (not the interpreter's)."""
    if interpret:
        return lambda x, y: jnp.exp2(x * SCALE - y)
    # jnp.exp2 takes care of results below 2^-126, with three operations beside each power, and Triton
    # does not join the product and the difference: half as many operations again for the whole softmax.
    bits = np.float32(SCALE).view(np.uint32)
    asm = f"{{ .reg .f32 t; fma.rn.ftz.f32 t, $1, 0f{bits:08X}, $2; ex2.approx.ftz.f32 $0, t; }}"

    def power(x: Array, y: Array) -> Array:
        shape = jax.ShapeDtypeStruct(x.shape, jnp.float32)
        (made,) = plgpu.elementwise_inline_asm(
            asm,
            args=[x, jnp.broadcast_to(-y, x.shape)],
            constraints="=f,f,f",
            pack=1,
            result_shape_dtypes=[shape],
        )
        return made

    return power


def _forward_kernel(q_ref, k_ref, v_ref, out_ref, sums_ref, *, tokens: int, step: int, power: Power):
    def run(first, rows, limit):
        q = _load(q_ref, first, rows, limit)
        top = jnp.sum(q.astype(jnp.float32) * _class_row(k_ref)[None], axis=1) * SCALE
        out = jnp.broadcast_to(_class_row(v_ref)[None], (rows, HEAD_DIM))

        def body(key, count, last, carry):
            out, top, total = carry
            k, v = _load(k_ref, key, count, last), _load(v_ref, key, count, last)
            products = plgpu.dot(q, k, trans_b=True)
            if last is not None:
                products = jnp.where(_mask(key, count, last)[None], products, -jnp.inf)
            new = jnp.maximum(top, jnp.max(products, axis=1) * SCALE)
            weights, before = power(products, new[:, None]), jnp.exp2(top - new)
            out = out * before[:, None] + plgpu.dot(weights.astype(v.dtype), v)
            return out, new, total * before + jnp.sum(weights, axis=1)

        out, top, total = _over_steps(tokens, step, body, (out, top, jnp.ones(rows, jnp.float32)))
        _store(out_ref, first, rows, limit, out / total[:, None])
        _store(sums_ref, first, rows, limit, top + jnp.log2(total))

    _each_tile(tokens, run)


def _query_kernel(
    q_ref, k_ref, v_ref, out_ref, g_ref, sums_ref, grad_ref, mean_ref, *, tokens: int, step: int, power: Power
):
    """The gradients to a tile of queries, and for each of them the mean over its keys of the gradient to the
    logits' weights, which the gradients to the keys need too."""
    column = pl.program_id(1) * HEAD_DIM

    def run(first, rows, limit):
        q, g = _load(q_ref, first, rows, limit), _load(g_ref, first, rows, limit)
        wide = g.astype(jnp.float32)
        mean = jnp.sum(wide * _load(out_ref, first, rows, limit).astype(jnp.float32), axis=1)
        sums = _load(sums_ref, first, rows, limit)
        class_k = _class_row(k_ref)[None]
        products = jnp.sum(q.astype(jnp.float32) * class_k, axis=1)
        slope = power(products, sums) * (jnp.sum(wide * _class_row(v_ref)[None], axis=1) - mean)

        def body(key, count, last, carry):
            k, v = _load(k_ref, key, count, last), _load(v_ref, key, count, last)
            weights = power(plgpu.dot(q, k, trans_b=True), sums[:, None])
            slope = weights * (plgpu.dot(g, v, trans_b=True) - mean[:, None])
            if last is not None:
                slope = jnp.where(_mask(key, count, last)[None], slope, 0)
            return (carry[0] + plgpu.dot(slope.astype(k.dtype), k),)

        (grad,) = _over_steps(tokens, step, body, (slope[:, None] * class_k,))
        _store(grad_ref, first, rows, limit, grad * HEAD_DIM**-0.5, pl.ds(column, HEAD_DIM))
        _store(mean_ref, first, rows, limit, mean)

    _each_tile(tokens, run)


def _key_kernel(
    q_ref,
    k_ref,
    v_ref,
    g_ref,
    sums_ref,
    mean_ref,
    _,
    grad_ref,
    *,
    tokens: int,
    step: int,
    heads: int,
    power: Power,
):
    """The gradients to a tile of keys and values; here the queries go by."""
    head = pl.program_id(1)

    def run(first, rows, limit):
        k, v = _load(k_ref, first, rows, limit), _load(v_ref, first, rows, limit)
        class_q, class_g = _class_row(q_ref)[None], _class_row(g_ref)[None]
        products = jnp.sum(k.astype(jnp.float32) * class_q, axis=1)
        weights = power(products, sums_ref[0])
        slope = weights * (jnp.sum(v.astype(jnp.float32) * class_g, axis=1) - mean_ref[0])

        def body(query, count, last, carry):
            grad_k, grad_v = carry
            q, g = _load(q_ref, query, count, last), _load(g_ref, query, count, last)
            sums, mean = _load(sums_ref, query, count, last), _load(mean_ref, query, count, last)
            weights = power(plgpu.dot(k, q, trans_b=True), sums[None])
            slope = weights * (plgpu.dot(v, g, trans_b=True) - mean[None])
            # Queries that are not there are zero, and so are their g.
            grad_v = grad_v + plgpu.dot(weights.astype(g.dtype), g)
            return grad_k + plgpu.dot(slope.astype(q.dtype), q), grad_v

        begin = (slope[:, None] * class_q, weights[:, None] * class_g)
        grad_k, grad_v = _over_steps(tokens, step, body, begin)
        for part, grad in ((1, grad_k * HEAD_DIM**-0.5), (2, grad_v)):
            column = (part * heads + head) * HEAD_DIM
            _store(grad_ref, first, rows, limit, grad, pl.ds(column, HEAD_DIM))

    _each_tile(tokens, run)
