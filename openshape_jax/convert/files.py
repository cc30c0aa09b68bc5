"""Finding and reading foreign checkpoints: .pt, .safetensors, Hugging Face folders and repositories."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from openshape_jax.convert import torch_read
from openshape_jax.convert.error import ConversionError
from openshape_jax.convert.names import Layout, find_layout

METADATA_KEY = "openshape_jax"  # holds our metadata as JSON, in a .pt's dict and a .safetensors' header
REQUIRED = {
    "model", "text_space", "embed_dim", "up", "colour", "num_points", "views", "trained_on", "version",
}  # fmt: skip
CANDIDATES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "model.pt",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar")
SCALE_NAMES = ("module.logit_scale", "logit_scale", "pc_encoder.logit_scale")
TRAINING = ("optimizer", "scheduler", "epoch", "step")  # and best_*: the state of a training, not a model
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass
class Raw:
    """What a file holds, before anything is made of it.

    Attributes:
      where: the file or repository, for messages.
      kind: "PyTorch" or "safetensors".
      tensors: under canonical names.
      log_scale: the log of the factor on cosines, None where the file has none.
      metadata: ours, where the file was written by this package.
      left_out: entries that belong to the training, not to the model, and those that were to be ignored.
      origin: the file's whole path or the repository, by which releases are recognised.
    """

    where: str
    kind: str
    tensors: dict[str, np.ndarray]
    layout: Layout
    log_scale: float | None = None
    metadata: dict[str, Any] | None = None
    step: int = 0
    left_out: list[str] = field(default_factory=list)
    origin: str = ""


def is_foreign(path: str | Path) -> bool:
    """Whether `path` is a file, a folder or a repository name to be read here, and no run of ours."""
    folder = Path(path)
    if folder.is_dir():
        return not _is_run(folder) and bool(_tensor_files(folder))
    return folder.exists() or folder.suffix in (*TORCH_SUFFIXES, ".safetensors") or is_repository(path)


def is_repository(path: str | Path) -> bool:
    """Whether it can only be "owner/name": nothing local lies there, nor a folder of the owner's name."""
    return bool(_REPO.fullmatch(str(path))) and not Path(path).exists() and not Path(path).parent.exists()


def _is_run(folder: Path) -> bool:
    return (
        (folder / "checkpoints").is_dir()
        or (folder / "weights").is_dir()
        or any(p.name.isdigit() and p.is_dir() for p in folder.iterdir())
    )


def _tensor_files(folder: Path) -> list[Path]:
    return sorted(
        p
        for p in folder.iterdir()
        if p.suffix in (*TORCH_SUFFIXES, ".safetensors") or p.name.endswith(".index.json")
    )


def read(path: str | Path, ignore: tuple[str, ...] = ()) -> Raw:
    """The tensors and facts of a file, a folder or a repository "owner/name" of Hugging Face.

    Args:
      ignore: names of tensors to leave out, as the file has them.

    Raises:
      ConversionError: nothing there, unreadable, not a PointBERT, or a name in `ignore` that is not there.
    """
    local = Path(path)
    where, origin = str(path), str(local.absolute())
    if local.suffix not in (*TORCH_SUFFIXES, ".safetensors") and is_repository(path):
        from openshape_jax.convert import hub

        local = hub.fetch(str(path), CANDIDATES)
    if local.is_dir():
        local = _choose(local)
        where, origin = str(local), str(local.absolute())
    if not local.exists():
        raise ConversionError(f"{path}: no such file or folder.")
    entries, metadata, kind = _read_any(local)
    raw = _interpret(where, kind, entries, metadata, ignore)
    raw.origin = origin
    return raw


def open_tensors(path: Path) -> dict[str, Any]:
    """Name -> array of a file, or of all files of an index: of any model, not only ours.

    Those of safetensors are `Stored`: nothing is read of them before `np.asarray`.

    Raises:
      ConversionError: unreadable, or files are missing.
    """
    entries = _read_any(path, lazy=True)[0]
    return dict(entries["state_dict"] if isinstance(entries.get("state_dict"), Mapping) else entries)


@dataclass(frozen=True)
class Stored:
    """An array that lies in an open safetensors file; `np.asarray` reads it."""

    file: Any
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.file.get_tensor(self.name), dtype)


