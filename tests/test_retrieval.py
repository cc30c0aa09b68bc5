"""Retrieval against brute force, its invariances, and queries by two shapes."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from openshape_jax.evals import retrieval


def vectors(n: int, d: int = 8, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def labelled() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(class vectors, shapes near them, classes): 6 classes, the last with a single shape."""
    classes = vectors(6, seed=1)
    label = np.r_[np.repeat(np.arange(5), 7), 5]
    emb = classes[label] + 0.6 * vectors(36, seed=2)
    return classes, (emb / np.linalg.norm(emb, axis=1, keepdims=True)).astype(np.float32), label


def by_hand(scores: np.ndarray, match: np.ndarray, k: int) -> tuple[float, float]:
    """(recall@k, average precision) of one query, counted."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    places = [place for place, i in enumerate(order) if match[i]]
    precision = [(number + 1) / (place + 1) for number, place in enumerate(places)]
    return float(places[0] < k), float(np.mean(precision))


def test_words_and_shapes_against_a_count(labelled):
    classes, emb, label = labelled
    found = retrieval.words(classes, emb, label)
    counted = [by_hand(emb @ classes[c], label == c, 1) for c in range(6)]
    assert found["recall@1"] == pytest.approx(np.mean([r for r, _ in counted]))
    assert found["mAP"] == pytest.approx(np.mean([p for _, p in counted]))
    assert (found["queries"], found["gallery"]) == (6, 36)
    found = retrieval.shapes(emb, label)
    counted = []
    for i in range(35):  # the one of the last class has nothing to find
        others = np.delete(np.arange(36), i)
        counted.append(by_hand(emb[others] @ emb[i], label[others] == label[i], 5))
    assert found["queries"] == 35
    assert found["recall@5"] == pytest.approx(np.mean([r for r, _ in counted]))
    assert found["mAP"] == pytest.approx(np.mean([p for _, p in counted]))
    assert found["chance@1"] == pytest.approx(6 / 35)
    assert 0.2 < found["mAP"] < 1


def test_average_precision_is_scikit_learns():
    rng = np.random.default_rng(0)
    scores, match = rng.normal(size=(50, 30)), rng.random((50, 30)) < 0.2
    match[:, 0] = True
    found = retrieval.rank(scores, match)
    expected = [average_precision_score(m, s) for m, s in zip(match, scores, strict=True)]
    np.testing.assert_allclose(found.precision, expected)


def test_equal_scores_count_against_the_match():
    found = retrieval.rank(np.zeros((1, 4)), np.array([[True, False, False, False]]))
    assert (found.first[0], found.precision[0]) == (3, 0.25)


def same(found: dict, expected: dict) -> None:
    assert {k: v for k, v in found.items() if k != "same class"} == pytest.approx(
        {k: v for k, v in expected.items() if k != "same class"}
    )
    if "same class" in expected:
        same(found["same class"], expected["same class"])


def test_the_order_of_shapes_does_not_matter_nor_the_size_of_blocks(labelled, monkeypatch):
    classes, emb, label = labelled
    order = np.random.default_rng(3).permutation(len(emb))
    measured = [
        retrieval.words,
        lambda c, e, y: retrieval.shapes(e, y),
        lambda c, e, y: retrieval.images(e, e, y),
    ]
    before = [measure(classes, emb, label) for measure in measured]
    for measure, expected in zip(measured, before, strict=True):
        same(measure(classes, emb[order], label[order]), expected)
    monkeypatch.setattr(retrieval, "BLOCK", 4)
    for measure, expected in zip(measured, before, strict=True):
        same(measure(classes, emb, label), expected)


def test_images_find_their_shape_and_its_class(labelled):
    _, emb, label = labelled
    pictures = emb.copy()
    pictures[[0, 1]] = pictures[[1, 0]]  # two of one class mistaken for each other
    pictures[2] = np.nan  # no picture
    found = retrieval.images(pictures, emb, label)
    assert found["queries"] == 35
    assert found["recall@1"] == pytest.approx(33 / 35)
    assert found["same class"]["recall@1"] == 1
    with pytest.raises(ValueError, match="no shape has an image feature"):
        retrieval.images(np.full_like(emb, np.nan), emb, label)


def test_two_shapes_of_a_class_against_a_count(labelled):
    classes, emb, label = labelled
    found = retrieval.two_shapes(emb, label, classes, count=40)["same class"]
    pairs = retrieval.pairs_of_a_class(label, 40)
    assert (label[pairs[:, 0]] == label[pairs[:, 1]]).all()
    assert (pairs[:, 0] != pairs[:, 1]).all()
    for name, formula in (("min", min), ("sum", lambda a, b: a + b), ("a alone", lambda a, b: a)):
        counted = []
        for a, b in pairs:
            others = [i for i in range(36) if i not in (a, b)]
            scores = np.array([formula(emb[i] @ emb[a], emb[i] @ emb[b]) for i in others])
            counted.append(by_hand(scores, label[others] == label[a], 1))
        assert found[name]["recall@1"] == pytest.approx(np.mean([r for r, _ in counted]))
        assert found[name]["mAP"] == pytest.approx(np.mean([p for _, p in counted]))
    # Two shapes tell more of their class than one.
    assert found["min"]["mAP"] > found["a alone"]["mAP"]
    assert found["sum"]["mAP"] > found["a alone"]["mAP"]


def test_two_shapes_of_different_classes_are_scored_between_chance_and_the_best(labelled):
    classes, _, label = labelled
    perfect = classes[label]
    found = retrieval.two_shapes(perfect, label, classes, count=60)["two classes"]
    assert found["min"]["gain@10"] == pytest.approx(1)
    assert found["a alone"]["gain@10"] < 0.9
    blind = np.mean([
        retrieval.two_shapes(vectors(36, seed=s), label, classes, count=60)["two classes"]["min"]["gain@10"]
        for s in range(20)
    ])  # fmt: skip
    assert abs(blind) < 0.1
    assert "two classes" not in retrieval.two_shapes(perfect, np.zeros(36, int), classes)


def test_nothing_to_find_is_said():
    with pytest.raises(ValueError, match="no class has two shapes"):
        retrieval.shapes(vectors(4), np.arange(4))
