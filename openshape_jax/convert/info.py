"""What a checkpoint says of itself: a .pt or .safetensors file, a folder, a repository or a run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from openshape_jax.convert import files, names, recognise
from openshape_jax.convert.error import Undecided
from openshape_jax.convert.load import DEFAULT_SCALE, interpret, recognised


def describe(path: str | Path) -> dict[str, Any]:
    """Facts of a checkpoint by name, in the order to print them; JSON types.

    What a foreign file does not tell is described in words instead of failing.

    Raises:
      ConversionError or CheckpointError: there is nothing readable.
    """
    if files.is_foreign(path):
        raw = files.read(path)
        kind = f"{raw.kind}, " + ("as recognised" if raw.metadata is None else "written by openshape_jax")
        try:
            facts = _facts(*interpret(raw, None, {}, None, lambda _text: None))
        except Undecided:
            facts = _partly(raw)
        return {"file": str(path), "kind": kind, **facts}
    from openshape_jax import checkpoint

    weights, metadata, step = checkpoint.load_weights(path)
    kind = "converted model" if "torch_layout" in metadata else "training run"
    return {"file": str(path), "kind": kind, **_facts(weights, metadata, step)}


def _facts(weights: dict[str, Any], metadata: dict[str, Any], step: int) -> dict[str, Any]:
    model = metadata["model"]
    facts = {
        "architecture": _architecture(model),
        "patches": f"{model['patches']} of radius {model['radius']}, {model['nsample']} points each",
        "CLIP target": metadata.get("text_space", recognise.UNKNOWN),
        "D": model["embed_dim"],
        "up": metadata["up"],
        **({"mirrored": "yes: y and z were swapped in its training"} if metadata.get("mirrored") else {}),
        "colour": metadata["colour"],
        "trained on": ", ".join(
            name + (f" {version}" if (version := metadata.get("dataset_versions", {}).get(name)) else "")
            for name in metadata["trained_on"]
        ),
        "version": metadata["version"],
        "parameters": _count(weights["encoder"]),
        "logit scale": round(float(metadata["logit_scale"]), 4),
        "step": step,
    }
    if "converted_from" in metadata:
        facts["converted from"] = metadata["converted_from"]
    return facts


def _partly(raw: files.Raw) -> dict[str, Any]:
    """As `_facts`, for a file of which something has to be given before it can be used."""
    model, release = recognised(raw)
    given: dict[str, float | None] = {}
    try:
        whole = recognise.sampling(model, release, given, raw.where)
        patches = f"{whole.patches} of radius {whole.radius}, {whole.nsample} points each"
    except Undecided:
        sizes = ", ".join(map(str, recognise.fitting_sizes(model))) or "none"
        patches = f"not in the file (published sizes that fit: {sizes}); give --patches --radius --nsample"
    try:
        up = recognise.up_axis(model, release, None, raw.where)
    except Undecided:
        up = "not in the file; give --up"
    shapes = {name: x.shape for name, x in raw.tensors.items()}
    scale = DEFAULT_SCALE if raw.log_scale is None else math.exp(raw.log_scale)
    return {
        "architecture": _architecture(vars(model)),
        "patches": patches,
        "CLIP target": recognise.text_space(model, release),
        "D": model.embed_dim,
        "up": up,
        "parameters": names.count_parameters(shapes),
        "logit scale": round(scale, 4),
        "step": raw.step,
    }


def _architecture(model: dict[str, Any]) -> str:
    head = "" if model["project"] else ", no projection"
    return (
        f"{model['name']}, dim {model['dim']}, depth {model['depth']}, heads {model['heads']}, mlp "
        f"{model['mlp_dim']}, sa_dim {model['sa_dim']}{head}"
    )


def _count(tree: Any) -> int:
    return sum(map(_count, tree.values())) if isinstance(tree, dict) else int(np.size(tree))
