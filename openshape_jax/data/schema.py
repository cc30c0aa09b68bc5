"""The record that every training and evaluation set stores, and its quantisation.

A shape is a coloured point cloud in the unit sphere (z-up, right-handed, front = -y) with any
number of texts and image features. Points are kept as uint16 per coordinate and uint8 per colour
channel: 90 KB at 10,000 points, against 240 KB for float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

XYZ_LEVELS = 65535  # uint16 steps over [-1, 1]: rounding error at most 1.6e-5 of the unit sphere
META = ("name", "label", "category", "tags", "creator", "license", "group", "text_flag")
ROUNDING = 1e-3  # by which a colour may miss its bounds
GRAY = 0.4  # the colour of a shape without colour (OpenShape)
COLOUR = f"rgb in [0, 1]; {GRAY} where a shape has none"  # as models say it in their metadata


class Text(NamedTuple):
    """One text of a shape: the words, where they come from, and their CLIP features if known."""

    text: str
    source: str  # "class", "synonym", "name", "caption", ...; OpenShape's: see data/targets.py
    feature: np.ndarray | None = None  # (D,) of the bare words, or None where it is not known
    prompt_feature: np.ndarray | None = None  # (D,) mean over prompt templates, or None


class UnitCloud(NamedTuple):
    """A cloud in the unit sphere: `points = xyz * scale + center` gives the source's units back."""

    xyz: np.ndarray  # (N, 3) float32, mean 0, largest norm 1
    center: np.ndarray  # (3,) float32
    scale: float


def to_unit_sphere(xyz: np.ndarray) -> UnitCloud:
    """The cloud centred on its mean with largest norm 1.

    Args:
      xyz: (N, 3) coordinates in any unit.

    Raises:
      ValueError: no point, a NaN or infinite coordinate, or all points equal.
    """
    xyz = np.asarray(xyz, np.float64)
    if xyz.ndim != 2 or xyz.shape[1] != 3 or len(xyz) == 0:
        raise ValueError(f"xyz has shape {xyz.shape}; expected (N, 3) with N >= 1.")
    if not np.isfinite(xyz).all():
        bad = int((~np.isfinite(xyz)).any(1).sum())
        raise ValueError(f"{bad} of {len(xyz)} points have a NaN or infinite coordinate; remove them first.")
    center = xyz.mean(0)
    centred = xyz - center
    scale = float(np.sqrt((centred**2).sum(1).max()))
    if scale <= 1e-12 * max(1.0, float(np.abs(center).max())):
        raise ValueError(f"all {len(xyz)} points are equal ({center.tolist()}); a shape needs an extent.")
    return UnitCloud((centred / scale).astype(np.float32), center.astype(np.float32), scale)


def to_z_up(xyz: np.ndarray) -> np.ndarray:
    """(..., 3) z-up coordinates of y-up ones, (x, y, z) -> (x, -z, y): a front at +z comes to -y."""
    return np.stack([xyz[..., 0], -xyz[..., 2], xyz[..., 1]], -1)


def to_y_up(xyz: np.ndarray) -> np.ndarray:
    """(..., 3) y-up coordinates of z-up ones: the inverse of `to_z_up`."""
    return np.stack([xyz[..., 0], xyz[..., 2], -xyz[..., 1]], -1)


def unit_colors(rgb: np.ndarray) -> np.ndarray:
    """(N, 3) float32 colours in [0, 1] of colours in [0, 1] or, if uint8 or one exceeds 1, in 0-255.

    Bounds hold up to ROUNDING: a colour of 1.0000001 must not make the whole cloud black.

    Raises:
      ValueError: a colour is NaN, infinite, negative or above 255.
    """
    if not np.isfinite(rgb).all():
        raise ValueError("a NaN or infinite colour; give colours in 0-1 or 0-255")
    if rgb.size and not (rgb.min() >= -ROUNDING and rgb.max() <= 255 + ROUNDING):
        raise ValueError(f"colours from {rgb.min()} to {rgb.max()}; expected 0-1 or 0-255")
    is_bytes = rgb.dtype == np.uint8 or rgb.max(initial=0) > 1 + ROUNDING
    return np.clip(rgb.astype(np.float32) / (255 if is_bytes else 1), 0, 1)


