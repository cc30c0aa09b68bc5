"""The evaluation suite on the synthetic set: its numbers against the parts they are made of; its pages."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from openshape_jax import api, checkpoint, state, train
from openshape_jax import config as config_lib
from openshape_jax.cli import main as cli
from openshape_jax.config import EvalConfig, ModelConfig
from openshape_jax.data import schema, sources, vocabulary
from openshape_jax.evals import (
    conditions,
    embedding,
    intervals,
    probes,
    report_compare,
    retrieval,
    suite,
    summary,
)
from openshape_jax.evals.conditions import Condition
from openshape_jax.evals.embedding import Embedded, prepared
from openshape_jax.evals.zero_shot import ZeroShot, accuracy
from tests.test_report import Tags

DATASET, TASK = "primitives/tiny", "primitives_tiny"
POINTS = 160
SMALL = ModelConfig(dim=32, depth=1, heads=1, mlp_dim=32, sa_dim=16, patches=8, nsample=8, embed_dim=512)


def command(*arguments: str) -> object:
    with pytest.raises(SystemExit) as done:
        cli.main(["eval", *arguments])
    return done.value.code


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """The folder of an untrained encoder."""
    config = config_lib.Config(model=SMALL)
    config.eval.num_points = POINTS
    folder = tmp_path_factory.mktemp("model")
    weights = state.evaluated(state.init(config))
    checkpoint.save_weights(folder, weights, {**train.describe(config), "logit_scale": 14.28}, 0)
    return folder


@pytest.fixture(scope="module")
def evaluated(model, data_dir, tmp_path_factory):
    """(folder of `openshape eval --suite all --seeds 2`, shapes embedded, kinds with two levels each)."""
    folder = tmp_path_factory.mktemp("out") / "<all>"
    with pytest.MonkeyPatch.context() as patch:
        for name, kind in conditions.KINDS.items():
            few = tuple(dict.fromkeys((kind.clean, kind.levels[-1])))
            patch.setitem(conditions.KINDS, name, kind._replace(levels=few))
        original, embedded = api.Model.embed_stored, []

        def counted(self, xyz, *rest, **options):
            embedded.append(len(xyz))
            return original(self, xyz, *rest, **options)

        patch.setattr(api.Model, "embed_stored", counted)
        patch.setattr(probes.few_shot, "__defaults__", ((1, 4), 3))
        options = ("--checkpoint", str(model), "--data_dir", data_dir, "--output", str(folder))
        assert not command("--dataset", DATASET, "--suite", "all", "--seeds", "2", *options)
    return folder, sum(embedded)


@pytest.fixture(scope="module")
def section(evaluated) -> dict:
    return json.loads((evaluated[0] / "eval.json").read_text())["datasets"][DATASET]


@pytest.fixture(scope="module")
def again(model, data_dir):
    """(embed a split's records by hand, as the suite should have) -> Embedded."""
    loaded = api.load(model)

    def embed(split: str, draw: int = 0, condition: Condition | None = None) -> Embedded:
        records, _ = sources.open_split(DATASET, split, data_dir)
        clouds = [prepared(records[i], i, POINTS, draw, condition) for i in range(len(records))]
        points = (np.stack([c[k] for c in clouds]) for k in ("xyz", "rgb", "count"))
        normalize = condition is None or condition.normalized
        emb = np.asarray(loaded.embed_stored(*points, normalize=normalize))
        every = [records[i] for i in range(len(records))]
        return Embedded([r["uid"] for r in every], [r["label"] for r in every], emb)

    return embed


def labels_of(found: Embedded, classes: list[str]) -> np.ndarray:
    return np.array([classes.index(label) for label in found.labels])


def test_every_shape_is_embedded_once_per_condition_and_draw(evaluated, section):
    kinds = section["robustness"]["kinds"]
    changed = sum(not level["clean"] for r in kinds.values() for level in r["levels"])
    assert changed == len(conditions.KINDS) == 10
    batches = -(-83 // 32) * 32
    assert evaluated[1] == 2 * (1 + changed) * batches + 192  # and the 166 of the split train once, in six


def test_zero_shot_is_the_mean_of_the_draws_with_its_interval(section, again):
    values = section["zero_shot"][TASK]
    draws = [again("test", draw) for draw in (0, 1)]
    classes = sorted(set(draws[0].labels))
    label, words = labels_of(draws[0], classes), vocabulary.load().encode(classes)
    found = [accuracy(d.emb @ words.T, label) for d in draws]
    assert not np.allclose(draws[0].emb, draws[1].emb, atol=1e-3)  # other points
    for k in suite.MEASURES:
        expected = intervals.mean([r[k] for r in found])
        assert values[k] == pytest.approx(expected.mean)
        assert values["half_width"][k] == pytest.approx(expected.half)
    assert values["interval"] == "95 % t interval of the mean over 2 draws"
    assert tuple(values["interval_over_shapes"]) == pytest.approx(intervals.wilson(values["top1"], 83))
    # The table of classes adds up to the whole, and the confusions to the first draw.
    table = values["per_class"]
    assert sum(r["shapes"] for r in table) == 83
    assert sum(r["shapes"] * r["top1"] for r in table) / 83 == pytest.approx(values["top1"])
    assert np.mean([r["top1"] for r in table]) == pytest.approx(values["mean_class"])
    counts = values["confusion"]["counts"]
    assert sum(n for _, _, n in counts) == 83
    assert sum(n for a, b, n in counts if a == b) / 83 == pytest.approx(found[0]["top1"])
    guess = (draws[0].emb @ words.T).argmax(1)
    pairs = set(zip(label.tolist(), guess.tolist(), strict=True))
    by_hand = {(a, b): int(((label == a) & (guess == b)).sum()) for a, b in pairs}
    assert {(a, b): n for a, b, n in counts} == by_hand


def test_probes_and_retrieval_are_made_of_the_same_embeddings(section, again):
    test, learn = again("test"), again("train")
    classes = sorted({*test.labels, *learn.labels})
    known = probes.Labelled(learn.emb, labels_of(learn, classes))
    held = probes.Labelled(test.emb, labels_of(test, classes))
    few = section["few_shot"]
    assert few["splits"] == "train → test"
    assert (probes.SHOTS, probes.SEEDS) == ((1, 2, 4, 8, 16), 10)  # the protocol; here (1, 4) and 3
    expected = probes.few_shot(known, held, shots=(1, 4), seeds=3)
    for count, values in expected.items():
        mean = intervals.mean(few["shots"][str(count)]["values"])
        assert mean.mean == pytest.approx(np.mean(values), abs=0.03)  # embeddings are rounded otherwise
        assert few["shots"][str(count)]["half_width"] == pytest.approx(mean.half)
    near = probes.knn(known, held)
    assert section["knn"]["neighbours"] == {str(k): pytest.approx(v, abs=0.03) for k, v in near.items()}
    present = sorted(set(test.labels))
    label, words = labels_of(test, present), vocabulary.load().encode(present)
    expected = retrieval.words(words, test.emb, label)
    assert section["retrieval"]["text → shape"]["mAP"] == pytest.approx(expected["mAP"], abs=1e-4)
    expected = retrieval.shapes(test.emb, label)
    assert section["retrieval"]["shape → shape"]["mAP"] == pytest.approx(expected["mAP"], abs=1e-4)
    why = section["retrieval"]["image → shape"]["left_out"]
    assert why == f"the records of {DATASET!r} have no image features."


@pytest.mark.parametrize("kind", ["cut", "shift"])
def test_robustness_is_the_accuracy_on_changed_clouds(kind, section, again):
    clean, severe = section["robustness"]["kinds"][kind]["levels"]
    assert np.mean(clean["top1"]["values"]) == pytest.approx(section["zero_shot"][TASK]["top1"])
    for draw in (0, 1):
        found = again("test", draw, Condition(kind, severe["level"]))
        classes = sorted(set(found.labels))
        words = vocabulary.load().encode(classes)
        expected = accuracy(found.emb @ words.T, labels_of(found, classes))["top1"]
        assert severe["top1"]["values"][draw] == pytest.approx(expected, abs=0.013)  # a shape by rounding
        assert np.abs(found.emb - again("test", draw).emb).max() > 0.01


def test_normalisation_undoes_scale_and_shift(again, model, data_dir):
    loaded = api.load(model)
    records, _ = sources.open_split(DATASET, "test", data_dir)
    clouds = [prepared(records[i], i, POINTS, 0, Condition("shift", 0.5)) for i in range(8)]
    points = [np.stack([c[k] for c in clouds]) for k in ("xyz", "rgb", "count")]
    points[0] *= 2
    np.testing.assert_allclose(
        np.asarray(loaded.embed_stored(*points)), again("test").emb[:8], atol=2e-4
    )  # fmt: skip


def test_points_that_are_left_are_repeated_in_order(data_dir):
    records, _ = sources.open_split(DATASET, "test", data_dir)
    full = prepared(records[0], 0, POINTS)
    few = prepared(records[0], 0, POINTS, 0, Condition("points", 128))
    assert few["count"] == 128
    np.testing.assert_array_equal(few["xyz"][128:], few["xyz"][: POINTS - 128])
    cloud = schema.dequantize_xyz(full["xyz"])
    radius = np.linalg.norm(cloud - cloud.mean(0), axis=1).max()
    np.testing.assert_allclose(few["xyz"][:128] * radius + cloud.mean(0), cloud[:128], atol=1e-5)
    again = prepared(records[0], 0, POINTS, 0, Condition("cut", 0.5))
    assert all(
        np.array_equal(again[k], prepared(records[0], 0, POINTS, 0, Condition("cut", 0.5))[k]) for k in again
    )
    assert not np.array_equal(prepared(records[0], 0, POINTS, 1)["xyz"], full["xyz"])


def test_a_model_trained_without_colour_is_shown_none(data_dir):
    records, _ = sources.open_split(DATASET, "test", data_dir)
    coloured, gray = (prepared(records[0], 0, POINTS, gray=g) for g in (False, True))
    np.testing.assert_array_equal(coloured["xyz"], gray["xyz"])
    assert (gray["rgb"] == round(schema.GRAY * 255)).all()
    assert np.ptp(coloured["rgb"]) > 0
    evaluator = ZeroShot(DATASET, EvalConfig(batch_size=83, num_points=POINTS, gray=True), data_dir)
    seen = []
    evaluator.embed_all(lambda xyz, rgb, count: seen.append(rgb) or np.ones((len(xyz), 512)))
    assert (np.concatenate(seen) == gray["rgb"][0, 0]).all()


def test_the_page_has_every_part_and_is_well_formed(evaluated, section):
    text = (evaluated[0] / "report" / "index.html").read_text()
    Tags(text)
    for title in ("Results", "Probes", "Retrieval", "Robustness", "Gallery", "Confusions", "Configuration"):
        assert f"<h2>{title}</h2>" in text
    assert "<h2>Training</h2>" not in text
    assert "evaluation of a model" in text
    assert "&lt;all&gt;" in text
    assert "<all>" not in text
    for kind in conditions.KINDS.values():
        assert f"{kind.title}: top-1 accuracy against {kind.axis}" in text
    half = section["zero_shot"][TASK]["half_width"]["top1"]
    assert f"± {100 * half:.1f}" in text
    assert "image → shape left out: the records of" in text
    assert f"{100 * section['retrieval']['text → shape']['mAP']:.1f} %" in text
    assert text.count("confusion matrix of") == 2  # of both tasks
    assert "This run stopped" not in text


def test_runs_are_put_side_by_side(evaluated, model, data_dir, tmp_path, capsys):
    options = ("--checkpoint", str(model), "--data_dir", data_dir, "--output", str(tmp_path / "other"))
    assert not command("--dataset", DATASET, "--suite", "zero_shot,knn", *options)
    capsys.readouterr()
    folders = (str(evaluated[0]), str(tmp_path / "other"))
    assert not command("--compare", *folders, "--output", str(tmp_path / "page"))
    shown = capsys.readouterr().out
    lines = [line.split() for line in shown.splitlines()]
    assert lines[0] == ["<all>", "other"]
    first, second = (suite.read(f)["datasets"][DATASET] for f in folders)
    row = next(line for line in lines if line[:1] == ["top-1"])
    values = first["zero_shot"][TASK]
    assert row == ["top-1", f"{100 * values['top1']:.1f}", "±", f"{100 * values['half_width']['top1']:.1f}",
                   f"{100 * second['zero_shot'][TASK]['top1']:.1f}"]  # fmt: skip
    row = next(line for line in lines if line[:3] == ["k", "=", "5"])
    assert row[3:] == [f"{100 * s['knn']['neighbours']['5']:.1f}" for s in (first, second)]
    row = next(line for line in lines if line[:3] == ["4", "shots", "a"])
    assert row[-1] == "-"  # the other was not asked
    assert "differs: seeds: <all> 2, other 1" in shown
    page = (tmp_path / "page/report/index.html").read_text()
    Tags(page)
    assert "Not evaluated alike: seeds: &lt;all&gt; 2, other 1" in page
    tables = re.findall(r'<div class="scroll beside">.*?</table>', page)
    rows = re.findall(r"<tr>(.*?)</tr>", " ".join(tables))
    assert len(rows) > 20
    assert {len(re.findall("<t[dh][ >]", row)) for row in rows if "colspan=3" not in row} == {3}
    assert re.search(r"<td>k = 5</td><td class=n>.*?\d</td><td class=n>", page)
    assert "Noise: top-1 accuracy against" in page


def test_comparison_says_what_is_wrong(evaluated, tmp_path):
    folder = str(evaluated[0])
    assert "--compare has 1 folder; name two or more" in str(command("--compare", folder))
    assert "twice" in str(command("--compare", folder, folder + "/."))
    assert f"{tmp_path} has no eval.json: write it with `openshape eval" in str(
        command("--compare", folder, str(tmp_path))
    )
    (tmp_path / "eval.json").write_text('{"format": 99}')
    assert "it is of format 99, this version reads 1" in str(command("--compare", folder, str(tmp_path)))
    (tmp_path / "a" / "x").mkdir(parents=True)
    (tmp_path / "b" / "x").mkdir(parents=True)
    named = report_compare._named([tmp_path / "a" / "x", tmp_path / "b" / "x"])
    assert list(named) == ["a/x", "b/x"]


def test_images_are_queries_where_they_are_of_the_models_clip(model, data_dir, monkeypatch):
    loaded = api.load(model)
    config = EvalConfig(datasets=(DATASET,), suite=("retrieval",), num_points=POINTS, batch_size=32)
    original = sources.TfdsRecords.__getitem__
    rng = np.random.default_rng(0)
    pictures = rng.normal(size=(83, 2, 512)).astype(np.float16)

    def with_images(self, index):
        record = original(self, index)
        return {**record, "image_features": pictures[index] if index != 5 else pictures[index, :0]}

    monkeypatch.setattr(sources.TfdsRecords, "__getitem__", with_images)
    found = suite.run(loaded, config, data_dir)["datasets"][DATASET]["retrieval"]["image → shape"]
    evaluator = ZeroShot(DATASET, config, data_dir)
    embedded = evaluator.embed_all(loaded.embed_stored, with_images=True)
    task = evaluator.tasks(embedded.uids, embedded.labels)[0]
    first = pictures[:, 0].astype(np.float32)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    np.testing.assert_array_equal(np.isnan(embedded.images).any(1), np.arange(83) == 5)
    first[5] = np.nan
    expected = retrieval.images(first, embedded.emb, task.label)
    assert (found["queries"], expected["queries"]) == (82, 82)
    assert found["mAP"] == pytest.approx(expected["mAP"], abs=1e-4)
    loaded.metadata["text_space"] = vocabulary.RAW_TEXT_SPACE  # images are of the same CLIP, centred or not
    assert (
        "left_out"
        not in suite.run(loaded, config, data_dir)["datasets"][DATASET]["retrieval"]["image → shape"]
    )
    other = SimpleNamespace(metadata={"text_space": "OpenCLIP ViT-H-14"}, config=SMALL, image_proj=None)
    data = suite.Opened(evaluator, config, data_dir, loaded.embed_stored)
    with pytest.raises(
        ValueError, match=r"width 512 \(CLIP: clip_vitb32.*width 512 \(CLIP: OpenCLIP ViT-H-14\)"
    ):
        suite._image_queries(other, data, embedded)


def test_a_set_without_a_training_split_is_halved(model, data_dir, monkeypatch):
    loaded = api.load(model)
    parts = ("few_shot", "knn")
    config = EvalConfig(datasets=(DATASET,), suite=parts, num_points=POINTS, batch_size=32)
    monkeypatch.setattr(suite, "TRAIN", "learning")  # a name that the set does not have
    monkeypatch.setattr(probes.few_shot, "__defaults__", ((1, 4), 2))
    section = suite.run(loaded, config, data_dir)["datasets"][DATASET]
    assert "each seed splits test in halves, class by class" in section["few_shot"]["splits"]
    assert "each shape of test by the others" in section["knn"]["splits"]
    assert any("each seed splits" in line for line in summary.notes(section))


def test_parts_and_data_sets_are_checked_first(model, monkeypatch):
    assert suite.parts(["all"]) == suite.PARTS
    assert suite.parts(["knn", "zero_shot"]) == ("zero_shot", "knn")
    with pytest.raises(ValueError, match="the suite is empty"):
        suite.parts([])
    with pytest.raises(ValueError, match="no data set is named"):
        suite.run(api.load(model), EvalConfig())
    monkeypatch.setattr(suite, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="few_shot of the suite needs scikit-learn: pip install"):
        suite.parts(["few_shot"])
    assert suite.parts(["knn"]) == ("knn",)
    assert embedding.AHEAD > 0
