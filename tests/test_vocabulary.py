"""The shipped text vectors and the lookup of phrases."""

import json
from pathlib import Path

import numpy as np
import pytest

from openshape_jax.data import vocabulary

WORDS = vocabulary.load()


def name(phrase: str) -> str:
    return WORDS.names[WORDS.lookup(phrase)]


def test_every_name_and_key_finds_itself():
    assert [WORDS.find(n) for n in WORDS.names] == list(range(len(WORDS.names)))
    assert [WORDS.find(k) for k in WORDS.keys] == list(range(len(WORDS.keys)))
    assert len(WORDS.names_of("lvis")) == 1203
    assert len(set(WORDS.names_of("lvis"))) == 1203
    with pytest.raises(ValueError, match="unknown source 'coco'"):
        WORDS.names_of("coco")


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("chair", "chair"), ("Chairs", "chair"),
        ("a chair", "chair"), ("oid:Door", "door"),
        ("LVIS:sofa", "sofa"), ("night_stand", "nightstand"),
        ("bedside tables", "nightstand"), ("knives", "knife"),
        ("people", "person"), ("monitor", "monitor (computer equipment)"),
        ("settee", "sofa"), ("hot-air balloon", "hot air balloon"),
        ("rattan garden chair", "chair"), ("red sofa with two cushions", "sofa"),
        ("tv", "television set"), ("bookshelf", "bookcase"),
        ("fridge", "refrigerator"),
    ],
)  # fmt: skip
def test_lookup(phrase, expected):
    assert name(phrase) == expected


def test_find_takes_no_head_noun():
    assert WORDS.find("rattan garden chair") is None


@pytest.mark.parametrize("phrase", ["chiar", "tv stand", "xbox", "", "zzzqqq"])
def test_unknown_labels_are_errors_that_help(phrase):
    with pytest.raises(vocabulary.UnknownLabel, match="unknown label"):
        WORDS.lookup(phrase)


def test_error_lists_the_nearest_names():
    with pytest.raises(vocabulary.UnknownLabel, match="nearest known names: .*chair"):
        WORDS.encode(["chair", "chiar"])


def test_vectors_are_centred_unit_rows():
    np.testing.assert_allclose(np.linalg.norm(WORDS.features, axis=1), 1, atol=1e-5)
    cosines = WORDS.features @ WORDS.features.T
    off = cosines[np.triu_indices(len(cosines), 1)]
    assert abs(off.mean()) < 0.01
    sofa, armchair, giraffe = WORDS.encode(["sofa", "armchair", "giraffe"])
    assert sofa @ armchair > 0.3 > sofa @ giraffe


def test_names_of_benchmarks_resolve():
    path = Path(__file__).parent / "fixtures" / "zero_shot_labels.json"
    known_gaps = {"tv stand", "xbox"}  # nothing in the vocabulary is honestly one of these
    for names in json.loads(path.read_text()).values():
        for phrase in names:
            if phrase.replace("_", " ") not in known_gaps:
                WORDS.lookup(phrase)
