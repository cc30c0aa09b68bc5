"""Our weights as a PyTorch file, a safetensors file, or a checkpoint in our own layout."""

from __future__ import annotations

import contextlib
import json
import math
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from openshape_jax import config as config_lib
from openshape_jax.config import ModelConfig
from openshape_jax.convert import names, torch_write
from openshape_jax.convert.error import ConversionError
from openshape_jax.convert.files import METADATA_KEY
from openshape_jax.data.files import new_file
from openshape_jax.version import __version__

OTHER_SUFFIXES = (
    ".bin",
    ".ckpt",
    ".pth",
    ".npz",
    ".npy",
    ".onnx",
    ".h5",
    ".msgpack",
    ".zip",
    ".tar",
    ".json",
)


def write(
    weights: Mapping[str, Any],
    metadata: Mapping[str, Any],
    step: int,
    path: str | Path,
    *,
    module_prefix: bool | None = None,
    overwrite: bool = False,
) -> Path:
    """The written file or folder: "*.pt" PyTorch, "*.safetensors", any other name a folder of our layout.

    A .pt mirrors the original's dict (state_dict, logit_scale, text_proj, image_proj, epoch, step) and
    names; one that was read from a demo file gets that file's names again. A .safetensors holds the state
    dict alone, its logit scale in the metadata. Both load strictly into the PyTorch original. Output is
    written under a temporary name beside `path` and renamed at the end.

    Args:
      weights: {"encoder", "stats"}, as `load.read` and `checkpoint.load_weights` give.
      metadata: of the model; is written along.
      module_prefix: whether names begin with "module."; None: as the file the model came from, or in a .pt
        yes, in a .safetensors no.
      overwrite: replace what is there (a folder only if it holds nothing but a converted model).

    Raises:
      ConversionError: something is there, or an unknown suffix. OSError or CheckpointError: the disk is
        full or cannot be written; nothing of `path` is left or changed.
    """
    path = Path(path)
    check_target(path, overwrite)
    metadata = {**metadata, "version": metadata.get("version", __version__)}
    if path.suffix not in (".pt", ".safetensors"):
        from openshape_jax import checkpoint

        with _new_folder(path) as folder:
            checkpoint.save_weights(folder, weights, metadata, step)
        return path
    if "text_proj" in weights:
        raise ConversionError(
            f"{path}: this model was trained with loss.projections, which the file would lose; write a "
            "folder of our layout instead (a name without a suffix)."
        )
    model: ModelConfig = config_lib.from_dict(metadata["model"], ModelConfig)
    tensors = names.to_torch(weights, model, metadata.get("batches_seen", [step] * 3))
    layout = _layout(path, model, metadata, module_prefix)
    tensors = {layout.named(name): x for name, x in tensors.items()}
    text = json.dumps(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as file:
        if path.suffix == ".safetensors":
            from safetensors import numpy as safetensors

            file.write(safetensors.save(tensors, {"format": "pt", METADATA_KEY: text}))
        else:
            entries = _checkpoint(tensors, metadata, step, layout) if layout.wrapped else tensors
            torch_write.save({**entries, METADATA_KEY: text}, file, path.stem)
    return path


def check_target(path: Path, overwrite: bool) -> None:
    """Fails where `path` cannot be written, before the work is done.

    Raises:
      ConversionError: names what is there and the way out.
    """
    if path.suffix in OTHER_SUFFIXES:
        raise ConversionError(
            f"{path}: what to write is told by the name: NAME.pt, NAME.safetensors, or a folder's name."
        )
    is_file = path.suffix in (".pt", ".safetensors")
    if path.exists() and path.is_dir() == is_file:
        raise ConversionError(
            f"{path} exists and is {'a folder' if is_file else 'a file'}: choose another name."
        )
    if is_file:
        if path.exists() and not overwrite:
            raise ConversionError(f"{path} exists: give another name, or --overwrite (overwrite=True).")
    elif path.exists() and (inside := sorted(p.name for p in path.iterdir())):
        if inside != ["checkpoints"]:
            raise ConversionError(
                f"{path} holds more than a converted model ({', '.join(inside[:4])}): choose another name."
            )
        if not overwrite:
            raise ConversionError(f"{path} exists: give another name, or --overwrite (overwrite=True).")


def _layout(
    path: Path, model: ModelConfig, metadata: Mapping[str, Any], module_prefix: bool | None
) -> names.Layout:
    """The names to write: the encoder alone has no "ppat." in the original."""
    if path.suffix == ".safetensors":
        return names.Layout("module." if module_prefix else "", model.project, False)
    if module_prefix is None and "torch_layout" in metadata:
        return names.Layout(**metadata["torch_layout"])
    return names.Layout("" if module_prefix is False else "module.", model.project, True)


def _checkpoint(
    tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any], step: int, layout: names.Layout
) -> dict[str, Any]:
    """The dict that the original saves, without the training's state."""
    log_scale = metadata.get("log_logit_scale")
    log_scale = math.log(metadata["logit_scale"]) if log_scale is None else log_scale
    return {
        "state_dict": tensors,
        "logit_scale": {layout.prefix + "logit_scale": np.array(log_scale, np.float64)},
        "text_proj": None,
        "image_proj": None,
        "epoch": 0,
        "step": step,
    }


@contextlib.contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which takes `path`'s place at the end; a failure leaves what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    old = part.with_suffix(".old")
    try:
        part.mkdir()
        yield part
        if path.exists():
            path.rename(old)
        part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if old.exists():
            if path.exists():
                shutil.rmtree(old, ignore_errors=True)
            else:
                old.rename(path)
