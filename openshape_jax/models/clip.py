"""CLIP (arXiv 2103.00020): a text and an image transformer with one embedding space, in Flax NNX.

One implementation for OpenAI's and OpenCLIP's models; they differ in widths and in the GELU. Where the
class token, the end-of-text token and the norms stand follows the PyTorch originals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from openshape_jax.ops import attention

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # OpenAI's models
}
POOLINGS = ("argmax", "eos")


@dataclass(frozen=True)
class TowerConfig:
    """A transformer: `heads` heads of width / heads channels each, an MLP of `mlp` hidden channels."""

    width: int
    depth: int
    heads: int
    mlp: int


@dataclass(frozen=True)
class ClipConfig:
    """An architecture of the CLIP family, with what its inputs have to be.

    Attributes:
      name: of the embedding space, as metadata of our models say it.
      embed_dim: D.
      activation: "quick_gelu" or "gelu" (exact).
      pooling: where the text's embedding is read: "argmax" at the first of the largest ids (end-of-text is
        the largest of the vocabulary), "eos" at the first `eos_id`.
      pad_id: fills texts up behind end-of-text, where nothing that counts can see it.
      mean, std: of the pixels in [0, 1], by channel.
      resample: "bicubic" or "bilinear".
      dtype: of the products; norms, softmax and embeddings are float32 whatever it is.
      repo: at Hugging Face.
    """

    name: str
    embed_dim: int
    vision: TowerConfig
    text: TowerConfig
    patch_size: int
    image_size: int = 224
    context_length: int = 77
    vocab_size: int = 49408
    activation: str = "quick_gelu"
    pooling: str = "argmax"
    eos_id: int = 49407
    pad_id: int = 49407
    norm_eps: float = 1e-5
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    resample: str = "bicubic"
    dtype: str = "float32"
    repo: str = ""

    def __post_init__(self) -> None:
        for tower, c in (("vision", self.vision), ("text", self.text)):
            if min(c.width, c.depth, c.heads, c.mlp) < 1 or c.width % c.heads:
                raise ValueError(
                    f"the {tower} tower has width {c.width}, depth {c.depth}, heads {c.heads}, mlp {c.mlp}; "
                    "all must be at least 1, and the width a multiple of the heads."
                )
        if self.patch_size < 1 or self.image_size % self.patch_size:
            raise ValueError(
                f"image_size is {self.image_size}; it must be a multiple of patch_size ({self.patch_size})."
            )
        for field, value, known in (
            ("activation", self.activation, tuple(ACTIVATIONS)),
            ("pooling", self.pooling, POOLINGS),
            ("dtype", self.dtype, ("float32", "bfloat16", "float16")),
        ):
            if value not in known:
                raise ValueError(f"{field} is {value!r}; it must be one of {', '.join(known)}.")

    @property
    def tokens(self) -> int:
        """Of an image: its patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


def _tower(width: int, depth: int, mlp: int | None = None, heads: int | None = None) -> TowerConfig:
    return TowerConfig(width, depth, heads or width // 64, mlp or 4 * width)


# Widths: the model_configs of OpenCLIP (github.com/mlfoundations/open_clip), and OpenAI's config.json files.
_B, _L = _tower(768, 12), _tower(1024, 24)
_OPENCLIP: dict[str, Any] = dict(activation="gelu", pad_id=0)
CLIPS: dict[str, ClipConfig] = {
    "openai-b32": ClipConfig(
        "CLIP ViT-B/32", 512, _B, _tower(512, 12), 32, repo="openai/clip-vit-base-patch32"
    ),
    "openai-b16": ClipConfig(
        "CLIP ViT-B/16", 512, _B, _tower(512, 12), 16, repo="openai/clip-vit-base-patch16"
    ),
    "openai-l14": ClipConfig(
        "CLIP ViT-L/14", 768, _L, _tower(768, 12), 14, repo="openai/clip-vit-large-patch14"
    ),
    # Trained with pixels in [-1, 1], unlike its sisters: open_clip, pretrained.py, laion2b_s32b_b82k.
    "openclip-l14": ClipConfig(
        "OpenCLIP ViT-L-14 (laion2b_s32b_b82k)", 768, _L, _tower(768, 12), 14, mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5), repo="laion/CLIP-ViT-L-14-laion2B-s32B-b82K", **_OPENCLIP,
    ),
    "openclip-h14": ClipConfig(
        "OpenCLIP ViT-H-14 (laion2b_s32b_b79k)", 1024, _tower(1280, 32, heads=16), _tower(1024, 24), 14,
        repo="laion/CLIP-ViT-H-14-laion2B-s32B-b79K", **_OPENCLIP,
    ),
    "openclip-bigg14": ClipConfig(
        "OpenCLIP ViT-bigG-14 (laion2b_s39b_b160k)", 1280, _tower(1664, 48, 8192, heads=16),
        _tower(1280, 32), 14, repo="laion/CLIP-ViT-bigG-14-laion2B-39B-b160k", **_OPENCLIP,
    ),
}  # fmt: skip


