"""One released file -> one record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from openshape_jax.data import safe_npy, schema
from openshape_jax.data.schema import Text
from tfds_builders.openshape_ensemble.layout import OBJAVERSE, Item

LARGEST = 65504  # of float16


class Load(NamedTuple):
    """Item -> record."""

    width: int  # D of all features
    fingerprint: str  # of the meta data: a build that is gone on with must have the same

    def __call__(self, item: Item) -> dict[str, Any]:
        """The record of a shape.

        Raises:
          ValueError: a file that cannot be used, says why. FileNotFoundError: there is none.
          OSError: it cannot be read for now.
        """
        return encode(_read(item), item, self.width)


def _read(item: Item) -> Mapping[str, Any]:
    for path in item.paths:
        try:
            found = safe_npy.load(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if isinstance(found, dict):
            return found
        raise ValueError(f"{path} holds a {type(found).__name__}; a released shape is a dict.")
    raise FileNotFoundError(
        f"there is no file of {item.uid}: looked for {' and '.join(item.paths)}. Fetch it, or take the shape "
        "out of the split files."
    )


def encode(data: Mapping[str, Any], item: Item, width: int) -> dict[str, Any]:
    """The record (schema.encode) of a released dict.

    Raises:
      ValueError: a part is missing or cannot be used; names it.
    """
    xyz = _points(data, "xyz")
    rgb = _points(data, "rgb")
    if len(rgb) != len(xyz):
        raise ValueError(f"xyz has {len(xyz)} points but rgb {len(rgb)}.")
    renders = _features(data.get("image_feat"), width, "image_feat")
    thumbnails = _features(data.get("thumbnail_feat"), width, "thumbnail_feat")
    texts = _texts(data, item.dataset, width)
    return schema.encode(
        uid=item.uid,
        dataset=item.dataset,
        # A rotation. Departure: OpenShape swaps y and z, a mirror image (see README.md).
        xyz=schema.to_z_up(xyz),
        rgb=schema.unit_colors(rgb),
        texts=texts,
        text_dim=width,
        image_features=np.concatenate([renders, thumbnails]),
        image_sources=["render"] * len(renders) + ["thumbnail"] * len(thumbnails),
        image_dim=width,
        meta={
            "name": next((t.text for t in texts if t.source == "metadata"), ""),
            "label": item.label,
            "category": item.category,
            "group": item.group,
            "text_flag": item.flag,
        },
    )


def _points(data: Mapping[str, Any], key: str) -> np.ndarray:
    if key not in data:
        raise ValueError(f"there is no {key!r} in it; it has {', '.join(map(repr, data)) or 'nothing'}.")
    found = np.asarray(data[key])
    if found.ndim != 2 or found.shape[1] != 3 or not len(found) or found.dtype.kind not in "fiu":
        raise ValueError(
            f"{key} has shape {found.shape} and type {found.dtype}; expected numbers (N, 3), N >= 1."
        )
    return found


def _features(value: Any, width: int, name: str) -> np.ndarray:
    """(M, width) float32 of one vector or several, of (1, width) each or not; M = 0 where there is none."""
    found = np.asarray([] if value is None else value)
    if not found.size:
        return np.zeros((0, width), np.float32)
    if found.dtype.kind not in "fiu":
        raise ValueError(f"{name} is of type {found.dtype}; expected numbers.")
    if found.shape[-1:] != (width,):
        raise ValueError(
            f"{name} has the width {found.shape[-1] if found.ndim else 1}, but this data set's features have "
            f"{width} (OpenCLIP ViT-bigG-14): it was made with another CLIP model."
        )
    if not (np.abs(found) <= LARGEST).all():
        raise ValueError(f"{name} has a value that is NaN, infinite or above {LARGEST}.")
    return found.reshape(-1, width).astype(np.float32)


def _texts(data: Mapping[str, Any], dataset: str, width: int) -> list[Text]:
    """All texts that are not empty; of Objaverse's metadata OpenShape trains on the first only."""
    texts = []
    for key, source in (
        ("text", "metadata"),
        ("blip_caption", "blip"),
        ("msft_caption", "msft"),
        ("retrieval_text", "retrieval"),
    ):
        words = [_string(t, key) for t in _list(data.get(key))]
        features = _list(data.get(f"{key}_feat"))
        if features and any(words) and len(features) != len(words):
            raise ValueError(f"there are {len(words)} items in {key} but {len(features)} in {key}_feat.")
        for i, text in enumerate(words):
            if not text.strip():
                continue
            bare, prompt = _pair(features[i] if features else {}, width, f"{key}_feat")
            further = source == "metadata" and dataset == OBJAVERSE and i > 0
            texts.append(Text(text, "metadata_other" if further else source, bare, prompt))
    return texts


def _list(value: Any) -> Sequence[Any]:
    """One thing, several or none, as a list."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "OSU":
        value = value.tolist()
    if value is None:
        return []
    return value if isinstance(value, (list, tuple)) else [value]


def _string(value: Any, name: str) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{name} is not UTF-8 ({error.reason} at byte {error.start} of {value[:40]!r})."
            ) from None
    if not isinstance(value, str):
        raise ValueError(f"{name} holds a {type(value).__name__} ({str(value)[:40]!r}); expected a str.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} cannot be written as UTF-8: {value[:40]!r}.") from None
    return str(value)


def _pair(features: Any, width: int, name: str) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(feature of the bare words, mean over prompt templates) of one text; None where it is missing."""
    if not isinstance(features, Mapping):
        raise ValueError(
            f"{name} holds a {type(features).__name__}; expected a dict of original, prompt_avg."
        )
    rows = [_features(features.get(key), width, f"{name}[{key!r}]") for key in ("original", "prompt_avg")]
    for row in rows:
        if len(row) > 1:
            raise ValueError(f"{name} has {len(row)} vectors for one text; expected one.")
    bare, prompt = (row[0] if len(row) else None for row in rows)
    return bare, prompt
