"""The base of the big builders: shards made in parallel, kept when interrupted, rejects listed."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow_datasets as tfds

from openshape_jax.data import schema, sources
from tfds_builders import sharded


class Load(NamedTuple):
    """Makes item n; rejects those in `bad`, and fails for now at `stop_at`."""

    bad: tuple[int, ...] = ()
    stop_at: int = -1

    def __call__(self, n: int) -> dict:
        if n in self.bad:
            raise ValueError(f"no shape in item {n}")
        if n == self.stop_at:
            raise OSError("the bucket is away")
        rng = np.random.default_rng(n)
        texts = [schema.Text(f"thing {n}", "name", rng.normal(size=4).astype(np.float32))]
        return schema.encode(
            uid=f"u{n}", dataset="d", xyz=rng.normal(size=(20, 3)), rgb=rng.random((20, 3)), texts=texts,
            text_dim=4, image_dim=6,
        )  # fmt: skip

    def __repr__(self) -> str:
        return "Load"  # an interruption is no other plan


GOOD = Load()


class Things(sharded.ShardedBuilder, skip_registration=True):
    name = "things"
    VERSION = tfds.core.Version("1.0.0")
    load = Load()

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=schema.features(text_dim=4, image_dim=6),
            metadata=tfds.core.MetadataDict(),
        )

    def _items(self, dl_manager):
        return {"train": {f"u{n}": n for n in range(100)}, "test": {f"u{n}": n for n in range(100, 110)}}

    def _loader(self):
        return self.load

    def _subsets(self):
        return {"train_even": [f"u{n}" for n in range(0, 100, 2)]}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(sharded, "SHARD_SIZE", 16)


def build(folder: Path, load: Load = GOOD, jobs: int = 1, allowed: float = 0.01) -> Path:
    builder = Things(data_dir=str(folder), file_format="array_record")
    builder.load, builder.jobs, builder.max_reject_fraction = load, jobs, allowed
    builder.download_and_prepare()
    return Path(builder.data_dir)


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_records_and_parts_read_back(tmp_path):
    folder = build(tmp_path)
    records, info = sources.open_split("things", "train", tmp_path)
    uids = [records[i]["uid"] for i in range(len(records))]
    assert sorted(uids) == sorted(f"u{n}" for n in range(100))
    assert (folder / "uids.train.txt").read_text().split() == uids
    assert len(info.splits["train"].shard_lengths) == 7
    even, _ = sources.open_split("things", "train_even", tmp_path)
    assert {even[i]["uid"] for i in range(len(even))} == {f"u{n}" for n in range(0, 100, 2)}
    assert even.num_bytes == records.num_bytes // 2
    with pytest.raises(ValueError, match="no split 'valid'; it has train, test, train_even"):
        sources.open_split("things", "valid", tmp_path)


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_interrupted_build_goes_on_and_ends_byte_identical(tmp_path, jobs, capsys):
    whole = digests(build(tmp_path / "whole"))
    with pytest.raises(OSError, match="bucket is away"):
        build(tmp_path / "cut", Load(stop_at=50), jobs)
    with pytest.raises(sources.DatasetMissing):
        sources.find("things", tmp_path / "cut")
    kept = list((tmp_path / "cut" / "things" / "partial.1.0.0").glob("*.array_record"))
    assert 0 < len(kept) < 8
    assert digests(build(tmp_path / "cut", jobs=jobs)) == whole
    assert f"{len(kept)} of 8 shards are there" in capsys.readouterr().out
    assert [p.name for p in (tmp_path / "cut" / "things").iterdir()] == ["1.0.0"]


def test_rejects_are_listed_or_fail_the_build(tmp_path):
    bad = Load(bad=(3, 107))
    with pytest.raises(sharded.TooManyRejects, match=r"(?s)2 of 110 .* more than .* 1.0%.*no shape in item"):
        build(tmp_path, bad)
    folder = build(tmp_path, bad, allowed=0.02)
    lines = [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]
    assert {line["uid"]: line["error"] for line in lines} == {
        "u3": "no shape in item 3",
        "u107": "no shape in item 107",
    }
    records, info = sources.open_split("things", "train", tmp_path)
    assert (len(records), info.metadata["skipped"]) == (99, 2)


def test_shapes_that_were_mended_since_are_no_rejects_any_more(tmp_path, capsys):
    whole = digests(build(tmp_path / "whole"))
    with pytest.raises(sharded.TooManyRejects):
        build(tmp_path, Load(bad=(3, 50)))
    capsys.readouterr()
    assert digests(build(tmp_path)) == whole
    assert "7 of 8 shards are there" in capsys.readouterr().out


def test_a_build_that_failed_at_its_very_end_can_be_made_again(tmp_path, monkeypatch):
    whole = digests(build(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(Things, "_finish", lambda *_: (_ for _ in ()).throw(OSError("the disk is full")))
        with pytest.raises(OSError, match="the disk is full"):
            build(tmp_path)
    assert digests(build(tmp_path)) == whole


def test_a_part_that_names_missing_shapes_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(Things, "_subsets", lambda self: {"other": ["u1", "nobody"]})
    with pytest.raises(ValueError, match="'other' names 1 shapes that are not in the data, first 'nobody'"):
        build(tmp_path)
    with pytest.raises(sources.DatasetMissing):
        sources.find("things", tmp_path)


def test_two_builds_at_once_are_refused(tmp_path):
    partial = tmp_path / "things" / "partial.1.0.0"
    partial.mkdir(parents=True)
    with sharded._locked(partial), pytest.raises(OSError, match="another build of this data set"):
        build(tmp_path)
