"""The choice of targets against OpenShape's policy (arXiv 2305.10764, section 3.2), enumerated by hand."""

from collections import Counter
from fractions import Fraction as F
from typing import Any

import numpy as np
import pytest
from scipy import stats

from openshape_jax.config import DataConfig
from openshape_jax.data import targets
from openshape_jax.data.schema import Text

DRAWS = 6_000
TEXTS = {
    "name": "metadata",
    "second name": "metadata",
    "third name": "metadata",
    "tags": "metadata_other",
    "blip": "blip",
    "msft": "msft",
    "ad": "retrieval",
    "post": "retrieval",
}
WIDTH = 2 * len(TEXTS)  # a direction for every text's bare feature and for its prompt-averaged one
NONE = "no text"


def record(*names: str, flag: str = "Y", renders: int = 0, thumbnails: int = 0) -> dict[str, Any]:
    """A shape with these texts and image features, each feature a direction of its own."""
    unit = np.eye(WIDTH, dtype=np.float32)
    images = np.eye(renders + thumbnails, WIDTH, dtype=np.float16)
    place = list(TEXTS).index
    return {
        "texts": [Text(n, TEXTS[n], unit[2 * place(n)], unit[2 * place(n) + 1]) for n in names],
        "text_flag": flag,
        "image_features": images,
        "image_sources": ["render"] * renders + ["thumbnail"] * thumbnails,
    }


def drawn(shape: dict[str, Any], seed: int = 0, **config: Any) -> tuple[Counter, set[str], Counter]:
    """(how often each text was drawn, the kinds of features, how often each image)."""
    rng, options = np.random.default_rng(seed), DataConfig(**config)
    texts, kinds, images = Counter(), set(), Counter()
    for _ in range(DRAWS):
        chosen = targets.choose(shape, options, WIDTH, WIDTH, rng)
        row = {key: value[0] for key, value in chosen.items() if key != "text_ids"}
        images[int(row["image"].argmax()) if row["has_image"] else NONE] += 1
        if not row["has_text"]:
            assert not row["text"].any() and row["text_id"] == -1
            texts[NONE] += 1
            continue
        assert row["text"].sum() == 1
        which, prompt = divmod(int(row["text"].argmax()), 2)
        name = list(TEXTS)[which]
        assert row["text_id"] == targets.text_hash(name)
        texts[name] += 1
        kinds.add(f"{TEXTS[name]}: {'prompt' if prompt else 'bare'}")
    return texts, kinds, images


def agrees(found: Counter, expected: dict[Any, F]) -> None:
    """Fails if the counts are improbable under the expected shares, or impossible."""
    assert sum(expected.values()) == 1
    assert found.keys() <= expected.keys()
    counts = [found[key] for key in expected]
    if len(expected) > 1:
        assert stats.chisquare(counts, [float(p) * DRAWS for p in expected.values()]).pvalue > 1e-3, found


