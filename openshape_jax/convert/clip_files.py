"""Finding a CLIP, in a folder or at Hugging Face, and reading what its config files say of it."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from openshape_jax.convert import clip as names
from openshape_jax.convert import files, hub
from openshape_jax.convert.error import ConversionError
from openshape_jax.models.clip import CLIPS, ClipConfig, TowerConfig, find

CANDIDATES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
CONFIG_FILES = {names.TRANSFORMERS: "config.json", names.OPEN_CLIP: "open_clip_config.json"}
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers, as preprocessor_config.json has them
# OpenCLIP's fields that are read, and those that may stand there with the value that we have built in.
READ = {"vision": {"image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size"},
        "text": {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}}  # fmt: skip
BUILT_IN = {("vision", "pool_type"): "tok", ("vision", "pos_embed_type"): "learnable",
            ("text", "pool_type"): "argmax", ("text", "proj_type"): "linear"}  # fmt: skip
NO_MATTER = {"patch_dropout", "output_tokens", "eos_id", "hf_tokenizer_name", "tokenizer_kwargs",
             "norm_kwargs", "tokenizer_mode", "attn_pooler_queries", "attn_pooler_heads", "timm_pool",
             "timm_proj", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type"}  # fmt: skip
PLAIN = {"embed_dim", "quick_gelu", "text_cfg", "vision_cfg", "init_logit_scale"}


@dataclass(frozen=True)
class Source:
    """Where a CLIP lies.

    Attributes:
      asked: as the user named it.
      weights: the file of its tensors, or the index of several.
      repo: at Hugging Face, "" where it is a folder or file.
      known: the entry of CLIPS that was asked for, None for another.
    """

    asked: str
    weights: Path
    repo: str = ""
    known: ClipConfig | None = None

    def beside(self, candidates: Sequence[str]) -> Path | None:
        """The first of `candidates` that lies beside the weights or that the repository has."""
        here = next((p for n in candidates if (p := self.weights.parent / n).is_file()), None)
        return hub.fetch(self.repo, candidates) if here is None and self.repo else here


def locate(asked: str | Path) -> Source:
    """The files of a CLIP.

    Args:
      asked: a key, embedding space or repository of CLIPS, another repository "owner/name", a folder, a file.

    Raises:
      ConversionError: an unknown name, no checkpoint in the folder, or no network.
    """
    path, name = Path(asked), str(asked)
    if path.is_dir():
        found = next((path / n for n in CANDIDATES if (path / n).is_file()), None)
        if found is None:
            raise ConversionError(f"{path} holds no CLIP checkpoint: none of {', '.join(CANDIDATES)}.")
        return Source(name, found)
    if path.is_file():
        return Source(name, path)
    known = find(name)
    repo = known.repo if known else name
    if not known and not files.is_repository(name):
        raise ConversionError(
            f"{name!r} is neither a file nor a folder here nor a known CLIP; known: {', '.join(CLIPS)}. Any "
            "other can be given as a folder, or as the repository 'owner/name' of Hugging Face."
        )
    return Source(name, hub.fetch(repo, CANDIDATES), repo, known)


def describe(source: Source, layout: str) -> ClipConfig:
    """The architecture, from CLIPS where that was asked for, else from the config file beside the weights.

    A folder or repository counts as an entry of CLIPS where its name and its config are those of one.

    Raises:
      ConversionError: there is no config file, or it says something that is not built here.
    """
    if source.known:
        return source.known
    path = source.beside((CONFIG_FILES[layout],))
    if path is None:
        raise ConversionError(
            f"{source.weights} has no {CONFIG_FILES[layout]} beside it, and heads and activation do not show "
            f"in tensors: put that file there, or say which CLIP it is: config= one of {', '.join(CLIPS)}."
        )
    described = _read_json(path)
    read = _of_transformers if layout == names.TRANSFORMERS else _of_open_clip
    try:
        config = read(described, str(path), source)
    except ConversionError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConversionError(f"{path} does not describe a CLIP that is known here ({error!r}).") from error
    for entry in CLIPS.values():
        alike = source.weights.parent.name == entry.repo.partition("/")[2]
        if alike and _architecture(config) == _architecture(entry):
            return entry
    return config


def tokenizer_folder(source: Source) -> Path:
    """The folder that holds tokenizer.json, or vocab.json and merges.txt.

    Raises:
      ConversionError: there is none, or no network; says where to put it.
    """
    found = source.beside(TOKENIZER_FILES)
    if found is not None and found.name == "vocab.json":
        found = source.beside(("merges.txt",))
    if found is None:
        raise ConversionError(
            f"{source.weights.parent} holds no tokenizer, neither tokenizer.json nor vocab.json with "
            "merges.txt: copy them there. They are the same for all CLIPs of OpenAI and OpenCLIP, e.g. those "
            f"of {CLIPS['openai-b32'].repo} on Hugging Face."
        )
    return found.parent


def _architecture(config: ClipConfig) -> tuple[Any, ...]:
    c = config
    return (c.embed_dim, c.vision, c.text, c.patch_size, c.image_size, c.context_length, c.vocab_size,
            c.activation, c.norm_eps)  # fmt: skip


def _of_transformers(described: Mapping[str, Any], where: str, source: Source) -> ClipConfig:
    if described.get("model_type") != "clip":
        raise ConversionError(
            f"{where} describes a {described.get('model_type')!r}, not a 'clip' with both towers."
        )
    config = transformers_library().CLIPConfig.from_dict(dict(described))
    text, vision = config.text_config, config.vision_config
    for field in ("hidden_act", "layer_norm_eps"):
        if getattr(text, field) != getattr(vision, field):
            raise ConversionError(
                f"{where}: {field} is {getattr(text, field)} for text, {getattr(vision, field)} for images; "
                "only CLIPs with one for both are known here."
            )
    towers = [
        TowerConfig(t.hidden_size, t.num_hidden_layers, t.num_attention_heads, t.intermediate_size)
        for t in (vision, text)
    ]
    last = text.vocab_size - 1
    legacy = text.eos_token_id == 2  # before July 2023 configs had a wrong one, and the largest id was meant
    end = last if legacy else text.eos_token_id
    config = ClipConfig(
        name=source.repo or str(source.weights.parent),
        embed_dim=config.projection_dim,
        vision=towers[0],
        text=towers[1],
        patch_size=vision.patch_size,
        image_size=vision.image_size,
        context_length=text.max_position_embeddings,
        vocab_size=text.vocab_size,
        activation=text.hidden_act,
        pooling="argmax" if legacy else "eos",
        eos_id=end,
        pad_id=end,
        norm_eps=vision.layer_norm_eps,
    )
    path = source.beside(("preprocessor_config.json",))
    if path is None:
        return config
    pixels = _read_json(path)
    sizes = {edge for k in ("size", "crop_size") for edge in _edges(pixels.get(k, config.image_size))}
    resample = pixels.get("resample", 3)
    if sizes != {config.image_size} or resample not in RESAMPLE:
        raise ConversionError(
            f"{path}: size and crop_size {sorted(sizes)} with resample {resample} are not known here; the "
            f"model's images are {config.image_size} wide, and resample must be 2 (bilinear) or 3 (bicubic)."
        )
    mean, std = (tuple(pixels.get(f"image_{k}", getattr(config, k))) for k in ("mean", "std"))
    return dataclasses.replace(config, mean=mean, std=std, resample=RESAMPLE[resample])


def _edges(size: Any) -> list[int]:
    """Of 224, {"shortest_edge": 224} or {"height": 224, "width": 224}."""
    return list(size.values()) if isinstance(size, Mapping) else [size]


def _of_open_clip(described: Mapping[str, Any], where: str, source: Source) -> ClipConfig:
    model = described["model_cfg"]
    text, vision = model["text_cfg"], model["vision_cfg"]
    pixels = described.get("preprocess_cfg", {})
    unknown = [f"{k} = {v!r}" for k, v in model.items() if k not in PLAIN and v]
    eps = {}
    for tower, part in (("vision", vision), ("text", text)):
        eps[tower] = (part.get("norm_kwargs") or {}).get("eps", 1e-5)
        admitted = READ[tower] | NO_MATTER
        for key, value in part.items():
            if key not in admitted and value not in (None, False, 0, BUILT_IN.get((tower, key))):
                unknown.append(f"{tower}_cfg.{key} = {value!r}")
    for key, known in (("interpolation", tuple(RESAMPLE.values())), ("resize_mode", ("shortest",))):
        if pixels.get(key, known[-1]) not in known:
            unknown.append(f"preprocess_cfg.{key} = {pixels[key]!r}")
    if eps["vision"] != eps["text"]:
        unknown.append(f"norm_kwargs of {eps}")
    if unknown:
        raise ConversionError(
            f"{where}: {', '.join(unknown)} is not built here; only plain CLIPs with two ViTs are."
        )
    width, last = vision["width"], text.get("vocab_size", 49408) - 1
    towers = (
        TowerConfig(
            width,
            vision["layers"],
            width // vision.get("head_width", 64),
            int(width * vision.get("mlp_ratio", 4.0)),
        ),
        TowerConfig(
            text["width"], text["layers"], text["heads"], int(text["width"] * text.get("mlp_ratio", 4.0))
        ),
    )
    plain = CLIPS["openai-b32"]
    return ClipConfig(
        name=source.repo or str(source.weights.parent),
        embed_dim=model["embed_dim"],
        vision=towers[0],
        text=towers[1],
        patch_size=vision["patch_size"],
        image_size=vision.get("image_size", 224),
        context_length=text.get("context_length", 77),
        vocab_size=last + 1,
        activation="quick_gelu" if model.get("quick_gelu") else "gelu",
        eos_id=last,
        pad_id=0,
        norm_eps=eps["text"],
        mean=tuple(pixels.get("mean", plain.mean)),
        std=tuple(pixels.get("std", plain.std)),
        resample=pixels.get("interpolation", "bicubic"),
    )


def transformers_library() -> ModuleType:
    """Hugging Face's transformers, without the advice to install PyTorch that it prints when imported."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers

    return transformers


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise ConversionError(f"{path} is no JSON ({error}): download or copy it again.") from None
    if not isinstance(value, dict):
        raise ConversionError(f"{path} holds a {type(value).__name__} where an object is expected.")
    return value
