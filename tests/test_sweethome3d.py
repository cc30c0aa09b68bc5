"""The sweethome3d builder on a small library made here: sources, records, splits, bad models, the command."""

from __future__ import annotations

import argparse
import csv
import errno
import io
import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tfds_builders
from openshape_jax.cli import data as data_verb
from openshape_jax.data import schema, sources, vocabulary
from openshape_jax.errors import explain
from tests.mesh_examples import MODELS, make_library
from tfds_builders.sweethome3d import builder, catalogue, libraries

LABELS = [
    {
        "uid": "Lib#chair",
        "class": "lvis:chair",
        "synonyms": "seat;garden chair thing",
        "caption": "a red box",
        "split": "train",
    },
    {"uid": "Lib#stretched", "class": "lvis:table", "synonyms": "", "caption": "", "split": "test"},
    {"uid": "Lib#broken", "class": "", "synonyms": "", "caption": "", "split": "test"},
]


@pytest.fixture
def labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "labels.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["uid", "class", "synonyms", "caption", "split"])
        writer.writeheader()
        writer.writerows(LABELS)
    monkeypatch.setattr(builder.read_labels, "__defaults__", (path,))
    return path


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Installed packages: two libraries, an id of which occurs in both, and the program with its own."""
    folder = tmp_path / "share"
    make_library(folder / "furniture" / "A.sh3f", MODELS, "Public domain")
    make_library(
        folder / "furniture" / "B.sh3f", {"Lib#twice": {"name": "Two"}}, "Creative Commons Attribution 3.0"
    )
    own = {"Own#desk": {"name": "Desk"}}
    make_library(folder / "sweethome3d.jar", own, "", catalogue.OWN_PROPERTIES)
    monkeypatch.setattr(libraries.find, "__defaults__", (libraries.FURNITURE, print, folder))
    return folder


def command(*arguments: str) -> int | str:
    """The exit status of `openshape data ...`, or its message, as the command gives it."""
    parser = argparse.ArgumentParser()
    data_verb.add_parser(parser.add_subparsers())
    args = parser.parse_args(["data", *arguments])
    try:
        return args.run(args)
    except Exception as error:
        return explain(error)


def build(data_dir: Path, *more: str) -> int | str:
    return command("build", "sweethome3d", "--data_dir", str(data_dir), *more)


def records(data_dir: Path, split: str) -> dict[str, dict[str, Any]]:
    found, _ = sources.open_split("sweethome3d", split, data_dir)
    decoded = [found[i] for i in range(len(found))]
    for record in decoded:
        schema.check(record)
    return {r["uid"]: r for r in decoded}


def test_build_end_to_end(
    tmp_path: Path, installed: Path, labels: Path, capsys: pytest.CaptureFixture
) -> None:
    assert build(tmp_path / "data") == 0
    said = capsys.readouterr().out
    assert "train 5, test 1" in said and "skipped: 2" in said and "Lib#broken: lib/broken.obj" in said
    folder = sources.find("sweethome3d", tmp_path / "data")
    rejects = [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]
    assert {r["uid"] for r in rejects} == {"Lib#broken", "Lib#missing"}

    train, test = (records(tmp_path / "data", split) for split in ("train", "test"))
    assert set(train) == {"Lib#chair", "Lib#turned", "A#4", "B#1", "Own#desk"} and set(test) == {
        "Lib#stretched"
    }
    chair = train["Lib#chair"]
    assert [chair[k] for k in ("name", "label", "category", "tags", "creator", "license")] == [
        "Chair", "chair", "Office", "Seat, Test", "Ann", "CC0-1.0",
    ]  # fmt: skip
    assert train["Own#desk"]["license"] == "GPL-2.0-or-later"
    assert train["B#1"]["license"] == "CC-BY-3.0" and test["Lib#stretched"]["name"] == "Château: big"
    assert Image.open(io.BytesIO(chair["icon"])).size == (64, 64)

    words = vocabulary.load()
    texts = {t.source: t for t in chair["texts"] if t.text != "garden chair thing"}
    assert [(t.text, t.source) for t in chair["texts"]] == [
        ("chair", "class"), ("seat", "synonym"), ("garden chair thing", "synonym"),
        ("Chair", "name"), ("a red box", "caption"),
    ]  # fmt: skip
    np.testing.assert_allclose(texts["class"].feature, words.features[words.lookup("lvis:chair")], atol=1e-3)
    np.testing.assert_array_equal(texts["name"].feature, texts["class"].feature)
    assert texts["caption"].feature is None and chair["texts"][2].feature is None
    assert [t.source for t in train["Lib#turned"]["texts"]] == ["name"] and train["Lib#turned"]["label"] == ""

    import tensorflow_datasets as tfds

    info = tfds.builder_from_directory(str(folder)).info
    assert info.metadata["classes"] == ["chair", "table"] and info.metadata["up"] == "z"
    assert info.metadata["text_space"] == vocabulary.TEXT_SPACE and info.metadata["skipped"] == 2
    assert {"creator": "Ann", "license": "CC-BY-3.0", "library": "B", "count": 1} in info.metadata[
        "attribution"
    ]
    assert sum(a["count"] for a in info.metadata["attribution"]) == 8
    size = sum(p.stat().st_size for p in folder.glob("*.array_record*"))
    assert size / 6 < 100_000

    # a second call finds it, and says so
    capsys.readouterr()
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert build(tmp_path / "data") == 0
    assert "already built" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in folder.iterdir()}


def cloud(record: dict[str, Any]) -> np.ndarray:
    """(N, 3) points in cm."""
    return schema.dequantize_xyz(record["xyz"]) * record["scale"] + record["center"]


def test_models_have_their_size_front_and_rotation(tmp_path: Path, installed: Path, labels: Path) -> None:
    assert build(tmp_path / "data") == 0
    train, test = (records(tmp_path / "data", split) for split in ("train", "test"))
    chair = train["Lib#chair"]
    xyz, red = cloud(chair), chair["rgb"][:, 0] == 255
    # width is along x, depth along y, height along z; the front (file z = 4) is at -y
    np.testing.assert_allclose(np.ptp(xyz, axis=0), [10, 40, 20], atol=0.01)
    np.testing.assert_allclose(xyz[red, 1], xyz[:, 1].min(), atol=0.01)
    # equal area: the front is 10 x 20 of 2 (10 x 20 + 10 x 40 + 20 x 40)
    assert abs(red.mean() - 200 / 2800) < 0.01
    wide = test["Lib#stretched"]
    np.testing.assert_allclose(np.ptp(cloud(wide), axis=0), [40, 40, 20], atol=0.02)
    assert abs((wide["rgb"][:, 0] == 255).mean() - 800 / (2 * (800 + 800 + 1600))) < 0.02
    # rows (1 0 0, 0 0 1, 0 -1 0) take (x, y, z) to (x, z, -y): the front at z = 4 becomes the top
    turned = train["Lib#turned"]
    np.testing.assert_allclose(np.ptp(cloud(turned), axis=0), [1, 2, 4], atol=0.002)
    up = cloud(turned)[turned["rgb"][:, 0] == 255, 2]
    np.testing.assert_allclose(up, cloud(turned)[:, 2].max(), atol=0.002)


def test_points_do_not_depend_on_the_machine(tmp_path: Path, installed: Path) -> None:
    entries = catalogue.read_all(sorted(installed.rglob("*.sh3f")))[:4]
    alone = list(catalogue.load_all(entries, 100, workers=1))
    pool = list(catalogue.load_all(entries, 100, workers=2))
    for a, b in zip(alone, pool, strict=True):
        np.testing.assert_array_equal(a.xyz, b.xyz)
        np.testing.assert_array_equal(a.rgb, b.rgb)
    assert not np.array_equal(alone[0].rgb, alone[3].rgb)  # the seed is the uid's


def test_properties_follow_java() -> None:
    text = b"# c\r\n! d\r\na=1\r\n  b : two\r\nc\\:d\\ e = \\u00e9\\u20ac\\ud83d\\ude00\\n\xe9\r\n"
    text += b"long=one \\\r\n   two\r\nempty=\r\npath=C:\\\\x=y\r\n"
    assert catalogue.parse_properties(text) == {
        "a": "1", "b": "two", "c:d e": "é€😀\né", "long": "one two", "empty": "", "path": "C:\\x=y",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Public domain", "CC0-1.0"),
        ("Creative Commons Attribution 3.0 license", "CC-BY-3.0"),
        ("Creative Commons Attribution 3.0 United States license  Copyright", "CC-BY-3.0-US"),
        ("My own", "My own"),
    ],
)
def test_license_names(text: str, name: str) -> None:
    assert catalogue.license_name(text) == name


def test_a_file_that_is_no_library_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.sh3f").write_bytes(b"no")
    with zipfile.ZipFile(tmp_path / "y.sh3f", "w") as archive:
        archive.writestr("other", "")
    for name in ("x.sh3f", "y.sh3f"):
        with pytest.raises(ValueError, match=name):
            catalogue.read_catalogue(tmp_path / name)


def test_the_shipped_labels_fit_the_vocabulary() -> None:
    words = vocabulary.load()
    labels = builder.read_labels()
    assert len(labels) == 912
    by_class: dict[str, list[str]] = {}
    for label in labels.values():
        if label.key:
            assert words.find(label.key) is not None, label.key
            by_class.setdefault(label.key, []).append(label.split)
        else:
            assert label.split == "train"
    assert all("train" in splits for splits in by_class.values())
    num_test = sum(label.split == "test" for label in labels.values())
    assert 0.1 < num_test / sum(map(len, by_class.values())) < 0.25
    assert all(splits.count("test") <= max(1, 0.35 * len(splits)) for splits in by_class.values())


# ---------------------------------------------------------------- the command


def test_fallback_is_loud(
    tmp_path: Path,
    installed: Path,
    labels: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    def find(dl_manager: Any) -> Any:
        raise tfds_builders.SourceNotFound("nothing was found here or there")

    class Other(builder.Sweethome3d, skip_registration=True):
        name = "other"

        def _split_generators(self, dl_manager: Any) -> Any:
            entries = catalogue.read_all(sorted(installed.rglob("*.sh3f")))
            return {"train": self._examples([(entries[0], builder.Label("", (), "", "train"))])}

    known = tfds_builders.builder_class
    monkeypatch.setattr(libraries, "find", find)
    monkeypatch.setattr(tfds_builders, "names", lambda: ["other", "sweethome3d"])
    monkeypatch.setattr(tfds_builders, "builder_class", lambda n: Other if n == "other" else known(n))
    assert "nothing was found here or there" in str(build(tmp_path / "data"))
    assert not list((tmp_path / "data").rglob("dataset_info.json"))
    assert build(tmp_path / "data", "--fallback", "other") == 3
    said = capsys.readouterr().out
    assert "sweethome3d is NOT built" in said and "nothing was found here or there" in said
    assert sources.find("other", tmp_path / "data")


def test_unknown_names(tmp_path: Path) -> None:
    for arguments in (["nope"], ["sweethome3d", "--fallback", "nope"], ["sweethome3d/nope"]):
        said = str(command("build", *arguments, "--data_dir", str(tmp_path)))
        assert re.search(r"no builder for 'nope'; known: .*sweethome3d|has no config 'nope'", said)


@pytest.mark.parametrize("what", ["full", "interrupt", "writer"])
def test_an_interrupted_build_leaves_nothing_that_looks_complete(
    tmp_path: Path, installed: Path, labels: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    error = {
        "full": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x"),
        "interrupt": KeyboardInterrupt(),
        "writer": RuntimeError("INTERNAL: Failed to write: No space left on device"),
    }[what]

    def load_all(entries: list, num_points: int, workers: int) -> Any:
        yield catalogue.load(entries[0], num_points)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(catalogue, "load_all", load_all)
        status = build(tmp_path / "data")
    assert status == 130 if what == "interrupt" else "disk is full" in str(status)
    assert not list((tmp_path / "data").rglob("dataset_info.json"))
    with pytest.raises(sources.DatasetMissing):
        sources.find("sweethome3d", tmp_path / "data")
    assert build(tmp_path / "data") == 0 and len(records(tmp_path / "data", "train")) == 5


def test_leftovers_of_a_killed_build_are_removed(tmp_path: Path, installed: Path, labels: Path) -> None:
    old = tmp_path / "data" / "sweethome3d" / "incomplete.ABC_1.0.0"
    new = tmp_path / "data" / "sweethome3d" / "incomplete.DEF_1.0.0"
    for folder in (old, new):
        folder.mkdir(parents=True)
        (folder / "part").write_text("x")
    for path in (old / "part", old):
        os.utime(path, (1e9, 1e9))
    assert build(tmp_path / "data") == 0
    assert not old.exists() and new.exists()
