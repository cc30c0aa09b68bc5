"""The report of a small run: complete, self-contained, honest about what is missing."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from openshape_jax import render, train
from openshape_jax.cli import main as cli
from openshape_jax.data import sources
from openshape_jax.evals import report, report_about, report_figures, summary
from tests.small_run import small

SECTIONS = ("Results", "Training", "Gallery", "Confusions", "Map", "Search", "Configuration", "Attribution")
VOID = {"meta", "link", "img", "br"}


@pytest.fixture(scope="module")
def run(data_dir, trained, tmp_path_factory) -> Path:
    """The end of a training, which evaluates and writes the report."""
    workdir = Path(shutil.copytree(trained, tmp_path_factory.mktemp("report") / "<run>"))
    shutil.rmtree(workdir / "eval")
    (workdir / "config.json").unlink()
    return train.run(small(data_dir, "eval.report=true"), workdir)


@pytest.fixture
def copy(run, tmp_path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def page(run: Path) -> str:
    return (run / "report" / "index.html").read_text()


def rewritten(run: Path, data_dir=None) -> str:
    return report.write(run, data_dir).read_text()


def test_what_training_named_is_not_called_zero_shot(run, copy, data_dir):
    assert page(run).count(summary.HELD_OUT) == 2  # among its classes and among all LVIS names
    assert "primitives/tiny: " + summary.HELD_OUT in summary.table(run)
    assert "zero-shot" not in (page(run) + summary.table(run)).lower()
    config = json.loads((copy / "config.json").read_text())
    config["data"]["datasets"] = ["sweethome3d"]
    (copy / "config.json").write_text(json.dumps(config))
    text = rewritten(copy, data_dir)
    assert text.count(summary.ZERO_SHOT) == 2
    assert "primitives/tiny: " + summary.ZERO_SHOT in summary.table(copy)
    assert summary.HELD_OUT not in text + summary.table(copy)
    assert summary.kind("primitives/tiny", {"data": {"datasets": ["primitives"]}}) == summary.HELD_OUT


@pytest.mark.parametrize(
    ("dataset", "split", "kind"),
    [
        ("targets/a", "train", summary.TRAINED),
        ("targets/a", "train[:50%]", summary.TRAINED),
        ("targets/a", "test", summary.HELD_OUT),
        ("targets/b", "train", summary.ZERO_SHOT),
        ("primitives", "mine", summary.TRAINED),
        ("primitives", "train", summary.HELD_OUT),
    ],
)
def test_shapes_of_training_are_not_called_held_out(dataset, split, kind):
    trained = {"datasets": ["targets/a", "primitives"], "splits": ["train", "mine"]}
    assert summary.kind(dataset, {"data": trained}, split) == kind


def test_a_page_of_the_training_split_says_so(copy, data_dir):
    for path in (copy / "eval").glob("*.json"):
        path.write_text(path.read_text().replace('"split": "test"', '"split": "train"'))
    text = rewritten(copy, data_dir)
    assert text.count(summary.TRAINED) == 2
    assert not any(words in text for words in ("held-out", "held out", "kept out of training"))


@pytest.mark.parametrize(
    ("trained", "kind"),
    [
        ({"datasets": ["openshape_ensemble"]}, summary.SEEN),
        ({"datasets": ["primitives", "openshape_ensemble/objaverse"], "split": "mine"}, summary.SEEN),
        ({"datasets": ["openshape_ensemble"], "split": "train_no_lvis"}, summary.ZERO_SHOT),
        ({"datasets": ["openshape_ensemble/abo"]}, summary.ZERO_SHOT),
        (
            {"datasets": ["openshape_ensemble", "mesh_folder/a"], "splits": ["train_no_lvis", "train"]},
            summary.ZERO_SHOT,
        ),
    ],
)
def test_lvis_is_called_zero_shot_only_where_training_left_it_out(trained, kind):
    assert summary.kind("objaverse_lvis", {"data": trained}) == kind
    assert summary.kind("modelnet40", {"data": trained}) == summary.ZERO_SHOT
    assert summary.kind("mesh_folder/b", {"data": trained}) == summary.ZERO_SHOT


class Tags(HTMLParser):
    """Collects images and links, and checks that every tag is closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict] = []
        self.links: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag == "img":
            self.images.append(values)
        if tag == "a":
            self.links.append(values["href"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag, tag


def test_training_writes_the_report_with_every_section(run):
    text = page(run)
    assert [t for t in SECTIONS if f"<h2>{t}</h2>" not in text] == []
    result = json.loads((run / "eval/primitives_tiny.json").read_text())
    assert f"<b>{result['top1']:.1%}</b>" in text
    assert f"chance {report_page_percent(1 / result['num_classes'])}" in text
    assert "All 1,203 names of LVIS" in text
    assert "CC0-1.0" in text
    assert "optim.learning_rate" in text
    assert ">64</b><span>shapes seen" in text  # 8 steps of 8
    assert "The 249 synthetic shapes of <code>primitives/tiny</code> are this package's own" in text
    assert "with thanks" not in text
    assert 'class="missing"' not in text


def report_page_percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.0995 else f"{share:.2%}"


def test_it_is_self_contained_well_formed_and_every_image_has_a_text(run):
    text = page(run)
    tags = Tags(text)
    assert len(tags.images) > 60
    assert all(i["alt"] and i["src"].startswith("data:image/png;base64,") for i in tags.images)
    assert all(x.startswith(("#", "https://creativecommons.org/")) for x in tags.links)
    assert not re.findall(r"<script|@import|url\((?!#)", text)
    assert len(text) < 6e6


def test_names_are_escaped(run, copy):
    assert "<run>" not in page(run)
    assert "&lt;run&gt;" in page(run)
    evil = "<script>alert('x')</script>\"&"
    for path in (copy / "eval").glob("*.npz"):
        with np.load(path) as file:
            arrays = {k: file[k] for k in file}
        names = [f"{evil}{c}" for c in arrays["class_names"]]
        uids = [f"{evil}{u}" for u in arrays["uid"]]
        np.savez(path, **{**arrays, "class_names": np.array(names), "uid": np.array(uids)})
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, evil: evil}))
    text = rewritten(copy)
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    Tags(text)


