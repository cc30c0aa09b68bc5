"""PointBERT, the point patch transformer of OpenShape (arXiv 2305.10764), in Flax NNX.

A cloud becomes patches (farthest point sampling, ball query, a shared MLP with a max over each
group), patches become tokens of a pre-norm transformer, and the class token is projected to the CLIP
width. Constants follow the PyTorch original where Flax differs: LayerNorm and BatchNorm eps 1e-5,
exact GELU (on GPUs by tanh in half precision, ops/gelu.py), unbiased running variance, momentum 0.1,
uniform +-1/sqrt(fan_in) initialisation.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from openshape_jax.config import ModelConfig
from openshape_jax.models.transformer import Transformer, uniform
from openshape_jax.ops import ball_query, farthest_point_sampling, gather
from openshape_jax.ops.dense import dense
from openshape_jax.ops.norm import EPS, layer_norm
from openshape_jax.ops.patch import member_order, patch_features, patch_kernel, patch_training_fused
from openshape_jax.ops.patch_passes import chunk, unchunk
from openshape_jax.ops.patch_train import Layer, patch_training
from openshape_jax.ops.placement import platform, split_rows

BN_MOMENTUM = 0.1  # torch's convention: new = 0.9 old + 0.1 batch


def size(scaling: int | str, embed_dim: int = 1280) -> ModelConfig:
    """The published size `scaling` (1 to 6, "demo_l14" or "demo_b32") of the paper's table.

    Raises:
      ValueError: an unknown size.
    """
    small = dict(patches=64, radius=0.40, nsample=256)
    large = dict(radius=0.20, nsample=64, sa_dim=256)
    table: dict[int | str, dict[str, Any]] = {
        1: dict(dim=256, depth=6, heads=4, mlp_dim=1024, sa_dim=96, **small),
        2: dict(dim=512, depth=6, heads=8, mlp_dim=1024, sa_dim=128, **small),
        3: dict(dim=512, depth=12, heads=8, mlp_dim=1024, sa_dim=128, patches=128, radius=0.35, nsample=128),
        4: dict(dim=512, depth=12, heads=8, mlp_dim=1536, patches=384, **large),
        5: dict(dim=768, depth=12, heads=12, mlp_dim=2304, patches=512, **large),
        6: dict(dim=768, depth=24, heads=12, mlp_dim=3072, patches=512, **large),
        "demo_l14": dict(dim=512, depth=12, heads=8, mlp_dim=1024, sa_dim=128, **small),
        "demo_b32": dict(dim=512, depth=12, heads=8, mlp_dim=1024, sa_dim=128, project=False, **small),
    }
    if scaling not in table:
        raise ValueError(f"unknown PointBERT size {scaling!r}; known: {', '.join(map(str, table))}.")
    fixed = {"demo_l14": 768, "demo_b32": 512}.get(str(scaling), embed_dim)
    return ModelConfig(name="pointbert", embed_dim=fixed, **table[scaling])


class Linear(nnx.Module):
    """y = x W + b on the last axis, with leading axes flattened: XLA's CPU backward pass through
    (B, T, C) takes twice as long as through (B·T, C)."""

    def __init__(self, d_in: int, d_out: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(uniform(rngs, (d_in, d_out), d_in))
        self.bias = nnx.Param(uniform(rngs, (d_out,), d_in))

    def __call__(self, x: Float[Array, "... d_in"]) -> Float[Array, "... d_out"]:
        return dense(x, self.kernel[...], self.bias[...])


class BatchNorm(nnx.Module):
    """Gain and shift that torch's BatchNorm applies to a channel, to be folded into the layer before it.

    Statistics are float32. Under jit over a sharded batch they are those of the global batch.
    """

    def __init__(self, channels: int):
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.mean = nnx.BatchStat(jnp.zeros(channels))
        self.var = nnx.BatchStat(jnp.ones(channels))

    def track(self, mean: Float[Array, C], var: Float[Array, C], rows: int) -> None:
        """Moves the running statistics towards a batch's (var: of the batch, not yet unbiased)."""
        unbiased = var * (rows / max(rows - 1, 1))
        self.mean[...] = (1 - BN_MOMENTUM) * self.mean[...] + BN_MOMENTUM * jax.lax.stop_gradient(mean)
        self.var[...] = (1 - BN_MOMENTUM) * self.var[...] + BN_MOMENTUM * jax.lax.stop_gradient(unbiased)

    def gain(self, var: Float[Array, C]) -> Float[Array, C]:
        return self.scale[...] * jax.lax.rsqrt(var + EPS)


