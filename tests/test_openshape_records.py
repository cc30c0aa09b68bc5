"""One file of OpenShape's release as a record: what is kept, what is left out, what is refused and why."""

from typing import Any

import numpy as np
import pytest
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from openshape_jax.data import schema
from tests import openshape_files as release
from tfds_builders.openshape_ensemble import layout, records


def item(shape: tuple[str, str, str] = release.SHAPES[0]) -> layout.Item:
    return layout.Item(release.uid(shape), shape[0], shape[1], (), "", "", "")


def encoded(**changes: Any) -> dict[str, Any]:
    """The record of the first shape, some parts of its file changed (None: taken away)."""
    data = {k: v for k, v in (release.content(release.SHAPES[0]) | changes).items() if v is not None}
    return records.encode(data, item(), release.WIDTH)


PAIR = {"original": np.ones(1280, np.float32), "prompt_avg": np.ones((1, 1280), np.float32)}
REJECTS = {
    "no xyz": ({"xyz": None}, "there is no 'xyz' in it; it has 'dataset', 'group'"),
    "flat xyz": ({"xyz": np.zeros(150)}, r"xyz has shape \(150,\) and type float64; expected numbers"),
    "no point": ({"xyz": np.zeros((0, 3))}, r"xyz has shape \(0, 3\)"),
    "words for points": ({"xyz": np.full((50, 3), "a")}, "type <U1"),
    "NaN": ({"xyz": np.full((50, 3), np.nan)}, "50 of 50 points have a NaN"),
    "no extent": ({"xyz": np.ones((50, 3))}, "all 50 points are equal"),
    "fewer colours": ({"rgb": np.zeros((49, 3))}, "xyz has 50 points but rgb 49"),
    "colours": ({"rgb": np.full((50, 3), 256)}, "colours from 256 to 256; expected 0-1 or 0-255"),
    "negative colours": ({"rgb": np.full((50, 3), -0.5)}, "colours from -0.5"),
    "image width": ({"image_feat": np.zeros((12, 1024))}, "image_feat has the width 1024, .* have 1280"),
    "thumbnail width": ({"thumbnail_feat": np.zeros(768)}, "thumbnail_feat has the width 768, .* have 1280"),
    "text width": ({"text_feat": [{"original": np.ones(9)}, {}]}, r"text_feat\['original'\] has the width 9"),
    "NaN feature": ({"image_feat": np.full((1, 1280), np.nan)}, "image_feat has a value that is NaN"),
    "large feature": ({"blip_caption_feat": {"original": np.full(1280, 1e9)}}, "above 65504"),
    "bytes": ({"blip_caption": "jalapeño".encode("latin1")}, "blip_caption is not UTF-8 .*at byte 6"),
    "surrogate": ({"msft_caption": "a \ud800"}, "msft_caption cannot be written as UTF-8"),
    "number": ({"msft_caption": float("nan")}, r"msft_caption holds a float \('nan'\)"),
    "no dict": ({"blip_caption_feat": np.zeros(1280)}, "expected a dict of original, prompt_avg"),
    "two features": ({"blip_caption_feat": {"original": np.zeros((2, 1280))}}, "2 vectors for one text"),
    "fewer features": ({"text_feat": [PAIR]}, "2 items in text but 1 in text_feat"),
}  # fmt: skip


@pytest.mark.parametrize("case", REJECTS)
def test_unusable_parts_are_named(case):
    changes, message = REJECTS[case]
    with pytest.raises(ValueError, match=message):
        encoded(**changes)


def test_what_may_be_missing_is_left_out():
    gone = dict.fromkeys(("image_feat", "text", "blip_caption", "msft_caption", "retrieval_text"))
    record = encoded(**gone, thumbnail_feat=np.zeros((0, 1280)))
    assert record["texts"] == [] and record["image_features"].shape == (0, 1280)
    record = encoded(blip_caption="", blip_caption_feat={}, retrieval_text=[], retrieval_text_feat=[])
    assert [t["source"] for t in record["texts"]] == ["metadata", "metadata_other", "msft"]
    assert encoded(thumbnail_feat=None)["image_sources"] == ["render"] * 12
    empty_name = encoded(text=["", "tags"])  # the tags stay a further text: the paper's is the first
    assert [t["source"] for t in empty_name["texts"]][:2] == ["metadata_other", "blip"]
    assert encoded(text_feat=None)["texts"][0]["has_feature"] is False


def test_other_spellings_of_the_same_content():
    plain = encoded()
    file = release.content(release.SHAPES[0])
    boxed = np.empty((), object)
    boxed[()] = file["blip_caption_feat"]
    again = encoded(
        blip_caption=np.array(file["blip_caption"]),
        blip_caption_feat=boxed,
        msft_caption=file["msft_caption"].encode(),
        text=np.array(file["text"], object),
        image_feat=file["image_feat"][:, None],
        thumbnail_feat=file["thumbnail_feat"][0],
    )
    assert again["texts"] == plain["texts"]
    for key in ("text_features", "prompt_features", "image_features"):
        np.testing.assert_array_equal(again[key], plain[key])
    beyond = np.where(file["rgb"] > 0.5, np.float32(1.0000002), np.float32(-1e-8))
    np.testing.assert_array_equal(encoded(rgb=beyond)["rgb"], np.where(file["rgb"] > 0.5, 255, 0))
    of_bytes = encoded(rgb=np.round(file["rgb"] * 255))
    np.testing.assert_array_equal(of_bytes["rgb"], np.round(file["rgb"] * 255).astype(np.uint8))


def test_a_full_record_takes_at_most_150_kb():
    data = release.content(release.SHAPES[0], num_points=10_000)
    data["retrieval_text_feat"] = [PAIR]
    one = item()._replace(category="armchair", label="armchair", flag="Y")
    record = records.encode(data, one, release.WIDTH)
    assert len(record["image_features"]) == 13
    assert len(record["text_features"]) == len(record["prompt_features"]) == 5
    features = schema.features(text_dim=release.WIDTH, image_dim=release.WIDTH)
    example = ExampleSerializer(features.get_serialized_info()).get_tf_example(
        features.encode_example(record)
    )
    size = len(example.SerializeToString(deterministic=True))
    assert size <= 150_000
