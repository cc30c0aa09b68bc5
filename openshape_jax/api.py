"""The Python interface: a trained encoder that embeds and classifies point clouds given as NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from openshape_jax import checkpoint, config, runtime, sharding, state
from openshape_jax.data import schema, vocabulary
from openshape_jax.evals.zero_shot import projected

BATCH = 32  # most clouds embedded at once

Points = np.ndarray | Sequence[np.ndarray]


def load(path: str | Path, **options: Any) -> Model:
    """See `openshape_jax.load`."""
    return Model(*read(path, **options))


def read(path: str | Path, **options: Any) -> tuple[dict[str, Any], dict[str, Any], int]:
    """(weights, metadata, step) of a run of ours or of a foreign checkpoint; as `openshape_jax.load`."""
    from openshape_jax.convert import files

    if files.is_foreign(path):
        from openshape_jax.convert import load as foreign

        return foreign.read(path, **options)
    weights, metadata, step = checkpoint.load_weights(path)
    wanted = options.pop("embed_dim", None)
    if wanted is not None and wanted != metadata["embed_dim"]:
        raise ValueError(
            f"{path} embeds to D = {metadata['embed_dim']}, but embed_dim {wanted} was asked for."
        )
    if options:
        raise ValueError(
            f"{path} is a run of ours, which knows its own {', '.join(options)}: leave them out, they are "
            "for PyTorch files that do not tell them."
        )
    return weights, metadata, step


class Model:
    """An encoder with its metadata (architecture, text space, up axis, training data, version)."""

    def __init__(self, weights: dict[str, Any], metadata: dict[str, Any], step: int):
        self.metadata, self.step = metadata, step
        self.config: config.ModelConfig = config.from_dict(metadata["model"], config.ModelConfig)
        self.num_points = int(metadata["num_points"])
        self.up: str = metadata["up"]
        self._mirrored = bool(metadata.get("mirrored", False))
        self.text_proj: dict[str, Any] | None = weights.get("text_proj")  # of targets, where it was trained
        self.image_proj: dict[str, Any] | None = weights.get("image_proj")
        self._weights = jax.device_put(weights)
        views = int(metadata["views"])
        jit = runtime.jit_of_model(self.config.dtype)
        self._embed = jit(state.make_embed(self.config, views))
        self._embed_as_is = jit(state.make_embed(self.config, views, normalized=False))

    def embed(self, points: Points, up: str = "z", seed: int = 0) -> np.ndarray:
        """Unit vectors (B, D) float32, B = 1 for a single cloud.

        Clouds are centred and scaled here, so any unit will do. One with more points than the model's
        `num_points` is subsampled without replacement; one with fewer is filled up by repetition, which
        leaves its embedding exactly that of the cloud alone.
        Without colour, grey 0.4 is used, as in training. Clouds are turned to the axis that points up in
        the model's training data (`metadata["up"]`), and reflected where that data was
        (`metadata["mirrored"]`: OpenShape's own z-up models, whose y and z axes were swapped).

        Args:
          points: (N, 3) xyz or (N, 6) xyz rgb of one cloud, (B, N, 3|6) of several, or a sequence of
            clouds of unequal length. Colours in [0, 1], or 0 to 255 where any exceeds 1.
          up: the axis of `points` that points up, "z" or "y".
          seed: of the subsampling; the same input and seed give the same embedding.

        Raises:
          ValueError: a wrong shape, no point, NaN or infinite coordinates, all points equal, colours
            out of range, or an unknown `up`.
          FloatingPointError: embeddings that are not finite.
        """
        if up not in ("z", "y"):
            raise ValueError(f"up is {up!r}; it must be 'z' or 'y'.")
        prepared = [self._prepare(cloud, up, seed, i) for i, cloud in enumerate(_as_clouds(points)[0])]
        out = []
        for first in range(0, len(prepared), BATCH):
            part = prepared[first : first + BATCH]
            size = 1 << (len(part) - 1).bit_length()  # powers of two: few programs to compile
            part += [part[-1]] * (size - len(part))
            xyz, rgb, count = (np.stack(x) for x in zip(*part, strict=True))
            out.append(np.asarray(self._embed(self._weights, xyz, rgb, count)))
        vectors = np.concatenate([o[: min(BATCH, len(prepared) - k * BATCH)] for k, o in enumerate(out)])
        if bad := np.flatnonzero(~np.isfinite(vectors).all(1)).tolist():
            raise FloatingPointError(
                f"the embeddings of clouds {bad[:5]} are not finite: the weights are broken; "
                "convert them again."
            )
        return vectors

    def classify(self, points: Points, labels: Sequence[str], up: str = "z") -> np.ndarray:
        """Probabilities over `labels`: (C,) for a single (N, 3|6) cloud, else (B, C); rows sum to 1.

        They are the softmax of cosines with the labels' text vectors times the learnt logit scale.

        Args:
          labels: names that the vocabulary knows ("night stand", "wooden chairs" resolve too).

        Raises:
          UnknownLabel (a ValueError): lists the nearest known names. ValueError: as `embed`, no label, or two
          that are one name.
        """
        check_labels(labels)
        probabilities = softmax(self.scores(self.embed(points, up), labels))
        return probabilities[0] if _as_clouds(points)[1] else probabilities

    def scores(self, embeddings: np.ndarray, labels: Sequence[str]) -> np.ndarray:
        """(B, C) logits: cosines with the labels' text vectors times the learnt logit scale.

        Raises:
          UnknownLabel: a label that the vocabulary does not know. ValueError: the model lives in the space
            of another CLIP than the vocabulary's ViT-B/32.
        """
        space = self.metadata["text_space"]
        if space not in (vocabulary.TEXT_SPACE, vocabulary.RAW_TEXT_SPACE):
            raise ValueError(
                f"labels are known as vectors of {vocabulary.RAW_TEXT_SPACE}, but this model embeds into "
                f"{space} (D = {self.config.embed_dim}): take cosines of model.embed(points) with text "
                "vectors of that CLIP instead."
            )
        text = vocabulary.load().encode(list(labels), centred=space == vocabulary.TEXT_SPACE)
        if self.text_proj is not None:
            text = projected(text, self.text_proj)
        return self.metadata["logit_scale"] * embeddings @ text.T

    def embed_stored(
        self,
        xyz: np.ndarray,
        rgb: np.ndarray,
        count: np.ndarray | None = None,
        mesh: jax.sharding.Mesh | None = None,
        normalize: bool = True,
    ) -> jax.Array:
        """(B, D) unit vectors, on the device, of points (B, N, 3) as data sets store them: z-up codes.

        Args:
          xyz, rgb: uint16 and uint8 codes; or z-up coordinates and colours in [0, 1], both float32.
          count: (B,) points of each cloud, where the rest repeats them in order; None: all N.
          mesh: rows are split over its devices, whose number must divide B; None: one device.
          normalize: clouds are centred and scaled to the unit sphere; False: they are taken as they are.
        """
        if xyz.dtype == np.uint16:
            xyz, rgb = schema.dequantize_xyz(xyz), rgb.astype(np.float32) / np.float32(255)
        batch = {"xyz": self._turned(xyz, "z"), "rgb": rgb}
        if count is not None:
            batch["count"] = np.asarray(count, np.int32)
        if mesh is not None:
            self._weights = jax.device_put(self._weights, sharding.replicated(mesh))  # only the first time
            batch = sharding.put_batch(batch, mesh)
        return (self._embed if normalize else self._embed_as_is)(self._weights, *batch.values())

    def _turned(self, xyz: np.ndarray, up: str) -> np.ndarray:
        """(..., 3) coordinates as the model's training data had them, of coordinates with `up` up."""
        if up != self.up:
            xyz = schema.to_z_up(xyz) if up == "y" else schema.to_y_up(xyz)
        return xyz * np.array([1, -1, 1], np.float32) if self._mirrored else xyz

    def _prepare(self, cloud: np.ndarray, up: str, seed: int, index: int) -> tuple[np.ndarray, ...]:
        """(xyz, rgb, number of distinct points), ready for `state.make_embed`."""
        if cloud.ndim != 2 or cloud.shape[1] not in (3, 6) or len(cloud) == 0:
            raise ValueError(
                f"cloud {index} has shape {cloud.shape}; expected (N, 3) xyz or (N, 6) xyz rgb with N >= 1."
            )
        try:
            xyz = schema.to_unit_sphere(cloud[:, :3]).xyz
        except ValueError as error:
            raise ValueError(f"cloud {index}: {error}") from None
        xyz = self._turned(xyz, up)
        rgb = np.full_like(xyz, schema.GRAY)
        if cloud.shape[1] == 6:
            try:
                rgb = schema.unit_colors(cloud[:, 3:])
            except ValueError as error:
                raise ValueError(f"cloud {index} has {error}") from None
        order = np.random.default_rng(seed).permutation(len(xyz))[: self.num_points]
        return (
            *(np.resize(x[order], (self.num_points, 3)) for x in (xyz, rgb)),
            np.asarray(len(order), np.int32),
        )


def check_labels(labels: Sequence[str]) -> None:
    """Raises what `Model.classify` does of labels."""
    if isinstance(labels, str) or len(labels) == 0 or not all(isinstance(n, str) for n in labels):
        raise ValueError(f"labels is {labels!r}; give a list of at least one name.")
    words, known = vocabulary.load(), {}
    for label in labels:
        index = words.lookup(label)
        if index in known:
            raise ValueError(
                f"the labels {known[index]!r} and {label!r} are one name, {words.names[index]!r}, whose "
                "probability would be split: give it once."
            )
        known[index] = label


def softmax(logits: np.ndarray) -> np.ndarray:
    """Row-wise softmax in float64, returned as float32."""
    e = np.exp((logits - logits.max(-1, keepdims=True)).astype(np.float64))
    return (e / e.sum(-1, keepdims=True)).astype(np.float32)


def _as_clouds(points: Points) -> tuple[list[np.ndarray], bool]:
    """(clouds, whether `points` was a single one) of an array, a list of points or a sequence of clouds."""
    if hasattr(points, "__array__") and np.asarray(points).dtype.kind != "O":
        array = np.asarray(points)
        if array.ndim not in (2, 3):
            raise ValueError(f"points has shape {array.shape}; expected (N, 3|6) or (B, N, 3|6).")
        single = array.ndim == 2
        clouds = [array] if single else list(array)
    else:
        clouds = [np.asarray(cloud) for cloud in points]
        single = bool(clouds) and all(cloud.ndim == 1 for cloud in clouds)  # [[x, y, z], ...]
        clouds = [np.asarray(clouds)] if single and len({len(c) for c in clouds}) == 1 else clouds
    if not clouds:
        raise ValueError("points is empty; give at least one cloud.")
    for index, cloud in enumerate(clouds):
        if not np.issubdtype(cloud.dtype, np.number) or np.iscomplexobj(cloud):
            raise ValueError(f"cloud {index} has type {cloud.dtype}; expected real numbers.")
    return clouds, single
