"""The pre-norm transformer of PointBERT, each platform's programs from one set of weights."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from openshape_jax.config import ModelConfig
from openshape_jax.ops.attention import HEAD_DIM, first_attention, pair_heads, pairs_heads, self_attention
from openshape_jax.ops.norm import add_norm, layer_norm
from openshape_jax.ops.placement import platform, split_rows

SUBLANES = 8  # rows of a TPU's registers


def uniform(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int) -> Array:
    """Uniform in +-1 / sqrt(fan_in), float32: torch's default for Linear and Conv, weight and bias alike."""
    bound = fan_in**-0.5
    return jax.random.uniform(rngs.params(), shape, jnp.float32, -bound, bound)


class Transformer(nnx.Module):
    """Pre-norm blocks whose parameters are stacked along a leading depth axis and scanned, so that
    compile time does not grow with depth."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        depth, dim, inner, mlp = config.depth, config.dim, config.heads * HEAD_DIM, config.mlp_dim
        self.norm1_scale = nnx.Param(jnp.ones((depth, dim)))
        self.norm1_bias = nnx.Param(jnp.zeros((depth, dim)))
        self.qkv = nnx.Param(uniform(rngs, (depth, dim, 3 * inner), dim))
        self.out_kernel = nnx.Param(uniform(rngs, (depth, inner, dim), inner))
        self.out_bias = nnx.Param(uniform(rngs, (depth, dim), inner))
        self.norm2_scale = nnx.Param(jnp.ones((depth, dim)))
        self.norm2_bias = nnx.Param(jnp.zeros((depth, dim)))
        self.up_kernel = nnx.Param(uniform(rngs, (depth, dim, mlp), dim))
        self.up_bias = nnx.Param(uniform(rngs, (depth, mlp), dim))
        self.down_kernel = nnx.Param(uniform(rngs, (depth, mlp, dim), mlp))
        self.down_bias = nnx.Param(uniform(rngs, (depth, dim), mlp))

    def __call__(
        self, tokens: Float[Array, "B T D"], paths: Float[Array, "depth 2 B"] | None = None
    ) -> Float[Array, "B D"]:
        """The first token after all blocks; in the last block no other token is wanted, and none is made."""
        c, count = self.config, tokens.shape[1]
        weights = {k: v[...] for k, v in vars(self).items() if isinstance(v, nnx.Param)}

        where = platform(tokens)
        # What is cheaper to compute again than to keep; on CPUs and GPUs the GELU alone. In a loop nothing
        # could be shared with the first time, and a TPU fuses more when it is not told to keep both apart.
        looped = functools.partial(jax.checkpoint, prevent_cse=False)
        curve = _gelu_by_tanh if where == "gpu" and c.dtype != "float32" else _gelu
        again, gelu = (looped, looped(curve)) if where == "tpu" else (_as_is, jax.checkpoint(curve))
        paired = pairs_heads(where, c.dtype, c.heads, count)

        def norm(x, branch, scale, shift):
            """(x + branch, products(kernel, bias, rows) of the norm of it)"""
            if where == "gpu":
                x, normed = add_norm(x, branch, scale, shift)
                return x, lambda *to, rows=slice(None): dense(normed[:, rows], *to)
            x = x if branch is None else x + branch
            return x, lambda *to, rows=slice(None): again(_norm_dense)(x[:, rows], scale, shift, *to)

        def block(carry, layer, mix):
            w, path = layer
            x, branch = carry
            a, b = (None, None) if path is None else path[..., None, None].astype(x.dtype)
            x, products = norm(x, branch, w["norm1_scale"], w["norm1_bias"])
            mixed = mix(products, w["qkv"])
            branch = _times(dense(mixed, w["out_kernel"], w["out_bias"]), a)
            x, products = norm(x[:, : mixed.shape[1]], branch, w["norm2_scale"], w["norm2_bias"])
            h = products(w["up_kernel"], w["up_bias"])
            h = again(lambda h, *to: dense(gelu(h), *to))(h, w["down_kernel"], w["down_bias"])
            h = _times(h, b)
            # On GPUs a sum is made where it is normed: by the next block.
            return (split_rows(x), split_rows(h)) if where == "gpu" else (split_rows(x + h), None)

        def of_all(products, kernel):
            return self_attention(products(kernel), c.heads, count, paired)

        def of_first(products, kernel):
            inner = c.heads * HEAD_DIM
            q = products(kernel[:, :inner], rows=slice(1))
            return first_attention(q, products(kernel[:, inner:], rows=slice(count)), c.heads)

        kept = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if c.remat_policy == "dots" else None
        step = functools.partial(jax.checkpoint, policy=kept) if c.remat else _as_is
        # Whole registers of tokens: else a TPU copies whatever is seen as (B·T, D) and as (B, T, D) in turn.
        spare = -count % SUBLANES if where == "tpu" else 0
        x = jnp.pad(tokens, ((0, 0), (0, spare), (0, 0))) if spare else tokens
        carry = (x, jnp.zeros_like(x) if where == "gpu" else None)
        layers = (weights, paths)
        if (depth := c.depth - 1) > 0:
            # A loop copies what it keeps for its backward pass: up to 1.7 times as slow on CPUs, 1.14 times
            # on GPUs; on TPUs 1.07 times (experiments/tpu_dryrun), where it compiles twice as fast.
            body = step(lambda carry, layer: block(carry, layer, of_all))
            first = jax.tree.map(lambda v: v[:-1], layers)
            if paired:
                first[0]["qkv"] = pair_heads(first[0]["qkv"])
            unroll = 1 if where == "tpu" else depth
            carry = jax.lax.scan(lambda now, layer: (body(now, layer), None), carry, first, unroll=unroll)[0]
        last = jax.tree.map(lambda v: v[-1], layers)
        x, branch = step(lambda carry, layer: block(carry, layer, of_first))(carry, last)
        return (x if branch is None else x + branch)[:, 0]


def _times(branch: Array, path: Float[Array, "B 1 1"] | None) -> Array:
    return branch if path is None else branch * path


def dense(
    x: Float[Array, "... F"], kernel: Float[Array, "F G"], bias: Float[Array, " G"] | None = None
) -> Float[Array, "... G"]:
    """x W + b in x's type, with leading axes flattened."""
    y = x.reshape(-1, x.shape[-1]) @ kernel.astype(x.dtype)
    if bias is not None:
        y = y + bias.astype(x.dtype)
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