def _read_any(path: Path, lazy: bool = False) -> tuple[Mapping[str, Any], dict[str, Any] | None, str]:
    return _read_shards(path, lazy) if path.name.endswith(".index.json") else _read_file(path, lazy)


def _choose(folder: Path) -> Path:
    for name in CANDIDATES:
        if (folder / name).is_file():
            return folder / name
    files = _tensor_files(folder)
    if len(files) == 1:
        return files[0]
    if not files:
        raise ConversionError(f"{folder} holds no checkpoint: none of {', '.join(CANDIDATES)}.")
    raise ConversionError(
        f"{folder} holds several checkpoints ({', '.join(p.name for p in files)}): name one of them."
    )


def _read_file(path: Path, lazy: bool = False) -> tuple[Mapping[str, Any], dict[str, Any] | None, str]:
    """(entries, our metadata, kind) of one file, chosen by its content rather than its name."""
    with path.open("rb") as file:
        start = file.read(9)
    if path.suffix == ".safetensors" or (len(start) == 9 and start[8:] == b"{" and start[:2] != b"PK"):
        return *_read_safetensors(path, lazy), "safetensors"
    loaded = torch_read.load(path)
    if not isinstance(loaded, Mapping):
        raise ConversionError(
            f"{path} holds a {type(loaded).__name__}, not a dict of tensors: save model.state_dict()."
        )
    entries = dict(loaded)
    return entries, _parse_metadata(entries.pop(METADATA_KEY, None), path), "PyTorch"