def quantize_xyz(xyz: np.ndarray) -> np.ndarray:
    """(N, 3) uint16 codes of coordinates in [-1, 1]."""
    if np.abs(xyz).max(initial=0.0) > 1 + 1e-5:
        raise ValueError(f"a coordinate is {np.abs(xyz).max():.4g}; normalise with to_unit_sphere first.")
    return np.rint((np.clip(xyz, -1, 1) + 1) * (XYZ_LEVELS / 2)).astype(np.uint16)


def dequantize_xyz(codes: np.ndarray) -> np.ndarray:
    """(..., 3) float32 coordinates in [-1, 1] of uint16 codes."""
    return codes.astype(np.float32) * np.float32(2 / XYZ_LEVELS) - np.float32(1)


def quantize_rgb(rgb: np.ndarray) -> np.ndarray:
    """(N, 3) uint8 of colours in [0, 1]."""
    return np.rint(np.clip(rgb, 0, 1) * 255).astype(np.uint8)


def features(*, text_dim: int, image_dim: int = 512) -> Any:
    """The tfds FeaturesDict of a record; `text_dim` and `image_dim` are the CLIP widths D."""
    import tensorflow_datasets as tfds  # imported here: schema must stay cheap to import

    F = tfds.features
    raw = F.Encoding.BYTES
    return F.FeaturesDict(
        {
            "uid": F.Text(),
            "dataset": F.Text(),
            "group": F.Text(),  # the part of the released files that it came from, "000-012"
            "name": F.Text(),
            "label": F.Text(),  # canonical vocabulary name of the class; "" where none fits
            "category": F.Text(),
            "tags": F.Text(),  # comma-separated
            "creator": F.Text(),
            "license": F.Text(),
            "xyz": F.Tensor(shape=(None, 3), dtype=np.uint16, encoding=raw),
            "rgb": F.Tensor(shape=(None, 3), dtype=np.uint8, encoding=raw),
            "center": F.Tensor(shape=(3,), dtype=np.float32),
            "scale": F.Scalar(dtype=np.float32),
            "texts": F.Sequence(
                {
                    "text": F.Text(),
                    "source": F.Text(),
                    "has_feature": F.Scalar(np.bool_),
                    "has_prompt_feature": F.Scalar(np.bool_),
                }
            ),
            "text_flag": F.Text(),  # GPT-4's judgement of the metadata's text, "Y" or "N"; "" where not asked
            "text_features": F.Tensor(shape=(None, text_dim), dtype=np.float16, encoding=raw),
            "prompt_features": F.Tensor(shape=(None, text_dim), dtype=np.float16, encoding=raw),
            "image_features": F.Tensor(shape=(None, image_dim), dtype=np.float16, encoding=raw),
            "image_sources": F.Sequence(F.Text()),  # "render" or "thumbnail", one for each image feature
            "icon": F.Scalar(dtype=np.object_),  # PNG bytes, empty where there is none
            "checksum": F.Scalar(dtype=np.uint32),  # CRC-32 of the xyz bytes followed by the rgb bytes
        }
    )


def checksum(xyz_codes: np.ndarray, rgb_codes: np.ndarray) -> int:
    """CRC-32 of the stored point bytes, little endian."""
    import zlib

    first = zlib.crc32(np.ascontiguousarray(xyz_codes, "<u2").tobytes())
    return zlib.crc32(np.ascontiguousarray(rgb_codes, np.uint8).tobytes(), first)


