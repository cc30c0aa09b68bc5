"""The choice of a shape's training targets: which text and which image feature.

The default is OpenShape's policy (arXiv 2305.10764, section 3): one source is drawn
uniformly among those that have something to offer for the shape, then a text of that source.

| source | texts | feature |
|---|---|---|
| "metadata" | what the shape's author wrote; of several, one uniformly | prompt-averaged |
| "caption" | a fair coin: "blip" or "msft", which may have nothing to say | prompt-averaged |
| "retrieval" | texts of similar images, one uniformly | of the bare words |

"metadata_other" (the further metadata texts of an Objaverse shape, which the paper leaves out) and the
sources of other data sets ("class", "synonym", "name") work like "metadata".
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from openshape_jax.config import DataConfig
from openshape_jax.data.schema import Text

MAX_TEXTS = 8  # ids of a shape's texts that go into a batch, for class-aware positives
CAPTIONERS = ("blip", "msft")  # the coin of "caption"
BARE = ("retrieval",)  # sources whose texts are whole sentences: no prompt templates
NOT_BY_DEFAULT = ("metadata_other",)


def text_hash(text: str) -> int:
    """A non-negative int32 id of a text's words, the same in every process."""
    return zlib.crc32(text.lower().encode()) & 0x7FFFFFFF


def feature_of(text: Text, prompt_engineering: bool) -> np.ndarray | None:
    """The (D,) feature that a text is trained on; the other one where there is only that."""
    wants_prompt = prompt_engineering and text.source not in BARE
    first, second = text.feature, text.prompt_feature
    if wants_prompt:
        first, second = second, first
    return second if first is None else first


def _offers(record: dict[str, Any], config: DataConfig) -> dict[str, list[Text]]:
    """The usable texts of a record by source; both captioners stand under "caption"."""
    offers: dict[str, list[Text]] = {}
    for text in record["texts"]:
        source = "caption" if text.source in CAPTIONERS else text.source
        if config.text_sources and source not in config.text_sources:
            continue
        if not config.text_sources and source in NOT_BY_DEFAULT:
            continue
        if source == "metadata" and config.use_text_filter and record.get("text_flag") == "N":
            continue
        if feature_of(text, config.prompt_engineering) is not None:
            offers.setdefault(source, []).append(text)
    return offers


def has_text(record: dict[str, Any], config: DataConfig) -> bool:
    """Whether the record has a text to train on."""
    return bool(_offers(record, config))


def has_target(record: dict[str, Any], config: DataConfig) -> bool:
    """Whether the record gives any training signal."""
    return has_text(record, config) or len(record["image_features"]) > 0


def _draw_text(offers: dict[str, list[Text]], share: float, rng: np.random.Generator) -> Text | None:
    if "class" in offers and rng.random() < share:
        return offers["class"][0]
    captions = offers.get("caption", [])
    if any(t.source in CAPTIONERS for t in captions):
        captioner = CAPTIONERS[rng.integers(2)]
        offers = {**offers, "caption": [t for t in captions if t.source == captioner]}
        offers = {source: texts for source, texts in offers.items() if texts}
    if not offers:
        return None
    texts = list(offers.values())[rng.integers(len(offers))]
    return texts[rng.integers(len(texts))]


def _draw_image(left: dict[bool, list[int]], share: float, rng: np.random.Generator) -> int | None:
    """The row of a thumbnail with probability `share`, else of a render; the other kind where there is only
    one."""
    rows = left[rng.random() < share] or left[True] or left[False]
    return rows[rng.integers(len(rows))] if rows else None


def choose(
    record: dict[str, Any], config: DataConfig, text_dim: int, image_dim: int, rng: np.random.Generator
) -> dict[str, Any]:
    """`config.texts` text and `config.images` image features of a record, float16 as they are stored, with
    masks where there are fewer.

    Each is drawn by the policy among what is left after the ones before it. With probability
    `config.class_text_share` the class name is taken where there is one, whatever the other sources offer.
    """
    m, offers = config.texts, _offers(record, config)
    every = [t for texts in offers.values() for t in texts]
    out = {
        "text": np.zeros((m, text_dim), np.float16), "has_text": np.zeros(m, bool),
        "text_id": np.full(m, -1, np.int32), "text_ids": np.full(MAX_TEXTS, -1, np.int32),
    }  # fmt: skip
    for place in range(m):
        text = _draw_text(offers, config.class_text_share, rng)
        if text is None:
            break
        out["text"][place] = feature_of(text, config.prompt_engineering)
        out["has_text"][place], out["text_id"][place] = True, text_hash(text.text)
        offers = {source: [t for t in texts if t is not text] for source, texts in offers.items()}
        offers = {source: texts for source, texts in offers.items() if texts}
    if drawn := [int(i) for i in out["text_id"] if i >= 0]:
        unique = list(dict.fromkeys([*drawn, *(text_hash(t.text) for t in every)]))[:MAX_TEXTS]
        out["text_ids"][: len(unique)] = unique
    m = config.images
    out |= {"image": np.zeros((m, image_dim), np.float16), "has_image": np.zeros(m, bool)}
    left: dict[bool, list[int]] = {True: [], False: []}
    for row, source in enumerate(record["image_sources"]):
        left[source == "thumbnail"].append(row)
    for place in range(m):
        row = _draw_image(left, config.thumbnail_share, rng)
        if row is None:
            break
        out["image"][place], out["has_image"][place] = record["image_features"][row], True
        left = {kind: [r for r in rows if r != row] for kind, rows in left.items()}
    return out