def test_a_lost_data_set_and_missing_results_are_said(copy, tmp_path, data_dir):
    text = rewritten(copy, tmp_path / "nowhere")
    assert "is not built" in text
    assert "no points" in text
    assert "creators cannot be listed: primitives/tiny" in text
    shutil.rmtree(copy / "eval")
    (copy / "metrics.jsonl").unlink()
    text = rewritten(copy, data_dir)
    assert text.count("No evaluation has been written yet") == 5
    assert "metrics.jsonl has no line yet" in text
    assert "stopped at step 0 of 8" in text
    Tags(text)


@pytest.fixture
def quick_pictures(monkeypatch):
    monkeypatch.setattr(render, "picture", lambda xyz, rgb, size: np.zeros((8, 8, 3), np.uint8))


@pytest.mark.usefixtures("quick_pictures")
@pytest.mark.parametrize("damage", ["cut", "gone", "array missing", "nan", "out of range"])
def test_a_damaged_evaluation_is_said_and_the_other_is_shown(copy, data_dir, damage):
    path = copy / "eval/primitives_tiny.npz"
    with np.load(path) as file:
        arrays = {k: file[k] for k in file}
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:500])
    elif damage == "gone":
        path.unlink()
    elif damage == "array missing":
        np.savez(path, **{k: v for k, v in arrays.items() if k != "class_emb"})
    elif damage == "nan":
        arrays["shape_emb"][0, 0] = np.nan
        np.savez(path, **arrays)
    else:
        np.savez(path, **{**arrays, "label": arrays["label"] + 1000})
    text = rewritten(copy, data_dir)
    assert "primitives_tiny: The embeddings could not be read" in text
    assert "The 1,203" not in text
    assert '<article class="' in text  # of primitives_tiny_lvis
    (copy / "eval/primitives_tiny.json").write_text('{"top1": 0.')
    assert "primitives_tiny.json is damaged" in rewritten(copy, data_dir)


@pytest.mark.usefixtures("quick_pictures")
def test_a_data_set_that_lost_records_or_icons_is_said(copy, data_dir, monkeypatch):
    original = sources.TfdsRecords.__getitem__

    def damaged(self, index):
        if index % 3 == 0:
            raise ValueError("record is damaged")
        return {**original(self, index), "icon": b"no picture" if index % 2 else b""}

    monkeypatch.setattr(sources.TfdsRecords, "__getitem__", damaged)
    text = rewritten(copy, data_dir)
    assert "evaluated shapes are not in the data set that was found (" in text
    assert "damaged records)" in text
    assert "no icon" in text


@pytest.mark.usefixtures("quick_pictures")
@pytest.mark.parametrize("damage", ["cut", "gone", "no info"])
def test_a_damaged_data_set_is_said(copy, data_dir, tmp_path, damage):
    broken = Path(shutil.copytree(data_dir, tmp_path / "broken"))
    (file,) = broken.rglob("primitives-test.array_record*")
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:70_000])
    elif damage == "gone":
        file.unlink()
    else:
        file.with_name("dataset_info.json").write_text("{")
    text = rewritten(copy, broken)
    said = "The shapes could not be drawn" if damage == "no info" else "damaged records)"
    assert said in text
    assert "no points" in text


def test_command(run, data_dir, tmp_path, capsys):
    with pytest.raises(SystemExit) as done:
        cli.main(["report", str(run), "--data_dir", data_dir])
    assert not done.value.code
    assert "index.html" in capsys.readouterr().out
    with pytest.raises(SystemExit) as done:
        cli.main(["report", str(tmp_path)])
    assert "has no config.json" in str(done.value.code)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SystemExit) as done:
        cli.main(["report", str(tmp_path)])
    assert "is damaged" in str(done.value.code)


