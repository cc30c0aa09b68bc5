"""A foreign checkpoint as our weights and metadata."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from openshape_jax import config as config_lib
from openshape_jax.config import ModelConfig
from openshape_jax.convert import files, names, recognise
from openshape_jax.convert.error import ConversionError
from openshape_jax.data import schema
from openshape_jax.version import __version__

DEFAULT_SCALE = 1 / 0.07  # CLIP's initial factor on cosines, 14.28 in OpenShape
NUM_POINTS = 10_000  # of every cloud in OpenShape's training and evaluation


def read(
    path: str | Path,
    *,
    up: str | None = None,
    patches: int | None = None,
    radius: float | None = None,
    nsample: int | None = None,
    embed_dim: int | None = None,
    ignore: tuple[str, ...] = (),
    note: Callable[[str], None] = print,
) -> tuple[dict[str, Any], dict[str, Any], int]:
    """(weights, metadata, step) of a PyTorch or safetensors file, a folder or a Hugging Face repository.

    Weights are {"encoder", "stats"} in float32. Metadata say architecture, CLIP target, D, up axis, colour,
    training data and version, as those of a run of ours do. A file without a logit scale gets 1 / 0.07.

    Args:
      path: the file, the folder, or "owner/name".
      up: the axis that points up in the model's training data, "y" or "z"; needed for unknown models.
      patches: farthest point samples; with radius and nsample needed where no published size fits or
        several do.
      radius: of a patch, in units of the unit sphere.
      nsample: points of a patch.
      embed_dim: D that the model must have; None: any.
      ignore: names of tensors to leave out.
      note: told what was assumed.

    Raises:
      ConversionError: unreadable, not a PointBERT, tensors that do not fit, or another D.
      Undecided (one of them): patches, radius, nsample or up have to be given.
    """
    given = {"patches": patches, "radius": radius, "nsample": nsample}
    return interpret(files.read(path, ignore), up, given, embed_dim, note)


def interpret(
    raw: files.Raw,
    up: str | None,
    given: dict[str, float | None],
    embed_dim: int | None,
    note: Callable[[str], None],
) -> tuple[dict[str, Any], dict[str, Any], int]:
    """As `read`, of a file that is read already."""
    width = recognised(raw)[0].embed_dim
    if embed_dim is not None and embed_dim != width:
        raise ConversionError(
            f"{raw.where} embeds to D = {width}, but embed_dim {embed_dim} was asked for: leave it out, or "
            "take a model of that D."
        )
    model, release, metadata = _identify(raw, up, given)
    weights = names.from_torch(raw.tensors, model, raw.where)
    if raw.log_scale is None and "log_logit_scale" not in metadata:
        note(f"note: {raw.where} has no logit scale; {DEFAULT_SCALE:.2f} (1 / 0.07) is used")
    log_scale = metadata.get("log_logit_scale", math.log(DEFAULT_SCALE))
    log_scale = log_scale if raw.log_scale is None else raw.log_scale
    if raw.metadata is None:
        known = f"the released {release.name}" if release else "no known release"
        metadata["converted_from"] = raw.where
        note(
            f"note: {raw.where} is {known}: D {model.embed_dim}, {metadata['up']} up, CLIP target "
            f"{metadata['text_space']}, {model.patches} patches of radius {model.radius}"
        )
    # A file of ours has an epoch and a step only because the original's have.
    told = [name for name in raw.left_out if raw.metadata is None or name not in ("epoch", "step")]
    if told:
        note(f"note: not part of the model, left out: {', '.join(told)}")
    metadata.update(
        log_logit_scale=log_scale,
        logit_scale=math.exp(log_scale),
        step=raw.step,
        batches_seen=[int(raw.tensors.get(name, np.int64(raw.step))) for name in names.COUNTERS],
        torch_layout=dataclasses.asdict(raw.layout),
    )
    return weights, metadata, raw.step


def _identify(
    raw: files.Raw, up: str | None, given: dict[str, float | None]
) -> tuple[ModelConfig, recognise.Release | None, dict[str, Any]]:
    """The model, the release it is, and its metadata: those in the file, where we wrote it."""
    if raw.metadata is not None:
        metadata = dict(raw.metadata)
        asked = {k: v for k, v in given.items() if v is not None}
        metadata["model"] = {**metadata["model"], **asked}
        model = config_lib.from_dict(metadata["model"], ModelConfig)
        metadata["up"] = recognise.up_axis(model, None, up or metadata["up"], raw.where)
        return model, None, metadata
    model, release = recognised(raw)
    model = recognise.sampling(model, release, given, raw.where)
    axis = recognise.up_axis(model, release, up, raw.where)
    metadata = {
        "model": config_lib.to_dict(model),
        "text_space": recognise.text_space(model, release),
        "embed_dim": model.embed_dim,
        "up": axis,
        # OpenShape makes y-up data z-up by swapping y and z, which is a reflection (spec, section 4).
        "mirrored": axis == "z",
        "colour": schema.COLOUR,
        "num_points": NUM_POINTS,
        "views": 1,
        "trained_on": list(release.trained_on if release else (recognise.UNKNOWN,)),
        "version": __version__,
    }
    return model, release, metadata


def recognised(raw: files.Raw) -> tuple[ModelConfig, recognise.Release | None]:
    """What the tensors alone tell: the widths (patches, radius, nsample are 0), and the release if known."""
    model = recognise.architecture({k: v.shape for k, v in raw.tensors.items()}, raw.where)
    return model, recognise.find_release(model, raw.layout, raw.origin)
