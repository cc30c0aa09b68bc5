"""CLIP's tensors under the names of transformers and of OpenCLIP, as the tree of models/clip.py."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from openshape_jax.convert import files
from openshape_jax.convert.error import ConversionError
from openshape_jax.models import clip
from openshape_jax.models.clip import ClipConfig, TowerConfig

Shape = tuple[int, ...]
TRANSFORMERS, OPEN_CLIP = "transformers", "OpenCLIP"
# Constants that a file may hold beside the parameters, by layout.
HARMLESS = {
    TRANSFORMERS: {"text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"},
    OPEN_CLIP: {"attn_mask", "input_resolution", "context_length", "vocab_size"},
}


@dataclass(frozen=True)
class Rule:
    """One of our arrays and the tensors that it is made of.

    Attributes:
      path: keys into our tree; a block's tensors are stacked along axis 0 there.
      names: with {} for the number of a block; several are joined along the outputs.
      kind: "same", "linear" ((out, in) is our (in, out)) or "conv" ((out, 3, p, p) is our (p p 3, out)).
    """

    path: tuple[str, ...]
    names: tuple[str, ...]
    kind: str = "same"

    @property
    def stacked(self) -> bool:
        return "{}" in self.names[0]

    def theirs(self, ours: Shape) -> Shape:
        """The shape of each tensor, of our array's (of one block, where blocks are stacked)."""
        if self.kind == "conv":
            patch = math.isqrt(ours[0] // 3)
            return (ours[1], 3, patch, patch)
        if self.kind == "linear":
            return (ours[1] // len(self.names), ours[0])
        return (ours[0] // len(self.names), *ours[1:]) if ours else ours

    def ours(self, tensors: list[np.ndarray]) -> np.ndarray:
        x = np.concatenate(tensors) if len(tensors) > 1 else tensors[0]
        if self.kind == "conv":
            return x.transpose(2, 3, 1, 0).reshape(-1, len(x))
        return x.T if self.kind == "linear" else x


def _pair(path: tuple[str, ...], name: str, ours: tuple[str, str], kind: str = "same") -> list[Rule]:
    """The rules of a layer's weight and bias."""
    return [Rule((*path, ours[0]), (f"{name}.weight",), kind), Rule((*path, ours[1]), (f"{name}.bias",))]


def _block(tower: str, stem: str, names: Mapping[str, str], qkv: list[Rule]) -> list[Rule]:
    path = (tower, "blocks")
    rules = [Rule((*path, *r.path), tuple(f"{stem}.{{}}.{n}" for n in r.names), r.kind) for r in qkv]
    for part, kind in (("norm1", "same"), ("out", "linear"), ("norm2", "same"), ("up", "linear"),
                       ("down", "linear")):  # fmt: skip
        weight = "scale" if kind == "same" else "kernel"
        ours = (f"{part}_{weight}", f"{part}_bias")
        rules += _pair(path, f"{stem}.{{}}.{names[part]}", ours, kind)
    return rules


def _of_transformers() -> Iterator[Rule]:
    names = {"norm1": "layer_norm1", "out": "self_attn.out_proj", "norm2": "layer_norm2", "up": "mlp.fc1",
             "down": "mlp.fc2"}  # fmt: skip
    qkv = [
        Rule(("qkv",), tuple(f"self_attn.{n}_proj.weight" for n in "qkv"), "linear"),
        Rule(("qkv_bias",), tuple(f"self_attn.{n}_proj.bias" for n in "qkv")),
    ]
    text, vision = "text_model.", "vision_model."
    yield Rule(("text", "tokens"), (text + "embeddings.token_embedding.weight",))
    yield Rule(("text", "positions"), (text + "embeddings.position_embedding.weight",))
    yield from _block("text", text + "encoder.layers", names, qkv)
    yield from _pair(("text", "norm"), text + "final_layer_norm", ("scale", "bias"))
    yield Rule(("text", "proj"), ("text_projection.weight",), "linear")
    yield Rule(("image", "patch_kernel"), (vision + "embeddings.patch_embedding.weight",), "conv")
    yield Rule(("image", "class_token"), (vision + "embeddings.class_embedding",))
    yield Rule(("image", "positions"), (vision + "embeddings.position_embedding.weight",))
    yield from _pair(("image", "norm_in"), vision + "pre_layrnorm", ("scale", "bias"))  # their spelling
    yield from _block("image", vision + "encoder.layers", names, qkv)
    yield from _pair(("image", "norm_out"), vision + "post_layernorm", ("scale", "bias"))
    yield Rule(("image", "proj"), ("visual_projection.weight",), "linear")
    yield Rule(("logit_scale",), ("logit_scale",))


def _of_open_clip() -> Iterator[Rule]:
    names = {"norm1": "ln_1", "out": "attn.out_proj", "norm2": "ln_2", "up": "mlp.c_fc", "down": "mlp.c_proj"}
    qkv = [Rule(("qkv",), ("attn.in_proj_weight",), "linear"), Rule(("qkv_bias",), ("attn.in_proj_bias",))]
    yield Rule(("text", "tokens"), ("token_embedding.weight",))
    yield Rule(("text", "positions"), ("positional_embedding",))
    yield from _block("text", "transformer.resblocks", names, qkv)
    yield from _pair(("text", "norm"), "ln_final", ("scale", "bias"))
    yield Rule(("text", "proj"), ("text_projection",))
    yield Rule(("image", "patch_kernel"), ("visual.conv1.weight",), "conv")
    yield Rule(("image", "class_token"), ("visual.class_embedding",))
    yield Rule(("image", "positions"), ("visual.positional_embedding",))
    yield from _pair(("image", "norm_in"), "visual.ln_pre", ("scale", "bias"))
    yield from _block("image", "visual.transformer.resblocks", names, qkv)
    yield from _pair(("image", "norm_out"), "visual.ln_post", ("scale", "bias"))
    yield Rule(("image", "proj"), ("visual.proj",))
    yield Rule(("logit_scale",), ("logit_scale",))


RULES = {TRANSFORMERS: list(_of_transformers()), OPEN_CLIP: list(_of_open_clip())}


def find_layout(tensors: Mapping[str, Any], where: str) -> str:
    """TRANSFORMERS or OPEN_CLIP, by the names.

    Raises:
      ConversionError: the names are of neither.
    """
    if any(str(n).startswith(("text_model.", "vision_model.")) for n in tensors):
        return TRANSFORMERS
    if any(str(n).startswith("visual.") for n in tensors):
        return OPEN_CLIP
    some = ", ".join(sorted(map(str, tensors))[:4]) or "nothing"
    raise ConversionError(
        f"{where} is no CLIP of transformers (text_model.*, vision_model.*) nor of OpenCLIP (visual.*, "
        f"transformer.*): it has {some}."
    )


def expected(config: ClipConfig, layout: str) -> dict[str, Shape]:
    """Name -> shape of every tensor of this CLIP in the layout."""
    tree, found = clip.shapes(config), {}
    for rule in RULES[layout]:
        ours = _get(tree, rule.path).shape
        for block in _blocks(rule, config):
            shape = rule.theirs(ours[1:] if rule.stacked else ours)
            found.update({name.format(block): shape for name in rule.names})
    return found


def from_torch(tensors: dict[str, Any], config: ClipConfig, where: str) -> dict[str, Any]:
    """Our parameters of tensors in either layout; `tensors` is emptied, so that none is held twice.

    They are float32; the kernels are of `config.dtype`, in which they are multiplied anyway.

    Raises:
      ConversionError: lists every missing, unexpected, misshapen or unusable tensor.
    """
    layout = find_layout(tensors, where)
    tree, shapes = clip.shapes(config), expected(config, layout)
    problems = [f"missing: {name} {shape}" for name, shape in shapes.items() if name not in tensors]
    for name, x in tensors.items():
        if name in HARMLESS[layout]:
            continue
        if name not in shapes:
            problems.append(f"unexpected: {name} {getattr(x, 'shape', type(x).__name__)}")
        elif not isinstance(x, (np.ndarray, files.Stored)):
            problems.append(f"no tensor: {name} is a {type(x).__name__}")
        elif x.shape != shapes[name]:
            problems.append(f"misshapen: {name} is {x.shape}, expected {shapes[name]}")
        elif x.dtype.kind != "f" and x.dtype.name != "bfloat16":
            problems.append(f"not floating point: {name} is {x.dtype}")
    if problems:
        text, image = _describe(config.text), _describe(config.vision)
        raise ConversionError(
            f"{where}: its tensors are not those of {config.name} in the layout of {layout} (text {text}, "
            f"image {image}, patches of {config.patch_size}, D {config.embed_dim}); {len(problems)} do not "
            "fit:\n  " + "\n  ".join(problems)
        )
    params: dict[str, Any] = {}
    for rule in RULES[layout]:
        shape, blocks = _get(tree, rule.path).shape, _blocks(rule, config)
        out = np.empty(shape, np.float32 if rule.kind == "same" else _numpy_type(config.dtype))
        for block in blocks:
            parts = {n.format(block): tensors.pop(n.format(block)) for n in rule.names}
            x = rule.ours([np.asarray(part, np.float32) for part in parts.values()])
            if not np.isfinite(x).all():
                raise ConversionError(f"{where}: {' or '.join(parts)} holds NaN or infinite values.")
            out[block if rule.stacked else ...] = x
        _put(params, rule.path, out)
    return params


def _numpy_type(dtype: str) -> Any:
    import ml_dtypes

    return {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}.get(dtype, np.float32)


def _blocks(rule: Rule, config: ClipConfig) -> range:
    if not rule.stacked:
        return range(1)
    return range(config.text.depth if rule.path[0] == "text" else config.vision.depth)


def _describe(tower: TowerConfig) -> str:
    return f"{tower.width} wide, {tower.depth} deep, mlp {tower.mlp}"


def _get(tree: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _put(tree: dict[str, Any], path: tuple[str, ...], value: np.ndarray) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value
