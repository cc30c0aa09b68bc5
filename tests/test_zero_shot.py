"""The accuracy measures, the reading of a data set, and the choice of class vectors."""

import json
import time

import numpy as np
import pytest

from openshape_jax.config import EvalConfig
from openshape_jax.data import class_features, pipeline, sources, vocabulary
from openshape_jax.evals import embedding, report
from openshape_jax.evals.zero_shot import ZeroShot, accuracy
from tests import eval_files
from tests.eval_files import MODELNET, built, records_of
from tests.eval_files import SCANOBJECTNN as SCAN


def test_against_a_count_by_hand():
    scores = np.array(
        [[0.9, 0.1, 0.0, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.1, 0.2, 0.3], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]]
    )
    result = accuracy(scores, np.array([0, 0, 0]))
    assert result == {
        "top1": pytest.approx(1 / 3),
        "top3": pytest.approx(2 / 3),
        "top5": pytest.approx(2 / 3),
        "mean_class": pytest.approx(1 / 3),
    }


def test_mean_class_weighs_classes_equally():
    scores = np.eye(3)[[0, 0, 0, 0]]
    assert accuracy(scores, np.array([0, 0, 0, 1]))["mean_class"] == 0.5


def test_constant_scores_do_not_count_as_right():
    assert accuracy(np.ones((4, 3)), np.array([0, 1, 2, 0]))["top1"] == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_no_numbers_stop_the_evaluation(bad):
    scores = np.zeros((10, 6))
    scores[3, 2] = bad
    with pytest.raises(FloatingPointError, match="1 of 10 shapes have NaN or infinite scores"):
        accuracy(scores, np.zeros(10, int))


def test_no_shape_is_an_error():
    with pytest.raises(ValueError, match="no labelled shape"):
        accuracy(np.zeros((0, 3)), np.zeros(0, int))


def test_shapes_are_read_batch_by_batch_and_all_are_counted(data_dir, monkeypatch):
    records, _ = sources.open_split("primitives/tiny", "test", data_dir)
    drawn = [pipeline.draw_points(records[i], 64, np.random.default_rng(i)) for i in range(len(records))]
    weights = np.random.default_rng(0).normal(size=(64 * 3, 512))

    def vectors(xyz):
        out = (xyz / 65535 - 0.5).reshape(len(xyz), -1) @ weights
        return out / np.linalg.norm(out, axis=1, keepdims=True)

    seen, read, ready = [], [], []
    original = sources.TfdsRecords.__getitem__
    monkeypatch.setattr(
        sources.TfdsRecords, "__getitem__", lambda self, i: read.append(i) or original(self, i)
    )
    monkeypatch.setattr(embedding, "LONG", 1)  # a large set: only one record is read at the start

    def embed(xyz, rgb, count):
        assert xyz.shape == rgb.shape == (32, 64, 3)
        assert count.tolist() == [64] * 32
        seen.append((xyz, rgb))
        # While the device works on this batch the host reads the next; it stops where enough are ready.
        wanted = min(32 * (len(seen) + 1), len(records))
        deadline = time.monotonic() + 30
        while len(set(read)) < wanted and time.monotonic() < deadline:
            time.sleep(0.001)
        ready.append(len(set(read)) >= wanted)
        assert len(set(read)) <= 32 * (len(seen) + embedding.AHEAD + 1)
        return vectors(xyz)

    config = EvalConfig(batch_size=32, num_points=64)
    evaluator = ZeroShot("primitives/tiny", config, data_dir)
    assert read == [0]
    (task, result, emb), _ = evaluator.results(embed)
    assert ready == [True] * 3
    assert sorted(read[1:]) == list(range(len(records)))  # each once
    for key, place in (("xyz", 0), ("rgb", 1)):
        given = np.concatenate([batch[place] for batch in seen])
        np.testing.assert_array_equal(given[: len(records)], [d[key] for d in drawn])
        np.testing.assert_array_equal(given[len(records) :], given[[len(records) - 1] * 13])
    labels = [records[i]["label"] for i in range(len(records))]
    classes = sorted(set(labels))
    scores = vectors(np.stack([d["xyz"] for d in drawn])) @ vocabulary.load().encode(classes).T
    assert result == accuracy(scores, np.array([classes.index(label) for label in labels]))
    assert (task.class_names, task.uids) == (classes, [records[i]["uid"] for i in range(len(records))])
    assert len(emb) == 83


def test_a_set_without_labels_is_refused_at_the_start(data_dir, monkeypatch):
    original = sources.TfdsRecords.__getitem__
    unlabelled = lambda self, i: {**original(self, i), "label": ""}  # noqa: E731
    monkeypatch.setattr(sources.TfdsRecords, "__getitem__", unlabelled)
    with pytest.raises(ValueError, match="has no labelled shape in its split 'test'"):
        ZeroShot("primitives/tiny", EvalConfig(), data_dir)


def embed_as(label_of: dict[str, str], records: dict[str, dict], vectors: dict[str, np.ndarray]):
    """An embedding function that gives each cloud the vector of a class, told by its points alone."""
    table = {np.sort(r["xyz"], axis=0).tobytes(): vectors[label_of[uid]] for uid, r in records.items()}

    def embed(xyz, rgb, count):
        assert len(xyz) == len(rgb) == len(count) == 4
        return np.stack([table[np.sort(x, axis=0).tobytes()] for x in xyz])

    return embed


