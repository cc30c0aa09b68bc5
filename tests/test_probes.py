"""Few-shot and nearest-neighbour probes on embeddings whose answers are known."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from openshape_jax.evals import probes
from openshape_jax.evals.probes import Labelled


def blobs(n: int, spread: float, seed: int, classes: int = 5, d: int = 16) -> Labelled:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, d))
    label = rng.integers(0, classes, n)
    x = centres[label] + spread * rng.normal(size=(n, d))
    return Labelled((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), label)


def test_more_shots_name_more_and_each_seed_counts():
    found = probes.few_shot(blobs(300, 1.5, 0), blobs(200, 1.5, 1), shots=(1, 4, 16), seeds=4)
    assert [len(v) for v in found.values()] == [4, 4, 4]
    means = [np.mean(v) for v in found.values()]
    assert means[0] + 0.1 < means[1] < means[2]
    assert means[0] > 0.3
    assert len(set(found[1])) > 1  # other shapes, another answer
    assert found == probes.few_shot(blobs(300, 1.5, 0), blobs(200, 1.5, 1), shots=(1, 4, 16), seeds=4)


def test_shots_are_of_every_class_and_grow():
    label = np.r_[np.repeat(0, 20), np.repeat(1, 3), np.repeat(2, 20)]
    few, many = (probes.draw_shots(label, n, 0) for n in (2, 8))
    assert np.bincount(label[few]).tolist() == [2, 2, 2]
    assert np.bincount(label[many]).tolist() == [8, 3, 8]  # a class with fewer gives all it has
    assert set(few) < set(many)
    assert set(probes.draw_shots(label, 2, 1)) != set(few)


def test_embeddings_without_information_are_named_by_chance():
    rng = np.random.default_rng(0)
    noise = Labelled(blobs(400, 1, 0).emb, rng.integers(0, 5, 400))
    found = probes.few_shot(noise, Labelled(blobs(400, 1, 1).emb, rng.integers(0, 5, 400)), (4,), 5)
    assert abs(np.mean(found[4]) - 0.2) < 0.08


def test_a_single_split_is_halved_class_by_class():
    label = np.r_[np.repeat(0, 9), np.repeat(1, 4), 2]
    learn, test = probes.split_in_two(label, 0)
    assert np.bincount(label[learn], minlength=3).tolist() == [4, 2, 0]
    assert np.bincount(label[test], minlength=3).tolist() == [5, 2, 0]  # a class of one cannot be tested
    assert not set(learn) & set(test)
    found = probes.few_shot(blobs(200, 0.1, 0), None, shots=(1,), seeds=2)
    assert found[1] == [1.0, 1.0]
    with pytest.raises(ValueError, match="no class has two shapes"):
        probes.few_shot(Labelled(np.eye(3, dtype=np.float32), np.arange(3)), None)


def test_one_class_is_no_error():
    emb = blobs(20, 0.1, 0).emb
    assert (
        probes.linear(Labelled(emb, np.full(20, 2)), Labelled(emb, np.r_[np.full(15, 2), np.zeros(5)]))
        == 0.75
    )


def test_neighbours_vote_as_scikit_learns_do():
    learn, test = blobs(300, 1.0, 0), blobs(150, 1.0, 1)
    found = probes.knn(learn, test, (1, 5, 20))
    for k, share in found.items():
        other = KNeighborsClassifier(
            k, metric="cosine", weights=lambda d: np.exp((1 - d) / probes.TEMPERATURE)
        )
        other.fit(learn.emb, learn.label)
        assert share == pytest.approx(other.score(test.emb, test.label), abs=1e-9)
    assert 0.5 < found[5] < 1


def test_nobody_is_his_own_neighbour(monkeypatch):
    learn = blobs(90, 1.5, 0)
    counted = np.mean([
        learn.label[np.delete(np.arange(90), i)][(np.delete(learn.emb, i, 0) @ learn.emb[i]).argmax()]
        == learn.label[i]
        for i in range(90)
    ])  # fmt: skip
    assert probes.knn(learn, None, (1,)) == {1: pytest.approx(counted)}
    assert counted < 1
    monkeypatch.setattr(probes, "BLOCK", 7)
    assert probes.knn(learn, None, (1,)) == {1: pytest.approx(counted)}
    assert probes.knn(blobs(4, 0.1, 0, classes=1), None, (20,)) == {20: 1.0}  # fewer than k
