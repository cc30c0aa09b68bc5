"""Retrieval among the shapes of a split: recall@k and mean average precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

AT = (1, 5, 10)  # k of recall@k
MOST_QUERIES = 5000  # of each kind; more are drawn from
PAIRS = 1000  # two-shape queries of each kind
BLOCK = 256  # queries ranked at once
MEANING = (
    "recall@k: share of queries with a match among the k nearest. mAP: mean over queries of the average "
    "precision, the mean over matches of the share of matches down to it. A tie counts against the match."
)
# How two cosines become one score. "min" asks for the shapes that are close to both at once (OpenShape,
# figure 1 and appendix); "sum" is the cosine with the sum of both vectors but for a factor.
FORMULAS: dict[str, tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], str]] = {
    "min": (np.minimum, "min(cos(x, a), cos(x, b))"),
    "sum": (np.add, "cos(x, a) + cos(x, b)"),
}


class Ranked(NamedTuple):
    """What a block of queries found."""

    first: np.ndarray  # (Q,) place of the first match, 0 the best
    precision: np.ndarray  # (Q,) average precision


def rank(scores: np.ndarray, match: np.ndarray) -> Ranked:
    """First match and average precision of each query; among equal scores matches come last.

    Args:
      scores: (Q, N), -inf where a shape does not take part. match: (Q, N) bool, at least one in a row.
    """
    order = np.lexsort((match, -scores), axis=-1)
    found = np.take_along_axis(match, order, 1)
    precision = np.cumsum(found, 1) / np.arange(1, found.shape[1] + 1)
    return Ranked(found.argmax(1), (precision * found).sum(1) / found.sum(1))


def measures(ranked: list[Ranked]) -> dict[str, float]:
    """{"recall@1", ..., "mAP", "queries"} over all blocks."""
    first = np.concatenate([block.first for block in ranked])
    precision = np.concatenate([block.precision for block in ranked])
    shares = {f"recall@{k}": float((first < k).mean()) for k in AT}
    return {**shares, "mAP": float(precision.mean()), "queries": len(first)}


def words(class_emb: np.ndarray, emb: np.ndarray, label: np.ndarray) -> dict[str, Any]:
    """Text -> shape: each class name that has a shape asks for the shapes of its class.

    Args:
      class_emb: (C, D). emb: (n, D). label: (n,) index of each shape's class.
    """
    present = np.unique(label)
    blocks = []
    for first in range(0, len(present), BLOCK):
        chosen = present[first : first + BLOCK]
        blocks.append(rank(class_emb[chosen] @ emb.T, label == chosen[:, None]))
    chance = float(np.mean([(label == c).mean() for c in present]))
    return {**measures(blocks), "chance@1": chance, "gallery": len(emb)}


def shapes(emb: np.ndarray, label: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Shape -> shape: each asks for the others of its class; one without any does not ask.

    Raises:
      ValueError: no class has two shapes.
    """
    counts = np.bincount(label)
    rows = _sample(np.flatnonzero(counts[label] > 1), MOST_QUERIES, seed)
    if len(rows) == 0:
        raise ValueError("no class has two shapes: there is nothing to find for a shape.")
    blocks = []
    for first in range(0, len(rows), BLOCK):
        chosen = rows[first : first + BLOCK]
        scores = emb[chosen] @ emb.T
        own = np.arange(len(chosen)), chosen
        match = label == label[chosen, None]
        scores[own], match[own] = -np.inf, False
        blocks.append(rank(scores, match))
    chance = float(((counts[label[rows]] - 1) / (len(emb) - 1)).mean())
    return {**measures(blocks), "chance@1": chance, "gallery": len(emb)}