def config(split: str = "test") -> EvalConfig:
    return EvalConfig(split=split, batch_size=4, num_points=eval_files.POINTS)


def test_the_data_sets_own_vectors_are_used_over_all_of_its_classes(tmp_path):
    eval_files.modelnet_released(tmp_path / "raw", width=24)
    stored = class_features.load(built("modelnet40", tmp_path / "raw", tmp_path))
    records, _ = records_of("modelnet40", "test", tmp_path)
    vectors = dict(zip(stored.names, stored.features, strict=True))
    guessed = {uid: r["label"] for uid, r in records.items()} | {"xbox_0001": "vase"}
    evaluator = ZeroShot("modelnet40", config(), str(tmp_path), embed_dim=24)
    values = dict(evaluator.run(embed_as(guessed, records, vectors), tmp_path / "run"))
    assert values == {
        "eval/modelnet40/top1": pytest.approx(5 / 6),
        "eval/modelnet40/top3": pytest.approx(5 / 6, abs=0.2),
        "eval/modelnet40/top5": pytest.approx(5 / 6, abs=0.2),
        "eval/modelnet40/mean_class": pytest.approx((1 + 1 + 0.5) / 3),
    }
    described = json.loads((tmp_path / "run/eval/modelnet40.json").read_text())
    assert (described["num_classes"], described["num_shapes"], described["split"]) == (40, 6, "test")
    assert described["class_vectors"] == "data set"
    with np.load(tmp_path / "run/eval/modelnet40.npz") as file:
        assert [MODELNET[i] for i in file["label"]] == [records[uid]["label"] for uid in file["uid"]]
        np.testing.assert_array_equal(file["class_emb"], stored.features)


def test_the_vocabulary_serves_where_its_width_is_the_models(tmp_path):
    eval_files.scan_released(tmp_path / "raw")  # class features of width 1280
    built("scanobjectnn/released", tmp_path / "raw", tmp_path)
    records, _ = records_of("scanobjectnn/released", "train_test", tmp_path)
    words = vocabulary.load()
    for space, centred in ((vocabulary.TEXT_SPACE, True), (vocabulary.RAW_TEXT_SPACE, False)):
        vectors = dict(zip(SCAN, words.encode(SCAN, centred), strict=True))
        evaluator = ZeroShot("scanobjectnn/released", config("train_test"), str(tmp_path), 512, space)
        embed = embed_as({uid: r["label"] for uid, r in records.items()}, records, vectors)
        found = {task.name: (task, values) for task, values, _ in evaluator.results(embed)}
        assert set(found) == {"scanobjectnn_released", "scanobjectnn_released_lvis"}
        task, values = found["scanobjectnn_released"]
        assert (task.class_names, task.class_vectors) == (["bag", "chair", "toilet"], "vocabulary")
        assert values["top1"] == 1
        task, values = found["scanobjectnn_released_lvis"]
        assert len(task.class_names) == 1203
        assert values["top1"] == 1


def test_vectors_that_do_not_fit_are_refused_before_anything_is_embedded(tmp_path):
    eval_files.modelnet_released(tmp_path / "raw")
    folder = built("modelnet40", tmp_path / "raw", tmp_path)

    def refused(message: str, width: int, space: str = vocabulary.TEXT_SPACE) -> None:
        with pytest.raises(ValueError, match=message):
            ZeroShot("modelnet40", config(), str(tmp_path), width, space)

    refused(
        "of width 768 .*class_features.npz has width 1280.*512. Take a model of width 1280 or 512",
        768,
    )
    refused(r"does not know 2 of its 40 classes \(tv stand, xbox\). Take a model of width 1280", 512)
    refused("embeds into 'unknown', not into the vocabulary's", 512, "unknown")
    class_features.save(folder, class_features.of_rows(MODELNET[:-1], np.eye(39, 1280), "test"))
    refused("lists 40 classes, but its .* of 39 others; without a vector: xbox", 1280)
    (folder / class_features.FILE).unlink()
    refused("it has no class features.*Take a model of width 512", 1280)
    (folder / class_features.FILE).write_bytes(b"PK")
    refused("class_features.npz cannot be read .* build the data set again", 1280)


def test_a_report_tells_the_data_sets_own_classes_from_those_of_lvis(tmp_path):
    eval_files.lvis(tmp_path / "raw", width=16)
    built("objaverse_lvis", tmp_path / "raw", tmp_path)
    evaluator = ZeroShot("objaverse_lvis", config(), str(tmp_path), 16)
    rng = np.random.default_rng(0)
    dict(evaluator.run(lambda xyz, rgb, count: rng.normal(size=(len(xyz), 16)), tmp_path / "run"))
    fields = {"data": {"datasets": ["primitives"]}, "eval": {"datasets": ["objaverse_lvis"]}}
    (tmp_path / "run" / "config.json").write_text(json.dumps(fields))
    text = report.write(tmp_path / "run", tmp_path).read_text()
    assert "The 4 classes of the data set" in text
    assert "8 shapes of the split <code>test</code>" in text
    assert "All 4 names of LVIS" not in text