def _as_is(fn: Callable[..., Any]) -> Callable[..., Any]:
    return fn


def _gelu(x: Array) -> Array:
    """Exact, by erf as PyTorch has it: jax.nn.gelu takes erfc, which costs more (experiments/tpu_dryrun)."""
    x32 = x.astype(jnp.float32)  # in bfloat16, 1 + erf would have nothing left of the negative tail
    return (0.5 * x32 * (1 + jax.lax.erf(x32 * np.float32(0.5**0.5)))).astype(x.dtype)


@jax.custom_vjp
def _gelu_by_tanh(x: Array) -> Array:
    """Within 5e-4 of it, a tenth of what bfloat16 rounds off: cuBLAS applies it to a product as it comes."""
    return jax.nn.gelu(x, approximate=True)


def _gelu_by_tanh_slope(x: Array, g: Array) -> tuple[Array]:
    x32 = x.astype(jnp.float32)
    rate, cubic = np.float32((2 / np.pi) ** 0.5), np.float32(0.044715)
    t = jnp.tanh(rate * (x32 + cubic * x32**3))
    slope = 0.5 * (1 + t) + 0.5 * x32 * (1 - t * t) * rate * (1 + 3 * cubic * x32 * x32)
    return ((g * slope).astype(x.dtype),)


_gelu_by_tanh.defvjp(lambda x: (_gelu_by_tanh(x), x), _gelu_by_tanh_slope)


def _norm_dense(x: Array, scale: Array, shift: Array, kernel: Array, bias: Array | None = None) -> Array:
    return dense(layer_norm(x, scale, shift), kernel, bias)