def find(name: str) -> ClipConfig | None:
    """The entry of CLIPS of that key, embedding space or repository, None where there is none."""
    for key, config in CLIPS.items():
        if name.lower() in (key, config.name.lower(), config.repo.lower()):
            return config
    return None


def _normal(rngs: nnx.Rngs, shape: tuple[int, ...], std: float) -> Array:
    return std * jax.random.normal(rngs.params(), shape)


class Norm(nnx.Module):
    """LayerNorm in float32."""

    def __init__(self, width: int, eps: float):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: Float[Array, "... W"]) -> Float[Array, "... W"]:
        return _layer_norm(x, self.scale[...], self.bias[...], self.eps)


class Blocks(nnx.Module):
    """Pre-norm blocks whose parameters are stacked along a leading depth axis and scanned."""

    def __init__(self, tower: TowerConfig, config: ClipConfig, causal: bool, *, rngs: nnx.Rngs):
        self.tower, self.config, self.causal = tower, config, causal
        depth, width, mlp = tower.depth, tower.width, tower.mlp
        out_std = (2 * depth * width) ** -0.5  # the standard deviations of the original's initialisation
        self.norm1_scale = nnx.Param(jnp.ones((depth, width)))
        self.norm1_bias = nnx.Param(jnp.zeros((depth, width)))
        self.qkv = nnx.Param(_normal(rngs, (depth, width, 3 * width), width**-0.5))
        self.qkv_bias = nnx.Param(jnp.zeros((depth, 3 * width)))
        self.out_kernel = nnx.Param(_normal(rngs, (depth, width, width), out_std))
        self.out_bias = nnx.Param(jnp.zeros((depth, width)))
        self.norm2_scale = nnx.Param(jnp.ones((depth, width)))
        self.norm2_bias = nnx.Param(jnp.zeros((depth, width)))
        self.up_kernel = nnx.Param(_normal(rngs, (depth, width, mlp), (2 * width) ** -0.5))
        self.up_bias = nnx.Param(jnp.zeros((depth, mlp)))
        self.down_kernel = nnx.Param(_normal(rngs, (depth, mlp, width), out_std))
        self.down_bias = nnx.Param(jnp.zeros((depth, width)))

    def __call__(self, x: Float[Array, "B T W"]) -> Float[Array, "B T W"]:
        return self.scan(x)[0]

    def scan(
        self, x: Float[Array, "B T W"], keep: bool = False
    ) -> tuple[Float[Array, "B T W"], Float[Array, "L B T W"] | None]:
        """(output, that of every block where `keep`, else None)."""
        weights = {k: v[...] for k, v in vars(self).items() if isinstance(v, nnx.Param)}
        eps, heads = self.config.norm_eps, self.tower.heads
        activation = ACTIVATIONS[self.config.activation]

        def block(x, w):
            h = _layer_norm(x, w["norm1_scale"], w["norm1_bias"], eps)
            q, k, v = jnp.moveaxis(
                _dense(h, w["qkv"], w["qkv_bias"]).reshape(*h.shape[:2], 3, heads, -1), 2, 0
            )
            mixed = causal_attention(q, k, v) if self.causal else attention(q, k, v)
            x = x + _dense(mixed.reshape(h.shape), w["out_kernel"], w["out_bias"])
            h = _layer_norm(x, w["norm2_scale"], w["norm2_bias"], eps)
            h = activation(_dense(h, w["up_kernel"], w["up_bias"]))
            x = x + _dense(h, w["down_kernel"], w["down_bias"])
            return x, x if keep else None

        return jax.lax.scan(block, x, weights)


class TextTower(nnx.Module):
    """Token ids (B, T) to embeddings (B, D) float32, not normalised."""

    def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs):
        self.config = config
        width = config.text.width
        self.tokens = nnx.Param(_normal(rngs, (config.vocab_size, width), 0.02))
        self.positions = nnx.Param(_normal(rngs, (config.context_length, width), 0.01))
        self.blocks = Blocks(config.text, config, causal=True, rngs=rngs)
        self.norm = Norm(width, config.norm_eps)
        self.proj = nnx.Param(_normal(rngs, (width, config.embed_dim), width**-0.5))

    def embed(self, ids: Int[Array, "B T"]) -> Float[Array, "B T W"]:
        """What the blocks are given."""
        x = self.tokens[...][ids] + self.positions[...][: ids.shape[1]]
        return x.astype(self.config.dtype)

    def __call__(self, ids: Int[Array, "B T"]) -> Float[Array, "B D"]:
        """Embeddings (B, D) float32.

        Raises:
          ValueError: `ids` is not (B, T) of integers with T at most the context length.
        """
        length = self.config.context_length
        if ids.ndim != 2 or not 0 < ids.shape[1] <= length or not jnp.issubdtype(ids.dtype, jnp.integer):
            raise ValueError(f"ids is {ids.dtype} {ids.shape}; expected integers (B, T) with T <= {length}.")
        x = self.blocks(self.embed(ids))
        end = ids.argmax(-1) if self.config.pooling == "argmax" else (ids == self.config.eos_id).argmax(-1)
        x = self.norm(jnp.take_along_axis(x, end[:, None, None], 1)[:, 0])
        return _dense(x, self.proj[...]).astype(jnp.float32)