def images(image_emb: np.ndarray, emb: np.ndarray, label: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Image -> shape: each shape's first image asks for just that shape ("own shape"), and for its class.

    Args:
      image_emb: (n, D) unit vectors, NaN where a shape has no image.

    Raises:
      ValueError: no shape has one.
    """
    rows = _sample(np.flatnonzero(np.isfinite(image_emb).all(1)), MOST_QUERIES, seed)
    if len(rows) == 0:
        raise ValueError("no shape has an image feature.")
    own, same = [], []
    for first in range(0, len(rows), BLOCK):
        chosen = rows[first : first + BLOCK]
        scores = image_emb[chosen] @ emb.T
        own.append(rank(scores, chosen[:, None] == np.arange(len(emb))))
        same.append(rank(scores, label == label[chosen, None]))
    counts = np.bincount(label)
    by_class = {**measures(same), "chance@1": float((counts[label[rows]] / len(emb)).mean())}
    return {**measures(own), "chance@1": 1 / len(emb), "gallery": len(emb), "same class": by_class}


def pairs_of_a_class(label: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """(p, 2) rows of two shapes of one class that has a third, at most `count`, drawn evenly over shapes."""
    rng = np.random.default_rng(seed)
    firsts = np.flatnonzero(np.bincount(label)[label] > 2)
    if len(firsts) == 0:
        return np.zeros((0, 2), np.int64)
    found = set()
    for a in np.resize(rng.permutation(firsts), max(count, len(firsts)))[:count].tolist():
        mates = np.flatnonzero(label == label[a])
        b = int(rng.choice(mates[mates != a]))
        found.add((min(a, b), max(a, b)))
    return np.array(sorted(found), np.int64)


def pairs_of_two_classes(label: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """(p, 2) rows of two shapes of different classes, at most `count`; none where there is one class."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(label), (4 * count, 2))
    return drawn[label[drawn[:, 0]] != label[drawn[:, 1]]][:count]


def two_shapes(
    emb: np.ndarray, label: np.ndarray, class_emb: np.ndarray, count: int = PAIRS, seed: int = 0
) -> dict[str, Any]:
    """Two shapes a, b -> the shapes closest to both, neither of them among those, by each of FORMULAS.

    "same class": both are of one class and ask for the others of it; "a alone" beside it is the same query
    with one of them. "two classes": what is found should be close to both in meaning. Meaning is taken from
    the words, which the shapes' embeddings had no part in: g(x) = min(cos(t_x, t_a), cos(t_x, t_b)) of the
    class names' text vectors t. gain@k = (mean g of the k found - mean g of all) / (the largest such mean -
    mean g of all): 0 is chance, 1 the best that can be.

    Args:
      class_emb: (C, D) text vectors of the classes.
    """
    result: dict[str, Any] = {"formulas": {name: text for name, (_, text) in FORMULAS.items()}}
    same = pairs_of_a_class(label, count, seed)
    if len(same):
        result["same class"] = {
            name: _same_class(emb, label, same, formula) for name, (formula, _) in FORMULAS.items()
        }
        result["same class"]["a alone"] = _same_class(emb, label, same, lambda a, b: a)
    mixed = pairs_of_two_classes(label, count, seed)
    if len(mixed) and len(emb) > 3:
        result["two classes"] = {
            name: _gain(emb, label, class_emb, mixed, formula) for name, (formula, _) in FORMULAS.items()
        }
        result["two classes"]["a alone"] = _gain(emb, label, class_emb, mixed, lambda a, b: a)
    return result


def _same_class(emb: np.ndarray, label: np.ndarray, pairs: np.ndarray, formula: Any) -> dict[str, float]:
    blocks = []
    for first in range(0, len(pairs), BLOCK):
        a, b = pairs[first : first + BLOCK].T
        scores = formula(emb[a] @ emb.T, emb[b] @ emb.T)
        match = label == label[a, None]
        for own in (a, b):
            scores[np.arange(len(a)), own], match[np.arange(len(a)), own] = -np.inf, False
        blocks.append(rank(scores, match))
    return measures(blocks)


def _gain(
    emb: np.ndarray, label: np.ndarray, class_emb: np.ndarray, pairs: np.ndarray, formula: Any
) -> Mapping[str, float]:
    between = class_emb @ class_emb.T  # cosines of the class names
    k = min(AT[-1], len(emb) - 2)
    gains = []
    for a, b in pairs:
        others = np.delete(np.arange(len(emb)), [a, b])
        meant = np.minimum(between[label[a], label[others]], between[label[b], label[others]])
        score = formula(emb[others] @ emb[a], emb[others] @ emb[b])
        found = meant[np.argsort(-score, kind="stable")[:k]].mean()
        best, all_of_them = np.sort(meant)[-k:].mean(), meant.mean()
        if best - all_of_them > 1e-6:
            gains.append((found - all_of_them) / (best - all_of_them))
    return {f"gain@{k}": float(np.mean(gains)) if gains else 0.0, "queries": len(gains)}


def _sample(rows: np.ndarray, most: int, seed: int) -> np.ndarray:
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