class SetAbstraction(nnx.Module):
    """Patch features: group, shared three-layer MLP (Linear, BatchNorm, ReLU), max over the group.

    The MLP runs over chunks of centres, with BatchNorm folded into the Linear before it, so that the
    activations of all S x K grouped points are never held at once; in training, `ops/patch_train.py` runs it.
    In front of a BatchNorm a bias cancels.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        widths = (9, 64, 64, config.sa_dim)
        self.convs = nnx.List([Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(widths)])
        self.norms = nnx.List([BatchNorm(b) for b in widths[1:]])

    def __call__(
        self,
        xyz: Float[Array, "B N 3"],
        rgb: Float[Array, "B N 3"],
        train: bool,
        start: Array | int = 0,
        keep: Int[Array, "B P"] | None = None,
    ) -> tuple[Float[Array, "B S 3"], Float[Array, "B S C"]]:
        c = self.config
        starts = jnp.broadcast_to(jnp.asarray(start, jnp.int32), xyz.shape[:1])
        xyz = xyz.astype(jnp.float32)
        patches = c.patches if keep is None else keep.shape[1]
        fused = patch_kernel(xyz, (len(xyz), patches, c.nsample), c.dtype)

        def group(points, colours, first, kept):
            chosen = farthest_point_sampling(points, c.patches, first)
            centre = gather(points, chosen if kept is None else chosen[kept])
            members = ball_query(points, centre, c.radius, c.nsample)
            about = member_order(jnp.broadcast_to(centre[:, None], (*members.shape, 3)), fused)
            near = gather(jnp.concatenate([points, colours], 1), member_order(members, fused))
            return centre, jnp.concatenate([near[..., :3] - about, near], -1)

        with jax.named_scope("geometry"):
            centres, grouped = jax.vmap(group)(xyz, rgb.astype(jnp.float32), starts, keep)

        def chunks() -> Array:
            return chunk(jax.lax.stop_gradient(grouped), platform(xyz))

        pairs = list(zip(self.convs, self.norms, strict=True))
        if train:
            weights = [Layer(conv.kernel[...], norm.scale[...], norm.bias[...]) for conv, norm in pairs]
            if fused:
                patch, moments = patch_training_fused(grouped, weights, fused)
            else:
                patch, moments = patch_training(chunks().astype(c.dtype), weights)
                patch = unchunk(patch, centres.shape)
            for (conv, norm), (mean, var) in zip(pairs, moments, strict=True):
                norm.track(mean + conv.bias[...], var, grouped.size // 9)
            return centres, patch

        layers: list[tuple[Array, Array]] = []
        for conv, norm in pairs:
            gain, mean = norm.gain(norm.var[...]), norm.mean[...] - conv.bias[...]
            layers.append((conv.kernel[...] * gain, norm.bias[...] - mean * gain))
        if fused:
            return centres, patch_features(grouped, layers, fused)

        def feature(layers, x):
            *hidden, (kernel, shift) = layers
            y = dense(_mlp(x, hidden, c.dtype), kernel).reshape(*x.shape[:3], -1)
            return jax.nn.relu(y.max(1) + shift.astype(y.dtype))  # the same of the maximum as of each

        return centres, unchunk(_over_chunks(feature, layers, chunks()), centres.shape)


def _over_chunks(fn: Callable[[Any, Array], Any], layers: Any, chunks: Array) -> Any:
    """fn(layers, chunk) of every chunk, stacked; the activations inside are computed again for gradients."""
    return jax.lax.map(lambda x: jax.checkpoint(fn)(layers, split_rows(x)), chunks)


def _mlp(x: Float[Array, "... F"], layers: list[tuple[Array, Array]], dtype: str) -> Float[Array, "R C"]:
    """The layers, each with its BatchNorm folded in, on the rows of x."""
    x = x.reshape(-1, x.shape[-1]).astype(dtype)
    for kernel, shift in layers:
        x = jax.nn.relu(dense(x, kernel, shift))
    return x


class PointBert(nnx.Module):
    """Clouds (B, N, 3) with colours (B, N, 3) to embeddings (B, D) float32, not normalised."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.sa = SetAbstraction(config, rngs=rngs)
        self.lift = Linear(config.sa_dim + 3, config.dim, rngs=rngs)
        self.lift_scale = nnx.Param(jnp.ones(config.dim))
        self.lift_bias = nnx.Param(jnp.zeros(config.dim))
        self.cls_token = nnx.Param(jax.random.normal(rngs.params(), (config.dim,)))
        self.transformer = Transformer(config, rngs=rngs)
        if config.project:
            self.proj = Linear(config.dim, config.embed_dim, rngs=rngs)
        elif config.dim != config.embed_dim:
            raise ValueError(
                f"without a projection embed_dim ({config.embed_dim}) must be dim ({config.dim})."
            )

    def __call__(
        self,
        xyz: Float[Array, "B N 3"],
        rgb: Float[Array, "B N 3"],
        *,
        train: bool = False,
        start: Array | int = 0,
        keep: Int[Array, "B P"] | None = None,
        paths: Float[Array, "depth 2 B"] | None = None,
    ) -> Float[Array, "B D"]:
        """Embeddings (B, D) float32.

        Args:
          xyz: normalised to the unit sphere, shuffled (ball query takes the first hits).
          rgb: in [0, 1].
          train: batch statistics (updated) instead of the running ones in BatchNorm.
          start: first index of farthest point sampling, one or (B,).
          keep: (B, P) which of the patches to use, as positions below `patches`; None: all.
          paths: (depth, 2, B) factors on what a block's attention and MLP add; None: 1.

        Raises:
          ValueError: shapes do not fit, or fewer points than patches.
        """
        if xyz.ndim != 3 or xyz.shape[-1] != 3 or rgb.shape != xyz.shape:
            raise ValueError(f"xyz {xyz.shape} and rgb {rgb.shape} must both be (B, N, 3).")
        if xyz.shape[1] < self.config.patches:
            raise ValueError(
                f"xyz has {xyz.shape[1]} points; this PointBERT needs at least {self.config.patches} "
                "(its number of patches): sample more."
            )
        with jax.named_scope("set_abstraction"):
            centres, patch = self.sa(xyz, rgb, train, start, keep)
        tokens = self.lift(jnp.concatenate([centres.astype(patch.dtype), patch], -1))
        tokens = layer_norm(tokens, self.lift_scale[...], self.lift_bias[...])
        tokens = split_rows(_put_in_front(self.cls_token[...].astype(tokens.dtype), tokens))
        with jax.named_scope("transformer"):
            if train and self.config.microbatches > 1:
                out = _in_parts(self.transformer, tokens, paths, self.config.microbatches)
            else:
                out = self.transformer(tokens, paths)
        return (self.proj(out) if self.config.project else out).astype(jnp.float32)


