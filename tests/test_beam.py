"""Data sets built on Apache Beam are byte-identical to those built here, and go on after a failure.

These tests need apache-beam, which the extra `test` installs; without it they fail, they are not skipped.
"""

import sys
from pathlib import Path

import pytest

from openshape_jax.data import sources
from tests.test_sharded import GOOD, Load, Things, digests
from tfds_builders import beam_runner, sharded
from tfds_builders.beam_runner import BeamRunner, flags

# Beam 2.77 on its own and protobuf's modules.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(sharded, "SHARD_SIZE", 16)
    monkeypatch.setattr(beam_runner, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(beam_runner, "GRACE_SECONDS", 0.05)


def build(folder: Path, load: Load = GOOD, runner: BeamRunner | None = None) -> Path:
    made = Things(data_dir=str(folder), file_format="array_record")
    made.load, made.jobs, made.runner, made.max_reject_fraction = load, 1, runner, 0.1
    made.download_and_prepare()
    return Path(made.data_dir)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, str]:
    """The digests of the files that a build without Beam makes, shapes 3 and 107 rejected."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharded, "SHARD_SIZE", 16)
        return digests(build(tmp_path_factory.mktemp("whole"), Load(bad=(3, 107))))


@pytest.mark.parametrize("options", [(), ("direct_num_workers=2,direct_running_mode=multi_threading",)])
def test_the_direct_runner_writes_the_same_bytes(tmp_path, whole, options):
    made = build(tmp_path, Load(bad=(3, 107)), BeamRunner("DirectRunner", flags(options)))
    assert digests(made) == whole
    assert "rejects.jsonl" in whole
    assert [p.name for p in (tmp_path / "things").iterdir()] == ["1.0.0"]


def test_shards_come_through_an_exchange(tmp_path, whole):
    exchange = tmp_path / "exchange"
    exchange.mkdir()
    made = build(tmp_path / "data", Load(bad=(3, 107)), BeamRunner("direct", (), str(exchange)))
    assert digests(made) == whole
    assert not any(path.is_file() for path in exchange.rglob("*"))


@pytest.mark.parametrize("through", ["folder", "exchange"])
def test_a_failed_pipeline_is_gone_on_with(tmp_path, whole, through, capsys):
    exchange = str(tmp_path) if through == "exchange" else ""
    runner = BeamRunner("DirectRunner", (), exchange)
    with pytest.raises(
        OSError, match=r"pipeline failed \(.*bucket is away.*shards are done and kept"
    ) as error:
        build(tmp_path / "data", Load(bad=(3, 107), stop_at=50), runner)
    assert error.value.__cause__ is not None
    with pytest.raises(sources.DatasetMissing):
        sources.find("things", tmp_path / "data")
    kept = len(list((tmp_path / "data" / "things" / "partial.1.0.0").glob("*.json")))
    assert kept < 8
    capsys.readouterr()
    assert digests(build(tmp_path / "data", Load(bad=(3, 107)), runner)) == whole
    assert not kept or f"{kept} of 8 shards are there" in capsys.readouterr().out


def test_a_shard_that_is_there_is_not_made_again(tmp_path, monkeypatch):
    made = Things(data_dir=str(tmp_path), file_format="array_record")
    (shard, *_) = made._plan(made._items(None), tmp_path)
    plan = beam_runner._put_plan(shard, "")
    assert beam_runner.write_planned(plan) == "train-00000"
    before = (tmp_path / "train-00000.array_record").stat().st_mtime_ns
    beam_runner.write_planned(plan)
    assert (tmp_path / "train-00000.array_record").stat().st_mtime_ns == before


def elsewhere(plan: str) -> str:
    return plan


def test_workers_that_write_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(beam_runner, "write_planned", elsewhere)
    with pytest.raises(
        OSError, match=r"ended DONE; 0 of 8 shards .*do not share that folder.*--beam_exchange"
    ):
        build(tmp_path, GOOD, BeamRunner("DirectRunner"))


def test_an_unknown_runner_and_a_missing_beam(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="Unexpected pipeline runner: SparkleRunner. Valid values are"):
        build(tmp_path, GOOD, BeamRunner("SparkleRunner"))
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(ValueError, match=r"--runner DirectRunner needs Apache Beam .*openshape_jax\[beam\]"):
        BeamRunner("DirectRunner").check()


def test_pipeline_options():
    given = ["project=p, region=r", '--environment_config={"command": "a", "env": {}}', ""]
    assert flags(given) == ("--project=p", "--region=r", given[1])
