"""The report of a small run: complete, self-contained, honest about what is missing."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from openshape_jax import config as config_lib
from openshape_jax import train
from openshape_jax.cli import main as cli
from openshape_jax.evals import report, report_figures

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory) -> Path:
    overrides = [f"data.data_dir={data_dir}", "steps=4", "batch_size=8", "log_every=1", "model.depth=1"]
    config = config_lib.load(str(ROOT / "configs/quickstart.py:smoke"), overrides)
    return train.run(config, tmp_path_factory.mktemp("report") / "<run>")


def page(run: Path) -> str:
    return (run / "report" / "index.html").read_text()


class Tags(HTMLParser):
    """Counts open tags and collects attributes."""

    def __init__(self):
        super().__init__()
        self.depth: list[str] = []
        self.images: list[dict] = []

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in ("img", "meta", "br", "link", "use", "path"):
            self.depth.append(tag)

    def handle_endtag(self, tag):
        if tag in self.depth:
            while self.depth.pop() != tag:
                pass


def test_training_writes_the_report_with_every_section(run):
    text = page(run)
    for name in (
        "Results",
        "Training",
        "Gallery",
        "Confusions",
        "Map",
        "Search",
        "Configuration",
        "Attribution",
    ):
        assert f"<h2>{name}</h2>" in text
    result = json.loads((run / "eval/primitives_tiny.json").read_text())
    assert f"{result['top1']:.1%}" in text
    assert "CC0-1.0" in text
    assert "optim.learning_rate" in text


def test_it_is_self_contained_and_every_image_has_a_text(run):
    text = page(run)
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', text.split("<svg")[0])
    assert "<script" not in text
    tags = Tags()
    tags.feed(text)
    assert len(tags.images) > 60
    assert all(i["alt"] and i["src"].startswith("data:image/png;base64,") for i in tags.images)
    assert len(text) < 6e6


def test_names_are_escaped(run):
    assert "<run>" not in page(run)
    assert "&lt;run&gt;" in page(run)


def test_a_lost_data_set_and_missing_results_are_said(run, tmp_path, data_dir):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    report.write(copy, tmp_path / "nowhere")
    assert "is not built" in page(copy)
    assert "no points" in page(copy)
    shutil.rmtree(copy / "eval")
    (copy / "metrics.jsonl").unlink()
    report.write(copy, data_dir)
    assert "No evaluation has been written yet" in page(copy)


def test_command(run, data_dir, tmp_path, capsys):
    with pytest.raises(SystemExit) as done:
        cli.main(["report", str(run), "--data_dir", data_dir])
    assert not done.value.code
    assert "index.html" in capsys.readouterr().out
    with pytest.raises(SystemExit) as done:
        cli.main(["report", str(tmp_path)])
    assert "has no config.json" in str(done.value.code)


def test_confusion_counts_every_shape():
    label, guess = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 2, 2, 0])
    svg = report_figures.confusion(label, guess, ["a", "b", "c"], most=2)
    assert "c (3)" in svg
    assert "a (2)" in svg
    assert "b (1)" not in svg


def test_map_separates_clusters():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(2, 16))
    points, _ = report_figures.flatten(np.repeat(centres, 20, 0) + rng.normal(0, 0.05, (40, 16)))
    gap = np.linalg.norm(points[:20].mean(0) - points[20:].mean(0))
    assert gap > 2 * points[:20].std()
    svg = report_figures.embedding_map(points, ["<x>"] * 40, ["<t>"] * 40)
    assert "<x>" not in svg
    assert svg.count("<circle") == 40
