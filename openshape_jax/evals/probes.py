"""Probes of frozen embeddings: few-shot logistic regression and nearest neighbours."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SHOTS = (1, 2, 4, 8, 16)  # labelled shapes of a class (OpenShape, figure 4)
SEEDS = 10  # draws of them (OpenShape)
NEIGHBOURS = (1, 5, 20)
# Of scikit-learn's LogisticRegression: the inverse of its L2 penalty, for embeddings of length 1. On Sweet
# Home 3D 1, 10 and 100 name 42.6, 42.0 and 40.4 % after one shot and 55.3, 61.7 and 63.8 % after 16.
INVERSE_PENALTY = 10.0
ONE_THREAD = 1e9  # products of a step below which threads wait for each other longer than they help
TEMPERATURE = 0.07  # a neighbour's vote is exp(cosine / it) (as DINO, arXiv 2104.14294)
BLOCK = 1024  # queries compared at once


class Labelled(NamedTuple):
    """Embeddings with the numbers of their classes."""

    emb: np.ndarray  # (n, D) unit vectors
    label: np.ndarray  # (n,) ints


def split_in_two(label: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows to learn from, rows to test on), stratified: of each class half its shapes, rounded down, are to
    learn from. A class of one shape is in neither: it could not be both known and tested."""
    rng = np.random.default_rng(seed)
    learn: list[np.ndarray] = []
    test: list[np.ndarray] = []
    for c in np.unique(label):
        rows = rng.permutation(np.flatnonzero(label == c))
        if len(rows) > 1:
            learn.append(rows[: len(rows) // 2])
            test.append(rows[len(rows) // 2 :])
    if not learn:
        raise ValueError("no class has two shapes, one to learn from and one to test on.")
    return np.sort(np.concatenate(learn)), np.sort(np.concatenate(test))


def draw_shots(label: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Rows of `shots` shapes of every class, or all that it has; more shots are other ones besides."""
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(np.flatnonzero(label == c))[:shots] for c in np.unique(label)]
    return np.sort(np.concatenate(chosen))


def linear(learn: Labelled, test: Labelled) -> float:
    """Share of `test` that a logistic regression on `learn` names rightly; with one class it is that class.

    Raises:
      ImportError: scikit-learn is not installed.
    """
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    if len(np.unique(learn.label)) == 1:
        return float((test.label == learn.label[0]).mean())
    probe = LogisticRegression(C=INVERSE_PENALTY, max_iter=1000)
    small = learn.emb.size * len(np.unique(learn.label)) < ONE_THREAD
    with warnings.catch_warnings(), threadpool_limits(1 if small else None):
        # One shot a class looks to scikit-learn as if the classes were no classes.
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        probe.fit(learn.emb.astype(np.float64), learn.label)
    return float(np.mean(probe.predict(test.emb.astype(np.float64)) == test.label))


def few_shot(
    learn: Labelled, test: Labelled | None, shots: Sequence[int] = SHOTS, seeds: int = SEEDS
) -> dict[int, list[float]]:
    """{shots: accuracy of each seed} of a linear probe learnt from so many shapes of every class.

    Args:
      test: None: there is one split only, and each seed splits it in two (`split_in_two`).
    """
    found: dict[int, list[float]] = {count: [] for count in shots}
    for seed in range(seeds):
        pool, held = learn, test
        if held is None:
            first, second = split_in_two(learn.label, seed)
            pool, held = Labelled(*(x[first] for x in learn)), Labelled(*(x[second] for x in learn))
        for count in shots:
            rows = draw_shots(pool.label, count, seed)
            found[count].append(linear(Labelled(pool.emb[rows], pool.label[rows]), held))
    return found


def knn(learn: Labelled, test: Labelled | None, neighbours: Sequence[int] = NEIGHBOURS) -> dict[int, float]:
    """{k: share of shapes whose k nearest, by cosine, vote for their class}; k above the number known: all.

    A neighbour votes with exp(cosine / TEMPERATURE); a tie goes to the class of the lower number.

    Args:
      test: None: each shape of `learn` is named by the others.
    """
    held = learn if test is None else test
    classes = int(max(learn.label.max(), held.label.max())) + 1
    hits = dict.fromkeys(neighbours, 0)
    for first in range(0, len(held.emb), BLOCK):
        rows = np.arange(first, min(first + BLOCK, len(held.emb)))
        cosine = (held.emb[rows] @ learn.emb.T).astype(np.float64)
        if test is None:
            cosine[np.arange(len(rows)), rows] = -np.inf
        order = np.argsort(-cosine, axis=1, kind="stable")[:, : max(neighbours)]
        weight = np.exp(np.take_along_axis(cosine, order, 1) / TEMPERATURE)  # of oneself: 0
        for k in neighbours:
            votes = np.zeros((len(rows), classes))
            np.add.at(votes, (np.arange(len(rows))[:, None], learn.label[order[:, :k]]), weight[:, :k])
            hits[k] += int((votes.argmax(1) == held.label[rows]).sum())
    return {k: count / len(held.emb) for k, count in hits.items()}