class ImageTower(nnx.Module):
    """Normalised pixels (B, S, S, 3) to embeddings (B, D) float32, not normalised."""

    def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs):
        self.config = config
        width, patch = config.vision.width, config.patch_size
        self.patch_kernel = nnx.Param(_normal(rngs, (patch * patch * 3, width), (patch * patch * 3) ** -0.5))
        self.class_token = nnx.Param(_normal(rngs, (width,), width**-0.5))
        self.positions = nnx.Param(_normal(rngs, (config.tokens, width), width**-0.5))
        self.norm_in = Norm(width, config.norm_eps)
        self.blocks = Blocks(config.vision, config, causal=False, rngs=rngs)
        self.norm_out = Norm(width, config.norm_eps)
        self.proj = nnx.Param(_normal(rngs, (width, config.embed_dim), width**-0.5))

    def embed(self, pixels: Float[Array, "B S S 3"]) -> Float[Array, "B T W"]:
        """What the blocks are given."""
        batch, p = len(pixels), self.config.patch_size
        n = self.config.image_size // p
        patches = pixels.astype(self.config.dtype).reshape(batch, n, p, n, p, 3)
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(batch, n * n, p * p * 3)
        x = _dense(patches, self.patch_kernel[...])
        first = jnp.broadcast_to(self.class_token[...].astype(x.dtype), (batch, 1, x.shape[-1]))
        x = jnp.concatenate([first, x], 1) + self.positions[...].astype(x.dtype)
        return self.norm_in(x)

    def __call__(self, pixels: Float[Array, "B S S 3"]) -> Float[Array, "B D"]:
        """Embeddings (B, D) float32.

        Raises:
          ValueError: `pixels` is not (B, S, S, 3) of the model's image size.
        """
        size = self.config.image_size
        if pixels.ndim != 4 or pixels.shape[1:] != (size, size, 3):
            raise ValueError(f"pixels is {pixels.shape}; expected (B, {size}, {size}, 3): resize and crop.")
        x = self.norm_out(self.blocks(self.embed(pixels))[:, 0])
        return _dense(x, self.proj[...]).astype(jnp.float32)


class Clip(nnx.Module):
    """Both towers, and the logarithm of the factor on cosines."""

    def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.text = TextTower(config, rngs=rngs)
        self.image = ImageTower(config, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.asarray(jnp.log(1 / 0.07)))


def init(config: ClipConfig, seed: int = 0) -> dict[str, Any]:
    """Fresh parameters as a pure dict of arrays."""
    return nnx.to_pure_dict(nnx.state(Clip(config, rngs=nnx.Rngs(seed)), nnx.Param))


def shapes(config: ClipConfig) -> dict[str, Any]:
    """As `init`, shapes instead of arrays: nothing is allocated."""
    return jax.eval_shape(lambda: init(config))


def module(config: ClipConfig, params: dict[str, Any]) -> Clip:
    """The module that has these parameters."""
    graph, _ = nnx.split(nnx.eval_shape(lambda: Clip(config, rngs=nnx.Rngs(0))), nnx.Param)
    return nnx.merge(graph, nnx.State(params))


def encode_text(config: ClipConfig, params: dict[str, Any], ids: Int[Array, "B T"]) -> Float[Array, "B D"]:
    """Unit vectors (B, D) float32 of token ids, a pure function."""
    return unit(module(config, params).text(ids))


def encode_image(config: ClipConfig, params: dict[str, Any], pixels: Array) -> Float[Array, "B D"]:
    """Unit vectors (B, D) float32 of pixels (B, S, S, 3): uint8, or float in [0, 1]; a pure function."""
    scale = 255 if pixels.dtype == jnp.uint8 else 1
    x = pixels.astype(jnp.float32) / scale
    x = (x - jnp.asarray(config.mean)) / jnp.asarray(config.std)
    return unit(module(config, params).image(x))


def unit(x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)


def causal_attention(
    q: Float[Array, "B T H D"], k: Float[Array, "B T H D"], v: Float[Array, "B T H D"]
) -> Float[Array, "B T H D"]:
    """softmax(q k^T / sqrt(D)) v over the tokens up to one's own; the softmax is float32."""
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    seen = jnp.tri(q.shape[1], dtype=bool)
    weights = jax.nn.softmax(jnp.where(seen, logits, -jnp.inf), axis=-1).astype(q.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def _dense(x: Array, kernel: Array, bias: Array | None = None) -> Array:
    y = x.reshape(-1, x.shape[-1]) @ kernel.astype(x.dtype)
    if bias is not None:
        y = y + bias.astype(x.dtype)
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


def _layer_norm(x: Array, scale: Array, bias: Array, eps: float) -> Array:
    x32 = x.astype(jnp.float32)
    mean = x32.mean(-1, keepdims=True)
    centred = x32 - mean
    var = jnp.square(centred).mean(-1, keepdims=True)
    return (centred * jax.lax.rsqrt(var + eps) * scale + bias).astype(x.dtype)