def _read_safetensors(path: Path, lazy: bool) -> tuple[dict[str, Any], dict[str, Any] | None]:
    import ml_dtypes  # noqa: F401 (makes "bfloat16" known to NumPy)
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(str(path), framework="np")
        metadata = (file.metadata() or {}).get(METADATA_KEY)
        read = _stored if lazy else type(file).get_tensor
        tensors = {name: read(file, name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, TypeError, AttributeError) as error:
        raise ConversionError(
            f"{path} of {path.stat().st_size} bytes cannot be read as safetensors ({error}): it is cut off "
            "or something else. Download or copy it again."
        ) from error
    return tensors, _parse_metadata(metadata, path)


def _stored(file: Any, name: str) -> Stored:
    kinds = {"F64": "f8", "F32": "f4", "F16": "f2", "BF16": "bfloat16", "I64": "i8", "I32": "i4", "BOOL": "?"}
    part = file.get_slice(name)
    return Stored(file, name, tuple(part.get_shape()), np.dtype(kinds.get(part.get_dtype(), "V")))


def _parse_metadata(text: Any, path: Path) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        metadata = json.loads(text)
        lacking = sorted(REQUIRED - metadata.keys())
    except (ValueError, AttributeError, TypeError) as error:
        raise ConversionError(f"{path}: its {METADATA_KEY} metadata is damaged ({error}).") from None
    if lacking:
        raise ConversionError(f"{path}: its {METADATA_KEY} metadata lacks {', '.join(lacking)}.")
    return metadata


def _read_shards(index: Path, lazy: bool) -> tuple[dict[str, Any], dict[str, Any] | None, str]:
    entries: dict[str, Any] = {}
    metadata, kind = None, ""
    shards = shard_names(index)
    for name in sorted(set(shards.values())):
        if not (index.parent / name).is_file():
            raise ConversionError(f"{index} names {name}, which is not beside it: download that file too.")
        found, own, kind = _read_file(index.parent / name, lazy)
        metadata = metadata or own
        entries.update(found)
    lacking = sorted(shards.keys() - entries.keys())
    if lacking:
        raise ConversionError(f"{index} lists tensors that its files do not hold: {', '.join(lacking)}.")
    return entries, metadata, kind


def shard_names(index: Path) -> dict[str, str]:
    """Tensor name -> file name, as a Hugging Face index says.

    Raises:
      ConversionError: it is no such index, or names files outside its folder.
    """
    try:
        shards = json.loads(index.read_text())["weight_map"]
        names = {str(k): str(v) for k, v in shards.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConversionError(f"{index} is no index of a sharded checkpoint ({error}).") from None
    outside = [v for v in names.values() if Path(v).name != v]
    if outside or not names:
        raise ConversionError(f"{index} must name files of its own folder, not {outside[:1] or 'none'}.")
    return names


def _interpret(
    where: str,
    kind: str,
    entries: Mapping[str, Any],
    metadata: dict[str, Any] | None,
    ignore: tuple[str, ...],
) -> Raw:
    wrapped = isinstance(entries.get("state_dict"), Mapping)
    tensors = dict(entries["state_dict"]) if wrapped else dict(entries)
    unnamed = [k for k in tensors if not isinstance(k, str)]
    if unnamed:
        raise ConversionError(f"{where} has the key {unnamed[0]!r}, where names of tensors are expected.")
    around = {str(k): v for k, v in entries.items() if k != "state_dict"} if wrapped else {}
    _refuse_projections(where, around)
    left_out = sorted(k for k in around if k in TRAINING or k.startswith("best_"))
    strange = sorted(around.keys() - {*left_out, "logit_scale", "text_proj", "image_proj"})
    holding = [k for k in strange if _has_tensor(around[k])]
    left_out += [k for k in strange if k not in holding]
    for name in ignore:
        if name not in tensors and name not in holding:
            raise ConversionError(f"{where} has no tensor {name!r} to leave out.")
        left_out.append(name)
    tensors = {k: v for k, v in tensors.items() if k not in ignore}
    tensors.update({k: around[k] for k in holding if k not in ignore})
    log_scale = _pop_scale(where, tensors, around.get("logit_scale"))
    layout = find_layout(tensors, wrapped)
    if layout is None:
        raise ConversionError(_what_else(where, list(tensors)))
    odd = [k for k, v in tensors.items() if not isinstance(v, np.ndarray)]
    if odd:
        raise ConversionError(
            f"{where} holds {', '.join(map(repr, odd))}, no tensors of the encoder. What the model does not "
            "need can be left out by name with ignore= (openshape convert --ignore NAME)."
        )
    raw = Raw(where, kind, {layout.canonical(k): v for k, v in tensors.items()}, layout, log_scale, metadata)
    step = around.get("step", (metadata or {}).get("step", 0))
    raw.step = step if isinstance(step, int) and step >= 0 else 0
    raw.left_out = left_out
    return raw


def _refuse_projections(where: str, around: Mapping[str, Any]) -> None:
    """Projections of the targets are not part of our model, so embeddings would miss CLIP's space."""
    for name in ("text_proj", "image_proj"):
        if around.get(name):
            raise ConversionError(
                f"{where} was trained with a projection of the CLIP vectors ({name}), so its embeddings do "
                "not live in CLIP's space and text could not be compared with them. Only models without "
                "text_proj and image_proj can be converted (the released ones have none)."
            )


def _has_tensor(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_has_tensor(v) for v in value.values())
    if isinstance(value, (list, tuple)):
        return any(_has_tensor(v) for v in value)
    return isinstance(value, np.ndarray)


def _pop_scale(where: str, tensors: dict[str, Any], around: Any) -> float | None:
    """The log scale, from beside the encoder's tensors or from among them, where it is removed."""
    values = list(around.values()) if isinstance(around, Mapping) else [around]
    values += [tensors.pop(name) for name in SCALE_NAMES if name in tensors]
    for value in values:
        if value is None:
            continue
        number = isinstance(value, (float, int, np.ndarray)) and np.size(value) == 1
        if not number or not np.isfinite(np.asarray(value, np.float64)).all():
            raise ConversionError(f"{where}: its logit_scale is {value!r}, not one finite number.")
        return float(np.asarray(value, np.float64).reshape(()))
    return None


def _what_else(where: str, names: list[str]) -> str:
    sparse = [n for n in names if n.endswith(".kernel") or ".bn." in n]
    if sparse:
        return (
            f"{where} is a sparse convolution encoder (MinkowskiEngine: it has {sparse[0]}), such as "
            "OpenShape's spconv models. Only PointBERT can be converted: take an openshape-pointbert-* model."
        )
    some = ", ".join(sorted(names)[:4]) or "nothing"
    return (
        f"{where} is no OpenShape PointBERT: none of its {len(names)} entries is named "
        f"ppat.* or sa.* (with or without module. in front); it has {some}."
    )