def encode(
    *,
    uid: str,
    dataset: str,
    xyz: np.ndarray,
    rgb: np.ndarray,
    texts: Sequence[Text],
    text_dim: int,
    image_features: np.ndarray | None = None,
    image_sources: Sequence[str] = (),
    image_dim: int = 512,
    icon: bytes = b"",
    meta: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The record of one shape, ready for a tfds builder.

    Args:
      xyz: (N, 3) coordinates, z-up, any unit.
      rgb: (N, 3) colours in [0, 1].
      texts: every text; those with a feature are training targets.
      image_features: (M, image_dim) CLIP image features, or None.
      image_sources: (M,) "render" or "thumbnail" for each of them; empty: all are renders.
      meta: name, label, category, tags, creator, license, group, text_flag; missing ones become "".

    Raises:
      ValueError: unusable coordinates, as `to_unit_sphere` says; features of another width, or not finite.
    """
    cloud = to_unit_sphere(xyz)
    codes, colours = quantize_xyz(cloud.xyz), quantize_rgb(np.asarray(rgb))
    if codes.shape != colours.shape:
        raise ValueError(f"xyz has shape {codes.shape} but rgb {colours.shape}; they must be equal.")
    meta = dict(meta or {})
    images = _rows([] if image_features is None else list(image_features), image_dim, uid, "image")
    kinds = list(image_sources) or ["render"] * len(images)
    if len(kinds) != len(images):
        raise ValueError(f"{uid}: {len(images)} image features but {len(kinds)} image sources.")
    bare = [t.feature for t in texts if t.feature is not None]
    prompt = [t.prompt_feature for t in texts if t.prompt_feature is not None]
    return {
        "uid": uid,
        "dataset": dataset,
        **{k: meta.get(k, "") for k in META},
        "xyz": codes,
        "rgb": colours,
        "center": cloud.center,
        "scale": np.float32(cloud.scale),
        "texts": [
            {
                "text": t.text,
                "source": t.source,
                "has_feature": t.feature is not None,
                "has_prompt_feature": t.prompt_feature is not None,
            }
            for t in texts
        ],
        "text_features": _rows(bare, text_dim, uid, "text"),
        "prompt_features": _rows(prompt, text_dim, uid, "text"),
        "image_features": images,
        "image_sources": kinds,
        "icon": icon,
        "checksum": np.uint32(checksum(codes, colours)),
    }


def _rows(rows: Sequence[np.ndarray], width: int, uid: str, kind: str) -> np.ndarray:
    """(M, width) float16 of M feature vectors."""
    for row in rows:
        row = np.asarray(row)
        if row.shape != (width,):
            raise ValueError(f"{uid}: an {kind} feature of shape {row.shape}; this data set's is ({width},).")
        if not np.isfinite(row.astype(np.float16)).all():
            raise ValueError(f"{uid}: an {kind} feature is NaN, infinite or above 65504.")
    return np.asarray(rows, np.float16).reshape(-1, width)


def check(record: Mapping[str, Any]) -> None:
    """Returns if the points of a decoded record match their checksum.

    ArrayRecord guards its files by hashes of its own; this one shows damage done before or after.

    Raises:
      ValueError: they do not.
    """
    found = checksum(record["xyz"], record["rgb"])
    if found != record["checksum"]:
        raise ValueError(
            f"record {record['uid']!r} is damaged: checksum {found:#010x}, stored "
            f"{record['checksum']:#010x}; delete the data set's folder and build it again."
        )


def decode(data: bytes, text_dim: int, image_dim: int) -> dict[str, Any]:
    """The record of a serialised tf.train.Example that follows `features`.

    Arrays are read-only views of `data`, where tfds's general parser copies each of them and takes
    longer than reading the file (experiments/input_pipeline). Strings are str; `texts` is a list of Text.

    Raises:
      ValueError: the bytes are no such record.
    """
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    try:
        example = tf_example_pb2.Example.FromString(data)  # type: ignore[attr-defined]
        fields = example.features.feature
        values = {name: getattr(f, f.WhichOneof("kind") or "bytes_list").value for name, f in fields.items()}

        def array(name: str, dtype: str, width: int) -> np.ndarray:
            return np.frombuffer(values[name][0], dtype).reshape(-1, width)

        def strings(name: str) -> list[str]:
            return [value.decode() for value in values[name]]

        bare = iter(array("text_features", "<f2", text_dim))
        prompt = iter(array("prompt_features", "<f2", text_dim))
        flags = zip(values["texts/has_feature"], values["texts/has_prompt_feature"], strict=True)
        texts = [
            Text(text, source, next(bare) if b else None, next(prompt) if p else None)
            for text, source, (b, p) in zip(
                strings("texts/text"), strings("texts/source"), flags, strict=True
            )
        ]
        return {
            **{name: values[name][0].decode() for name in ("uid", "dataset", *META)},
            "xyz": array("xyz", "<u2", 3),
            "rgb": array("rgb", "u1", 3),
            "center": np.array(values["center"], np.float32),
            "scale": np.float32(values["scale"][0]),
            "texts": texts,
            "image_features": array("image_features", "<f2", image_dim),
            "image_sources": strings("image_sources"),
            "icon": values["icon"][0],
            "checksum": values["checksum"][0],
        }
    except (KeyError, IndexError, StopIteration, DecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"it is no record of this version's form ({type(error).__name__}: {error}); build it again."
        ) from error
