"""The choice of a shape's training targets: which text and which image feature."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from openshape_jax.config import DataConfig

MAX_TEXTS = 8  # ids of a shape's texts that go into a batch, for class-aware positives


def text_hash(text: str) -> int:
    """A non-negative int32 id of a text's words, the same in every process."""
    return zlib.crc32(text.lower().encode()) & 0x7FFFFFFF


def allowed_texts(record: dict[str, Any], sources: Sequence[str]) -> list[Any]:
    """The texts of a record that carry a feature and come from one of `sources` (empty: any)."""
    return [t for t in record["texts"] if t.feature is not None and (not sources or t.source in sources)]


def has_target(record: dict[str, Any], config: DataConfig) -> bool:
    """Whether the record gives any training signal."""
    return bool(allowed_texts(record, config.text_sources)) or len(record["image_features"]) > 0


def choose(
    record: dict[str, Any], config: DataConfig, text_dim: int, image_dim: int, rng: np.random.Generator
) -> dict[str, Any]:
    """One text and one image feature of a record, with masks where there is none.

    A text is drawn uniformly among the allowed ones, except that with probability
    `config.class_text_share` the class name is taken where there is one.
    """
    texts = allowed_texts(record, config.text_sources)
    ids = np.full(MAX_TEXTS, -1, np.int32)
    out = {"text": np.zeros(text_dim, np.float32), "has_text": bool(texts), "text_id": np.int32(-1)}
    if texts:
        named = [t for t in texts if t.source == "class"]
        use_class = bool(named) and rng.random() < config.class_text_share
        text = named[0] if use_class else texts[rng.integers(len(texts))]
        unique = list(dict.fromkeys([text_hash(text.text), *(text_hash(t.text) for t in texts)]))[:MAX_TEXTS]
        ids[: len(unique)] = unique
        out |= {"text": text.feature.astype(np.float32), "text_id": np.int32(text_hash(text.text))}
    images = record["image_features"]
    out["has_image"] = len(images) > 0
    out["image"] = (
        images[rng.integers(len(images))].astype(np.float32)
        if len(images)
        else np.zeros(image_dim, np.float32)
    )
    return {**out, "text_ids": ids}