def _put_in_front(token: Float[Array, " D"], tokens: Float[Array, "B P D"]) -> Float[Array, "B P+1 D"]:
    """The token before those of each cloud."""
    token = jnp.broadcast_to(token, (len(tokens), 1, len(token)))
    if platform(tokens) == "gpu":  # takes three times as long to set arrays beside each other
        behind, before = ((0, 0), (0, tokens.shape[1]), (0, 0)), ((0, 0), (1, 0), (0, 0))
        return jnp.pad(token, behind) + jnp.pad(tokens, before)
    return jnp.concatenate([token, tokens], 1)


def _in_parts(
    fn: Callable[..., Array], tokens: Float[Array, "B T D"], paths: Array | None, parts: int
) -> Float[Array, "B D"]:
    """fn(tokens, paths) of every row, a part of the rows after the other; for gradients, each is computed
    again.

    The class tokens of all parts meet in the loss before any part is differentiated, so the gradients are
    those of the whole batch. Part k has the rows k, k + parts, ...: a share of each device's.
    """
    b = len(tokens)
    x = split_rows(jnp.moveaxis(tokens.reshape(b // parts, parts, *tokens.shape[1:]), 1, 0), 1)
    if paths is not None:
        paths = jnp.moveaxis(paths.reshape(*paths.shape[:2], b // parts, parts), 3, 0)
    out = jax.lax.map(lambda part: jax.checkpoint(fn)(*part), (x, paths))
    return split_rows(jnp.moveaxis(out, 0, 1).reshape(b, -1))