def test_attribution_counts_other_peoples_models_only():
    made = {"creator": "openshape_jax", "license": "CC0-1.0", "library": "primitives", "count": 3498}
    found = [
        {"creator": "A", "license": "CC0-1.0", "library": "L", "count": 2, "dataset": "sweethome3d"},
        {"creator": "B", "license": "CC-BY-3.0", "library": "L", "count": 5, "dataset": "sweethome3d"},
    ]
    text = report_about.attribution(report.Credits([*found, {**made, "dataset": "primitives"}]))
    assert "the work of 2 creators, with thanks: 5 under" in text
    assert ", 2 under" in text
    assert "<td>openshape_jax</td>" not in text
    assert "The 3,498 synthetic shapes of <code>primitives</code> are this package's own" in text
    assert "synthetic" not in report_about.attribution(report.Credits(found))
    Tags(text)
    only = report_about.attribution(report.Credits([{**made, "dataset": "primitives"}], "Not found: x."))
    assert "creators, with thanks" not in only
    assert '<p class="missing">Not found: x.</p>' in only
    assert "name no creators" in report_about.attribution(report.Credits())


def embedded(n: int = 60, classes: int = 10, noise: float = 0.1, seed: int = 0) -> report.Embedded:
    rng = np.random.default_rng(seed)
    names = rng.normal(size=(classes, 16))
    names /= np.linalg.norm(names, axis=1, keepdims=True)
    label = rng.integers(0, classes, n)
    shapes = names[label] + rng.normal(0, noise, (n, 16))
    shapes /= np.linalg.norm(shapes, axis=1, keepdims=True)
    uids = [f"u{i}" for i in range(n)]
    return report.Embedded(uids, label, shapes, [f"c{k}" for k in range(classes)], names)


def test_the_gallery_shows_failures_as_often_as_successes():
    e = embedded(200, noise=0.5)
    choice = report.choose(e)
    guess = e.scores().argmax(1)
    assert len(choice.right) == len(choice.wrong) == report.SHOWN
    assert (guess[choice.right] == e.label[choice.right]).all()
    assert (guess[choice.wrong] != e.label[choice.wrong]).all()
    assert report.choose(embedded(noise=0)).wrong == []


def test_retrieval_rows_hold_the_nearest_shapes_and_never_the_query():
    e = embedded(noise=0.3)
    choice = report.choose(e)
    assert len(choice.by_word) == len(choice.by_shape) == report.QUERIES
    for word, _, found in choice.by_word:
        score = e.shape_emb @ e.class_emb[e.class_names.index(word)]
        assert found == sorted(range(60), key=lambda i: -score[i])[: report.NEIGHBOURS]
    queries = [query for query, _, _ in choice.by_shape]
    assert len({e.label[q] for q in queries}) == len(queries)
    for query, cosine, found in choice.by_shape:
        assert query not in found
        assert cosine[found].min() >= np.delete(cosine, [query, *found]).max()
    one = embedded(1, 1)
    assert report.choose(one).by_shape[0][2] == []


def test_confusion_counts_every_shape():
    label, guess = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 2, 2, 0])
    svg = report_figures.confusion(label, guess, ["a", "b", "c"], most=2)
    assert "c (3)" in svg
    assert "a (2)" in svg
    assert "b (1)" not in svg
    assert "c taken for a: 1 of 3" in svg
    assert "c, right: 2 of 3" in svg
    assert "a taken for another class: b 1: 1 of 2" in svg


def test_chain_puts_similar_rows_side_by_side():
    angle = np.array([0.0, 2.0, 0.5, 1.0, 1.4])
    assert report_figures.chain(np.stack([np.cos(angle), np.sin(angle)], 1)) == [0, 2, 3, 4, 1]


def test_map_separates_clusters():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(2, 16))
    points, method = report_figures.flatten(np.repeat(centres, 20, 0) + rng.normal(0, 0.05, (40, 16)))
    gap = np.linalg.norm(points[:20].mean(0) - points[20:].mean(0))
    assert method == "t-SNE"
    assert gap > 2 * points[:20].std()
    svg, legend = report_figures.embedding_map(points, ["<x>"] * 40, ["<t>"] * 40)
    assert "<x>" not in svg + legend
    assert svg.count("<circle") == 40
    assert "<small>40</small>" in legend


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_map_of_few_shapes_is_pca(n):
    points, method = report_figures.flatten(np.eye(n, 8))
    assert method == "PCA"
    assert points.shape == (n, 2)
    assert points.min() >= 0
    assert points.max() <= 1


def test_map_labels_do_not_cover_each_other():
    rng = np.random.default_rng(0)
    labels = [f"class {i % 16:02d}" for i in range(160)]
    svg, _ = report_figures.embedding_map(rng.random((160, 2)), labels, labels)
    places = [(float(x), float(y)) for x, y in re.findall(r'<text x="(\d+)" y="(\d+)"', svg)]
    assert len(places) == 16
    for i, (x, y) in enumerate(places):
        assert all(abs(x - p) > 60 or abs(y - q) > 15 for p, q in places[:i])


def test_curves_of_one_line_and_of_none():
    assert report_figures.curves([]) == {}
    one = report_figures.curves([{"step": 5, "train/loss": 1.0}, {"step": 5, "eval/x/top1": 0.5}], {"x": 0.1})
    assert set(one) == {"loss", "accuracy"}
    assert "50%" in one["accuracy"]
