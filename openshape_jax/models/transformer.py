"""The pre-norm transformer of PointBERT, each platform's programs from one set of weights."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from openshape_jax.config import ModelConfig
from openshape_jax.ops import gelu
from openshape_jax.ops.attention import HEAD_DIM, first_attention, pair_heads, pairs_heads, self_attention
from openshape_jax.ops.dense import add_bias, dense
from openshape_jax.ops.norm import add, add_norm, norm_kernel
from openshape_jax.ops.placement import platform, split_rows

SUBLANES = 8  # rows of a TPU's registers


def uniform(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int) -> Array:
    """Uniform in +-1 / sqrt(fan_in), float32: torch's default for Linear and Conv, weight and bias alike."""
    bound = fan_in**-0.5
    return jax.random.uniform(rngs.params(), shape, jnp.float32, -bound, bound)


class Transformer(nnx.Module):
    """Pre-norm blocks whose parameters are stacked along a leading depth axis."""

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
        # Whole registers on TPUs: what is seen as (B R, D) and as (B, R, D) in turn is not copied.
        padding = -count % SUBLANES if platform(tokens) == "tpu" else 0
        x = jnp.pad(tokens, ((0, 0), (0, padding), (0, 0))).reshape(-1, c.dim)
        form = _Form.of(c, x, len(tokens), count, paths is not None)
        # The first block has nothing to add yet, but is given as much as the others.
        carry, bias = (x, jnp.zeros_like(x) if form.late else None), None
        if form.late_bias:
            # That of the block before comes with a block's own weights: handed on with the rows, its gradient
            # would be exchanged once a block.
            bias, none = weights["down_bias"][-1], jnp.zeros((1, c.dim))
            weights["before_bias"] = jnp.concatenate([none, weights["down_bias"][:-1]])
        kept = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if c.remat_policy == "dots" else None
        step = functools.partial(jax.checkpoint, policy=kept) if c.remat else _as_is
        layers = (weights, paths)
        if (depth := c.depth - 1) > 0:
            # A loop copies what it keeps for its backward pass: up to 1.7 times as slow on CPUs, 1.14 times
            # on GPUs, 1.2 times on TPUs (experiments/tpu_dryrun).
            body, first = step(form.block), jax.tree.map(lambda v: v[:-1], layers)
            carry = jax.lax.scan(lambda now, layer: (body(now, layer), None), carry, first, unroll=depth)[0]
        final = functools.partial(form.block, last=True)
        x, added = step(final)(carry, jax.tree.map(lambda v: v[-1], layers))
        return add(x, added, bias)


# (rows (B R, D), what is still to be added to them)
Carry = tuple[Array, Array | None]


@dataclass(frozen=True)
class _Form:
    """A block as a platform does it, on rows (B R, D): the R rows of a cloud are its tokens, then padding."""

    platform: str
    heads: int
    clouds: int  # B
    tokens: int  # of each cloud
    paired: bool  # attention is a kernel that takes the columns of `pair_heads`
    late: bool  # a sum is made where it is normed
    late_bias: bool  # the bias added too: its gradient is a sum over rows, made by the norm's kernel

    @classmethod
    def of(
        cls, config: ModelConfig, x: Float[Array, "R D"], clouds: int, tokens: int, has_paths: bool
    ) -> _Form:
        c, where = config, platform(x)
        # Computed again for gradients, a block keeps its sum alone.
        late = norm_kernel(x) is not None and not c.remat
        return cls(
            platform=where,
            heads=c.heads,
            clouds=clouds,
            tokens=tokens,
            paired=pairs_heads(where, c.dtype, c.heads, tokens),
            late=late,
            late_bias=late and not has_paths,
        )

    def block(self, carry: Carry, layer: tuple[dict[str, Array], Array | None], last: bool = False) -> Carry:
        """Attention and MLP; of the last block the first token of each cloud alone, (B, D)."""
        w, paths = layer
        if self.platform == "tpu":
            w = {k: _apart(v.astype(carry[0].dtype)) if v.ndim == 2 else v for k, v in w.items()}
        to_attention, to_mlp = (None, None) if paths is None else paths
        x, added = carry
        x, normed = add_norm(x, added, w["norm1_scale"], w["norm1_bias"], w.get("before_bias"))
        if last:
            mixed = first_attention(self.by_cloud(normed), w["qkv"], self.heads, self.tokens)
        else:
            mixed = self.attend(normed, w["qkv"])
        added, bias = self.branch(dense(mixed, w["out_kernel"]), w["out_bias"], to_attention)
        x = self.first(x) if last else x
        x, normed = add_norm(x, added, w["norm2_scale"], w["norm2_bias"], bias)
        added, _ = self.mlp(normed, w, to_mlp)
        return (split_rows(x), split_rows(added)) if self.late else (split_rows(x + added), None)

    def first(self, rows: Array) -> Array:
        """The first token of each cloud, (B, D)."""
        return self.by_cloud(rows)[:, 0]

    def by_cloud(self, rows: Float[Array, "BR F"]) -> Float[Array, "B R F"]:
        return rows.reshape(self.clouds, -1, rows.shape[1])

    def attend(self, normed: Array, kernel: Array) -> Array:
        if self.paired:
            qkv = _apart(dense(normed, jax.lax.optimization_barrier(pair_heads(kernel))))
        else:
            qkv = dense(normed, kernel)
        mixed = self_attention(self.by_cloud(qkv), self.heads, self.tokens, self.paired)
        return mixed.reshape(len(normed), -1)

    def mlp(self, x: Array, w: dict[str, Array], path: Float[Array, B] | None) -> tuple[Array, Array | None]:
        names = ("up_kernel", "up_bias", "down_kernel", "down_bias")
        up, up_bias, down, bias = (w[name] for name in names)
        # Where no kernel does it, the GELU, or what it needs, is cheaper to compute again than to keep.
        if gelu.mlp_kernel(x, up.shape[1]):
            product = gelu.mlp(x, up, up_bias, down)
        elif self.platform == "tpu":
            h = _apart(dense(x, up, up_bias))
            product = jax.checkpoint(lambda h, down: dense(gelu.exact(h), down))(h, down)
        else:
            active = jax.checkpoint(lambda h, bias: gelu.exact(add_bias(h, bias)))
            product = dense(active(dense(x, up), up_bias), down)
        return self.branch(product, bias, path)

    def branch(self, product: Array, bias: Array, path: Float[Array, B] | None) -> tuple[Array, Array | None]:
        """(what is added to the rows, the bias that it still lacks)"""
        if self.late_bias:
            return product, bias
        made = add_bias(product, bias)
        if path is None:
            return made, None
        return made * jnp.repeat(path.astype(made.dtype), len(made) // self.clouds)[:, None], None


@jax.custom_vjp
def _apart(x: Array) -> Array:
    """x, made before anything that uses it: a TPU would make it within a product, more often than once."""
    return jax.lax.optimization_barrier(x)


_apart.defvjp(lambda x: (_apart(x), None), lambda _, g: (g,))


def _as_is(fn: Callable[..., Any]) -> Callable[..., Any]:
    return fn