ALL = tuple(TEXTS)
SIX = F(1, 6)
FILTERED = {"blip": F(1, 4), "msft": F(1, 4), "ad": F(1, 4), "post": F(1, 4)}
WHOLE = {**dict.fromkeys(ALL[:3], F(1, 9)), "blip": SIX, "msft": SIX, "ad": SIX, "post": SIX}
# (texts, flag, settings, shares). A source is drawn first, whatever the number of its texts; before that a
# coin says which captioner stands for "caption", and one that is silent takes the source away.
POLICY = {
    "all sources": (ALL, "Y", {}, WHOLE),
    "not judged": (ALL, "", {}, WHOLE),
    "filtered": (ALL, "N", {}, FILTERED),
    "filter off": (ALL, "N", {"use_text_filter": False}, WHOLE),
    # heads: 1/3 each of name, blip, ad; tails: 1/2 each of name, ad
    "silent msft": (("name", "blip", "ad"), "Y", {}, {"name": F(5, 12), "blip": SIX, "ad": F(5, 12)}),
    "silent blip": (("name", "msft", "ad"), "Y", {}, {"name": F(5, 12), "msft": SIX, "ad": F(5, 12)}),
    "no captions": (("name", "ad", "post"), "Y", {}, {"name": F(1, 2), "ad": F(1, 4), "post": F(1, 4)}),
    "one caption only": (("blip",), "Y", {}, {"blip": F(1, 2), NONE: F(1, 2)}),
    "one caption, filtered": (("name", "tags", "msft"), "N", {}, {"msft": F(1, 2), NONE: F(1, 2)}),
    "nothing but a filtered name": (("name", "tags"), "N", {}, {NONE: F(1)}),
    "further metadata only": (("tags",), "Y", {}, {NONE: F(1)}),
    "nothing": ((), "Y", {}, {NONE: F(1)}),
    "further metadata on demand": (
        ("name", "tags", "blip"), "Y", {"text_sources": ("metadata", "metadata_other")},
        {"name": F(1, 2), "tags": F(1, 2)},
    ),
    "captions alone": (ALL, "Y", {"text_sources": ("caption",)}, {"blip": F(1, 2), "msft": F(1, 2)}),
    "no retrieval": (
        ("name", "blip", "msft", "ad"), "Y", {"text_sources": ("metadata", "caption")},
        {"name": F(1, 2), "blip": F(1, 4), "msft": F(1, 4)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", POLICY)
def test_texts_are_drawn_as_in_the_paper(case):
    names, flag, settings, shares = POLICY[case]
    texts, _, _ = drawn(record(*names, flag=flag), **settings)
    agrees(texts, shares)


def test_the_test_would_notice_a_wrong_policy():
    texts, _, _ = drawn(record(*ALL))
    uniform = {name: F(1, 7) for name in WHOLE}  # texts, not sources, drawn uniformly
    with pytest.raises(AssertionError):
        agrees(texts, uniform)
    texts, _, _ = drawn(record("name", "blip", "ad"))
    with pytest.raises(AssertionError):
        agrees(texts, dict.fromkeys(("name", "blip", "ad"), F(1, 3)))  # the coin thrown again


def test_features_are_prompt_averaged_except_for_retrieved_texts():
    _, kinds, _ = drawn(record(*ALL))
    assert kinds == {"metadata: prompt", "blip: prompt", "msft: prompt", "retrieval: bare"}
    texts, kinds, _ = drawn(record(*ALL), prompt_engineering=False)
    assert kinds == {"metadata: bare", "blip: bare", "msft: bare", "retrieval: bare"}
    agrees(texts, WHOLE)


def test_the_other_feature_serves_where_there_is_one_only():
    shape = record("name", "ad")
    name, ad = shape["texts"]
    shape["texts"] = [name._replace(prompt_feature=None), ad._replace(feature=None)]
    texts, kinds, _ = drawn(shape)
    assert kinds == {"metadata: bare", "retrieval: prompt"}
    agrees(texts, {"name": F(1, 2), "ad": F(1, 2)})
    shape["texts"] = [name._replace(prompt_feature=None, feature=None), ad]  # words without a feature
    agrees(drawn(shape)[0], {"ad": F(1)})


IMAGES = {
    "Objaverse": (12, 1, {}, {**dict.fromkeys(range(12), F(1, 24)), 12: F(1, 2)}),
    "no thumbnail": (12, 0, {}, dict.fromkeys(range(12), F(1, 12))),
    "thumbnail only": (0, 1, {}, {0: F(1)}),
    "none": (0, 0, {}, {NONE: F(1)}),
    "renders only": (3, 1, {"thumbnail_share": 0.0}, dict.fromkeys(range(3), F(1, 3))),
    "thumbnails only": (3, 2, {"thumbnail_share": 1.0}, {3: F(1, 2), 4: F(1, 2)}),
    "a fifth": (2, 1, {"thumbnail_share": 0.2}, {0: F(2, 5), 1: F(2, 5), 2: F(1, 5)}),
}


@pytest.mark.parametrize("case", IMAGES)
def test_images_are_drawn_as_in_the_paper(case):
    renders, thumbnails, settings, shares = IMAGES[case]
    _, _, images = drawn(record(renders=renders, thumbnails=thumbnails), **settings)
    agrees(images, shares)


def test_text_and_image_are_drawn_apart():
    shape, rng, config = record("name", "ad", renders=1, thumbnails=1), np.random.default_rng(1), DataConfig()
    table = np.zeros((2, 2))
    for _ in range(DRAWS):
        chosen = targets.choose(shape, config, WIDTH, WIDTH, rng)
        row = {key: value[0] for key, value in chosen.items() if key != "text_ids"}
        table[int(row["text_id"] == targets.text_hash("ad")), row["image"].argmax()] += 1
    p_value = float(np.asarray(stats.chi2_contingency(table)[1]))
    assert p_value > 1e-3


def test_a_draw_depends_on_the_seed_alone():
    shape = record(*ALL, renders=12, thumbnails=1)
    assert drawn(shape, 5) == drawn(shape, 5) != drawn(shape, 6)


def test_ids_are_those_of_the_texts_on_offer_the_drawn_one_first():
    row = targets.choose(record(*ALL, flag="N"), DataConfig(), WIDTH, WIDTH, np.random.default_rng(0))
    ids = [i for i in row["text_ids"].tolist() if i >= 0]
    assert ids[0] == row["text_id"]
    assert sorted(ids) == sorted(targets.text_hash(n) for n in ("blip", "msft", "ad", "post"))


@pytest.mark.parametrize(
    ("shape", "useful"),
    [
        (record("name"), True),
        (record("name", flag="N"), False),
        (record("tags"), False),
        (record(renders=1), True),
        (record(), False),
    ],
)
def test_shapes_that_give_no_signal(shape, useful):
    assert targets.has_target(shape, DataConfig()) is useful
