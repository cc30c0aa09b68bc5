"""`openshape data`: what verify finds, what show draws, what list names, and what an interruption says."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from openshape_jax.cli import main
from openshape_jax.data import schema, verify
from openshape_jax.evals import sheet
from tfds_builders import sharded

SHAPES = {"train": 40, "test": 8}


class Load(NamedTuple):
    """Makes item n, sound unless it is one of those named."""

    faults: tuple[tuple[int, str], ...] = ()

    def __call__(self, n: int) -> dict:
        fault = dict(self.faults).get(n, "")
        rng = np.random.default_rng(n)
        xyz = rng.normal(size=(30, 3))

        def feature(width: int) -> np.ndarray:
            row = rng.normal(size=width)
            return row / np.linalg.norm(row)

        texts = [
            schema.Text(f"thing {n}", "name", feature(8) * (3 if fault == "long" else 1)),
            schema.Text("a thing", "caption", feature(8) * (fault != "zero"), feature(8) * 0.8),
        ]
        record = schema.encode(
            uid="u1" if fault == "twin" else f"u{n}", dataset="things", xyz=xyz, rgb=rng.random((30, 3)),
            texts=texts, text_dim=8, image_dim=6, image_features=feature(6)[None],
            meta={"label": "spoon" if fault == "label" else "mug"},
        )  # fmt: skip
        if fault == "points":
            record["xyz"] = record["xyz"] ^ 1
        if fault in ("corner", "small"):
            record["xyz"] = np.full((30, 3), 65535 if fault == "corner" else 40000, np.uint16)
            record["checksum"] = np.uint32(schema.checksum(record["xyz"], record["rgb"]))
        if fault == "scale":
            record["scale"] = np.float32(np.nan)
        return record


GOOD = Load()


class Things(sharded.ShardedBuilder, skip_registration=True):
    name = "things"
    VERSION = tfds.core.Version("1.0.0")
    load = GOOD
    said: tuple = ()

    def _info(self):
        metadata = tfds.core.MetadataDict(classes=["mug"], **dict(self.said))
        features = schema.features(text_dim=8, image_dim=6)
        return tfds.core.DatasetInfo(builder=self, features=features, metadata=metadata)

    def _items(self, dl_manager):
        return {
            "train": {f"u{n}": n for n in range(SHAPES["train"])},
            "test": {f"u{n}": n for n in range(100, 100 + SHAPES["test"])},
        }

    def _loader(self):
        return self.load

    def _subsets(self):
        return {"train_even": [f"u{n}" for n in range(0, SHAPES["train"], 2)]}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(sharded, "SHARD_SIZE", 16)


def build(data_dir: Path, *faults: tuple[int, str], **said) -> Path:
    made = Things(data_dir=str(data_dir), file_format="array_record")
    made.load, made.jobs = Load(faults), 1
    made.info.metadata.update(said)
    made.download_and_prepare()
    return Path(made.data_dir)


def run(*arguments: str) -> int | str | None:
    """The exit status of `openshape data ...`, or its error message."""
    with pytest.raises(SystemExit) as done:
        main.main(["data", *map(str, arguments)])
    return done.value.code


# ---------------------------------------------------------------- verify


def test_a_sound_set_has_no_problem(tmp_path, capsys, data_dir):
    build(tmp_path)
    assert run("verify", "things", "--data_dir", tmp_path) == 0
    out, err = capsys.readouterr()
    assert "shapes: train 40, test 8; features: 192" in out
    assert "no problem found" in out
    assert "48/48" in err
    assert run("verify", "primitives/tiny", "--data_dir", data_dir) == 0
    said = str(run("verify", "thigns", "--data_dir", tmp_path))
    assert "data set 'thigns' is not built" in said and "like it:   things\n" in said


def test_every_fault_of_a_record_is_found(tmp_path, capsys):
    kinds = ("long", "zero", "twin", "points", "corner", "small", "scale", "label")
    build(tmp_path, *((n + 2, kind) for n, kind in enumerate(kinds)), (30, "long"), (101, "long"))
    assert run("verify", "things", "--data_dir", tmp_path) == 1
    out = capsys.readouterr().out
    assert "10 problems:" in out
    for line in (
        r"train: text feature of a length outside 0.98 to 1.02: 2 of 80 \(2.50%\); first: .* has 3",
        r"test: text feature of a length outside 0.98 to 1.02: 1 of 16 \(6.25%\); first: 'u101' .*has 3",
        r"train: text feature that is zero, NaN or infinite: 1 of 80 \(1.25%\); first: 'u3'",
        r"train: uid twice: 1; first: 'u1' \(.*\) and 'u1' \(",
        r"train: record whose points do not match their checksum: 1 of 40 \(2.50%\); first: 'u5'",
        r"train: record whose points leave the unit sphere: 1 .*'u6'",
        r"train: record whose points do not reach the unit sphere: 1 .*'u7'",
        r"train: record whose center or scale is no finite number .*'u8'",
        r"train: record whose label is none of the metadata's classes: 1 .*'u9'",
        r"train: uids.train.txt differs from the records in 1 of 40 lines, .*'u4', but the record is 'u1'",
    ):
        assert re.search(f"- {line}", out), line
    assert "delete the folder and run `openshape data build things` again" in out


def test_features_of_other_lengths_are_a_note_where_the_set_says_so(tmp_path, capsys):
    build(tmp_path, (2, "long"), unit_features=False)
    assert run("verify", "things", "--data_dir", tmp_path) == 0
    assert "note: train: text feature of a length outside" in capsys.readouterr().out


def flip(folder: Path) -> None:
    path = folder / "things-train.array_record-00001-of-00003"
    data = bytearray(path.read_bytes())
    data[np.flatnonzero(np.frombuffer(data, np.uint8))[2000]] ^= 4  # in a record: the rest is padding
    path.write_bytes(data)


def recount(folder: Path) -> None:
    path = folder / "dataset_info.json"
    info = json.loads(path.read_text())
    train = next(split for split in info["splits"] if split["name"] == "train")
    train["shardLengths"][0] = str(int(train["shardLengths"][0]) + 1)
    path.write_text(json.dumps(info))


def cut(folder: Path) -> None:
    path = folder / "things-test.array_record-00000-of-00001"
    path.write_bytes(path.read_bytes()[:100])


def rewrite(name: str, old: str, new: str):
    def damage(folder: Path) -> None:
        path = folder / name
        path.write_text(re.sub(old, new, path.read_text(), count=1))

    return damage


def rows(values, dtype=np.int64):
    return lambda folder: np.save(folder / "subset.train_even.npy", np.array(values, dtype))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (flip, r"train: record that cannot be read: 1 of 40 \(2.50%\); first: things-train.*-00001-of"),
        (recount, r"things-train.array_record-00000-of-00003 holds 16 records, dataset_info.json says 17"),
        (cut, r"test: things-test.array_record-00000-of-00001 holds 0 records, dataset_info.json says 8"),
        (lambda f: (f / "things-test.array_record-00000-of-00001").unlink(), r"test: the file .* is missing"),
        (
            rows([0, 3, 40]),
            r"subset.train_even.npy: 1 of 3 rows lie outside the 40 records of train, first 40",
        ),
        (rows([-1, 3]), r"1 of 2 rows lie outside .*first -1"),
        (rows([3, 3]), r"its rows do not rise, or one is there twice"),
        (rows([1, 2], np.float32), r"holds float32 of shape \(2,\); expected whole numbers"),
        (lambda f: (f / "subset.train_even.npy").write_bytes(b"x"), r"subset.train_even.npy cannot be read"),
        (
            lambda f: (f / "uids.test.txt").unlink(),
            r"test: uids.test.txt is missing, though there is uids.tr",
        ),
        (
            rewrite("uids.test.txt", "u10", "v10"),
            r"differs from the records in 1 of 8 lines, first in line 1",
        ),
        (rewrite("uids.test.txt", "\n", "\n\n"), r"uids.test.txt lists 9 uids, but there are 8 records"),
        (lambda f: (f / "rejects.jsonl").write_text("{}\n"), r"rejects.jsonl lists 1 shapes, .*counts 0"),
        (lambda f: (f / "class_features.npz").write_bytes(b"x"), r"class_features.npz cannot be read"),
    ],
)
def test_damage_is_found(tmp_path, capsys, damage, problem):
    folder = build(tmp_path)
    damage(folder)
    assert run("verify", "things", "--data_dir", tmp_path) == 1
    assert re.search(problem, capsys.readouterr().out)


def test_any_flipped_byte_is_found(tmp_path):
    folder = build(tmp_path)
    path = folder / "things-test.array_record-00000-of-00001"
    sound = path.read_bytes()
    rng = np.random.default_rng(0)
    # The first 64 bytes mark the kind of file, the last block is a second table of contents.
    used = np.flatnonzero(np.frombuffer(sound[: 1 << 16], np.uint8))
    for place in rng.choice(used[used >= 64], 30, replace=False):
        data = bytearray(sound)
        data[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        assert verify.verify(folder).problems, place


# ---------------------------------------------------------------- show


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_show_draws_shapes_and_texts(data_dir, tmp_path, capsys):
    made = []
    for seed, name in ((0, "a.png"), (0, "b.png"), (1, "c.png")):
        out = tmp_path / "new" / name
        arguments = ("--n", 5, "--seed", seed, "--split", "test", "--out", out, "--data_dir", data_dir)
        assert run("show", "primitives/tiny", *arguments) == 0
        made.append(pixels(out))
    assert capsys.readouterr().out.splitlines()[-1].endswith("c.png")
    first, same, other = made
    np.testing.assert_array_equal(first, same)
    assert first.shape != other.shape or (first != other).any()
    assert len(np.unique(first.reshape(-1, 3), axis=0)) > 200
    page = np.array([0xEE, 0xF2, 0xF7], np.uint8)
    for border in (first[: sheet.EDGE - 8], first[-8:], first[:, : sheet.EDGE - 2], first[:, -8:]):
        assert (border == page).all()
    cards = 4 * sheet.WIDTH + 3 * sheet.GAP + 2 * sheet.EDGE
    assert first.shape[1] == cards
    # Five records are two rows: the last three places are free.
    x = sheet.EDGE + sheet.WIDTH + sheet.GAP // 2
    assert (first[-200 : -sheet.EDGE, x:] == page).all()
    assert not (first[-200 : -sheet.EDGE, :x] == page).all()


def test_a_card_holds_everything_that_is_said(tmp_path):
    long = "a/very_long-path/" * 9 + "x" * 90
    texts = [schema.Text(f"word{i} " * 40, "caption", np.ones(4) if i % 2 else None) for i in range(20)]
    record = {
        "uid": long, "label": "", "texts": texts, "xyz": np.zeros((7, 3), np.uint16),
        "rgb": np.zeros((7, 3), np.uint8), "image_features": np.zeros((2, 4)),
    }  # fmt: skip
    lines = sheet._card(record)
    for line in lines:
        length = sheet.font(line.size, line.bold).getlength(line.lead + line.text)
        assert line.indent + length <= sheet.WIDTH - 2 * sheet.PAD
    assert lines[0].text == "no label"
    assert [line.dot for line in lines if line.dot] == ["ring", "full"] * 7
    assert " ".join(line.text for line in lines[-1:]) == "6 more texts, 2 image features, 7 points"
    assert sum(line.text.endswith("…") for line in lines) == 15  # the 14 texts, and the uid


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=200), st.integers(30, 300))
def test_wrapping_loses_nothing(text, width):
    face = sheet.font(14)
    lines = sheet.wrap(text, face, width)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(face.getlength(line) <= width or len(line) == 1 for line in lines)
    short = sheet.wrap(text, face, width, 2)
    assert len(short) <= 2
    assert (short == lines) == (len(lines) <= 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--n", 0), "--n is 0; it must lie in 1 to 200"),
        (("--seed", -1), "--seed is -1"),
        (("--out", "a.jpg"), "--out is 'a.jpg'; the picture is a .png file"),
        (("--split", "valid"), "no split 'valid'; it has train, test"),
    ],
)
def test_show_refuses(data_dir, arguments, message):
    assert message in str(run("show", "primitives/tiny", "--data_dir", data_dir, *arguments))


# ---------------------------------------------------------------- list and build


def test_list_names_what_can_be_built_and_what_is(tmp_path, capsys):
    assert run("list", "--data_dir", tmp_path) == 0
    out = capsys.readouterr().out
    assert re.search(r"\n  mesh_folder +A folder of your own meshes", out)
    assert f"built in {tmp_path}: none" in out
    build(tmp_path)
    assert run("list", "--data_dir", tmp_path) == 0
    assert re.search(r"\n  things 1.0.0  train 40, test 8 \(\d+ MB\)", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("primitives/tiny", "--source", "x", "--up", "z"), "primitives does not use --source, --up"),
        (("sweethome3d", "--jobs", 2), "sweethome3d does not use --jobs"),
        (("modelnet40", "--class-from", "folder"), "modelnet40 does not use --class-from"),
        (("primitives/huge",), "primitives has no config 'huge'; it has default, tiny"),
        (("mesh_folder", "--jobs", -1), "--jobs is -1"),
        (("mesh_folder", "--max-reject-fraction", 7), "--max-reject-fraction is 7.0; it must lie in 0 to 1"),
        (("mesh_folder", "--beam_pipeline_options=a=b"), "--beam_pipeline_options needs --runner"),
        (("mesh_folder", "--beam_exchange=gs://b"), "--beam_exchange needs --runner"),
        (("mesh_folder", "--runner=DirectRunner", "--jobs", 2), "--jobs counts processes of this machine"),
        (("mesh_folder", "--data_dir", "gs://b/x"), "is the URL 'gs://b/x'; records are read and"),
        (("mesh_fodler",), "no builder for 'mesh_fodler'"),
    ],
)
def test_build_refuses(arguments, message, tmp_path):
    where = () if "--data_dir" in arguments else ("--data_dir", tmp_path)
    assert message in str(run("build", *arguments, *where))


def clouds(folder: Path, count: int) -> Path:
    """A folder of `count` .npy clouds, all one file."""
    folder.mkdir()
    np.save(folder / "0.npy", np.random.default_rng(0).normal(size=(12_000, 3)))
    for i in range(1, count):
        os.link(folder / "0.npy", folder / f"{i}.npy")
    return folder


def test_an_interruption_says_what_is_kept(tmp_path, capsys, monkeypatch):
    from tfds_builders.mesh_folder import builder
    from tfds_builders.primitives import shapes

    source = clouds(tmp_path / "in", 60)
    load, count = builder.load_points, iter(range(1000))

    def interrupted(*arguments):
        if next(count) == 40:
            raise KeyboardInterrupt
        return load(*arguments)

    monkeypatch.setattr(builder, "load_points", interrupted)
    command = ("build", "mesh_folder", "--source", source, "--data_dir", tmp_path / "out", "--jobs", 1)
    assert run(*command) == 130
    partial = tmp_path / "out" / "mesh_folder" / "default" / "partial.1.0.0"
    assert (
        f"interrupted: 2 finished shards are kept in {partial}. The same command" in capsys.readouterr().err
    )
    assert run(*command) == 0
    assert "2 of 4 shards are there" in capsys.readouterr().out

    monkeypatch.setattr(shapes, "sample", lambda *_: signal.default_int_handler(signal.SIGINT, None))
    assert run("build", "primitives/tiny", "--data_dir", tmp_path / "out") == 130
    assert "interrupted: nothing was kept of the build. The same command starts it" in capsys.readouterr().err


@pytest.mark.parametrize("whole_group", [True, False])  # Ctrl-C in a terminal reaches the workers too
def test_ctrl_c_with_several_processes_is_quick_and_quiet(tmp_path, whole_group):
    source = clouds(tmp_path / "in", 1500)
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from tfds_builders import sharded; sharded.SHARD_SIZE = 10\n"
        "from openshape_jax.cli.main import main\n"
        f"main(['data', 'build', 'mesh_folder', '--source', {str(source)!r}, '--data_dir', "
        f"{str(tmp_path / 'out')!r}, '--jobs', '2'])"
    )
    partial = tmp_path / "out" / "mesh_folder" / "default" / "partial.1.0.0"
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=log, stderr=log, start_new_session=True
        )
        end = time.monotonic() + 120
        while process.poll() is None and not list(partial.glob("*.json")) and time.monotonic() < end:
            time.sleep(0.02)
        (os.killpg if whole_group else os.kill)(process.pid, signal.SIGINT)
        start = time.monotonic()
        assert process.wait(60) == 130
        assert time.monotonic() - start < 20
    said = (tmp_path / "log").read_text()
    assert re.search(r"interrupted: \d+ finished shards? (is|are) kept in", said)
    assert "Traceback" not in said
    assert len(list(partial.glob("*.array_record"))) < 150
