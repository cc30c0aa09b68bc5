"""A real config shrunk to a few steps: killed, resumed, damaged, refused, and the command itself."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from openshape_jax import checkpoint, metrics, state, train
from openshape_jax import config as config_lib
from openshape_jax.data import pipeline, sources
from tests.small_run import CONFIG, OVERRIDES, ROOT, small

LOSS = "train/loss"


def losses(workdir: Path) -> list[float]:
    return [line[LOSS] for line in metrics.read(workdir) if LOSS in line]


@pytest.fixture(scope="module")
def finished(trained) -> Path:
    """An uninterrupted run of 8 steps."""
    return trained


def command(data_dir: str, workdir: Path, *more: str) -> list[str]:
    overrides = [f"--config.{override}" for override in (*OVERRIDES, f"data.data_dir={data_dir}")]
    main = [sys.executable, "-m", "openshape_jax.main", f"--config={CONFIG}"]
    return [*main, *overrides, f"--workdir={workdir}", *more]


def test_run_directory_is_complete(finished):
    assert len(losses(finished)) == 8
    result = json.loads((finished / "eval/primitives_tiny.json").read_text())
    assert {"top1", "top3", "top5", "mean_class", "num_classes", "num_shapes"} <= result.keys()
    assert 0 <= result["top1"] <= result["top3"] <= result["top5"] <= 1
    with np.load(finished / "eval/primitives_tiny_lvis.npz") as file:
        assert len(file["class_names"]) == 1203
        np.testing.assert_allclose(np.linalg.norm(file["shape_emb"], axis=1), 1, atol=1e-5)
    assert list((finished / "tensorboard").glob("events*"))


def test_killed_at_any_moment_it_ends_with_the_same_losses(data_dir, finished, tmp_path):
    workdir = tmp_path / "killed"
    process = subprocess.Popen(
        command(data_dir, workdir), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT
    )
    deadline = time.time() + 240
    while not (workdir / "metrics.jsonl").exists() or len(losses(workdir)) < 5:
        assert process.poll() is None, process.stderr.read().decode()[-3000:]
        assert time.time() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "tra')  # a line cut by the crash
    train.run(small(data_dir), workdir)
    assert losses(workdir) == losses(finished)
    assert [line["step"] for line in metrics.read(workdir) if LOSS in line] == list(range(1, 9))


def test_interrupt_saves_and_says_how_to_go_on(data_dir, finished, tmp_path):
    workdir = tmp_path / "stopped"
    process = subprocess.Popen(
        command(data_dir, workdir), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    )
    while not (workdir / "metrics.jsonl").exists() or not losses(workdir):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130, out[-3000:]
    assert "To go on, run" in out
    assert "Traceback" not in out
    train.run(small(data_dir), workdir)
    assert losses(workdir) == losses(finished)


def test_finished_run_returns_at_once_and_evaluates_what_is_missing(data_dir, finished, tmp_path):
    workdir = tmp_path / "again"
    shutil.copytree(finished, workdir)
    before = (workdir / "eval/primitives_tiny.json").read_text()
    (workdir / "eval/primitives_tiny.json").unlink()
    train.run(small(data_dir), workdir)
    assert losses(workdir) == losses(finished)
    assert (workdir / "eval/primitives_tiny.json").read_text() == before


def test_damaged_checkpoint_falls_back_loudly(data_dir, finished, tmp_path, capsys):
    workdir = tmp_path / "damaged"
    shutil.copytree(finished, workdir)
    (workdir / "eval/primitives_tiny.json").unlink()  # something is left to do
    newest = workdir / "checkpoints" / "8" / "state"
    for file in newest.rglob("*"):
        if file.is_file():
            os.truncate(file, file.stat().st_size // 2)
    train.run(small(data_dir), workdir)
    assert "WARNING: the checkpoint of step 8 cannot be read" in capsys.readouterr().out
    assert losses(workdir) == losses(finished)


def test_no_readable_checkpoint_is_an_error(data_dir, finished, tmp_path):
    workdir = tmp_path / "all_damaged"
    shutil.copytree(finished, workdir)
    (workdir / "eval/primitives_tiny.json").unlink()
    for file in (workdir / "checkpoints").rglob("*"):
        if file.is_file():
            os.truncate(file, 0)
    with pytest.raises(checkpoint.CheckpointError, match="none of the checkpoints"):
        train.run(small(data_dir), workdir)


def test_another_config_is_refused_with_the_difference(data_dir, finished):
    with pytest.raises(config_lib.ConfigError, match=r"(?s)optim.learning_rate: 0.001 -> 0.5.*resume=force"):
        train.run(small(data_dir, "optim.learning_rate=0.5"), finished)


def test_a_run_of_an_earlier_version_lacks_new_fields(data_dir, finished, tmp_path):
    workdir = tmp_path / "earlier"
    shutil.copytree(finished, workdir)
    described = json.loads((workdir / "config.json").read_text())
    del described["data"]["workers"], described["cpu_devices"]  # their values are the defaults
    (workdir / "config.json").write_text(json.dumps(described))
    checkpoint.check_workdir(workdir, small(data_dir))
    del described["optim"]["learning_rate"]
    (workdir / "config.json").write_text(json.dumps(described))
    with pytest.raises(config_lib.ConfigError, match=r"optim.learning_rate: 0.0005 -> 0.001"):
        checkpoint.check_workdir(workdir, small(data_dir))


def test_force_goes_on_with_the_new_values(data_dir, finished, tmp_path):
    workdir = tmp_path / "forced"
    shutil.copytree(finished, workdir)
    train.run(small(data_dir, "steps=10", "resume=force"), workdir)
    assert losses(workdir)[:8] == losses(finished)
    assert len(losses(workdir)) == 10


@pytest.mark.parametrize("change", ["model.dim=64", "optim.ema=0"])
def test_force_never_sets_the_checkpoints_of_another_model_aside(data_dir, finished, tmp_path, change):
    workdir = tmp_path / "other"
    shutil.copytree(finished, workdir)
    before = (
        sorted(p.name for p in (workdir / "checkpoints").iterdir()),
        (workdir / "config.json").read_text(),
    )
    with pytest.raises(config_lib.ConfigError, match=r"(?s)step 8 .* does not fit this config.*stored.*now"):
        train.run(small(data_dir, "steps=10", "resume=force", change), workdir)
    after = sorted(p.name for p in (workdir / "checkpoints").iterdir()), (workdir / "config.json").read_text()
    assert after == before


def test_a_start_that_failed_does_not_claim_the_directory(data_dir, tmp_path):
    with pytest.raises(ValueError, match="no shape of 'primitives/tiny' has a text"):
        train.run(small(data_dir, "data.text_sources=clas"), tmp_path / "run")
    assert len(losses(train.run(small(data_dir, "steps=2"), tmp_path / "run"))) == 2


def test_a_signal_before_the_first_step_and_one_in_the_evaluation(data_dir, finished, tmp_path):
    for workdir, ready in ((tmp_path / "early", "starting at"), (tmp_path / "late", "train: 100%")):
        process = subprocess.Popen(
            command(data_dir, workdir), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT
        )
        out = b""
        while ready.encode() not in out:
            assert process.poll() is None, out[-3000:]
            out += os.read(process.stdout.fileno(), 4096)
        process.send_signal(signal.SIGINT)
        out += process.communicate(timeout=120)[0]
        assert process.returncode in (130, 0), out[-3000:]  # 0: the evaluation had just ended
        assert b"Traceback" not in out
        train.run(small(data_dir), workdir)
        assert losses(workdir) == losses(finished)


def test_a_write_that_fails_in_the_background_stops_the_run_at_the_next_step(data_dir, tmp_path, monkeypatch):
    def failed(self):
        if self._writing is not None:
            raise checkpoint.CheckpointError(f"step {self._writing} failed")

    def make_step(_config):  # compiles at once
        return lambda now, _batch: (
            dataclasses.replace(now, step=now.step + 1),
            {"loss": now.step * 0.1, "grad_norm": jnp.float32(1), "finite": jnp.asarray(True)},
        )

    monkeypatch.setattr(state, "make_train_step", make_step)
    monkeypatch.setattr(checkpoint.Checkpoints, "check", failed)
    with pytest.raises(checkpoint.CheckpointError, match="step 3 failed"):
        train.run(small(data_dir, "checkpoint_every=3", "eval.datasets="), tmp_path / "run")
    assert len(losses(tmp_path / "run")) == 4  # and not 6, when the next checkpoint is due


def test_missing_data_set_writes_nothing(tmp_path):
    with pytest.raises(sources.DatasetMissing, match="openshape data build primitives/tiny"):
        train.run(small(str(tmp_path / "nowhere")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_batch_size_must_divide_over_devices(data_dir, tmp_path):
    with pytest.raises(
        ValueError, match="batch_size is 12 but there are 8 devices; use a multiple of 8, e.g. 16"
    ):
        train.run(small(data_dir, "batch_size=12"), tmp_path / "run")


def broken_at(steps: set[int], monkeypatch) -> None:
    """Makes the coordinates of the second shape of a batch infinite at these steps."""
    whole = pipeline.batches

    def batches(config, first, host=0, hosts=1):
        for step, rows in enumerate(whole(config, first, host, hosts), first + 1):
            if step in steps:
                rows["text"][:, 0] = np.inf
            yield rows

    monkeypatch.setattr(pipeline, "batches", batches)


def test_a_diverging_run_stops_and_names_the_shapes(data_dir, tmp_path):
    with pytest.raises(
        FloatingPointError,
        match=r"(?s)the embedding of 8 of 8 shapes is not finite at step 2 .*primitives#.*"
        r"Lower --config.optim.learning_rate",
    ):
        wild = ("optim.learning_rate=1e30", "optim.clip_norm=0")
        plain = ("augment.enabled=false", "optim.name=adamw")  # compiles in half the time
        train.run(small(data_dir, *wild, *plain), tmp_path / "run")


def test_a_target_that_is_not_finite_stops_the_run_at_its_step(data_dir, tmp_path, monkeypatch):
    broken_at({5}, monkeypatch)
    with pytest.raises(FloatingPointError, match="the text loss is not finite at step 5"):
        train.run(small(data_dir), tmp_path / "run")
    assert checkpoint.load_weights(tmp_path / "run")[2] == 4


def test_steps_that_are_not_finite_can_be_skipped(data_dir, tmp_path, monkeypatch, capsys):
    broken_at({3, 6}, monkeypatch)
    workdir = train.run(small(data_dir, "optim.nonfinite=skip"), tmp_path / "run")
    assert "WARNING: skipped: the text loss is not finite at step 3" in capsys.readouterr().out
    lines = [line for line in metrics.read(workdir) if LOSS in line]
    assert [np.isfinite(line[LOSS]) for line in lines] == [i not in (3, 6) for i in range(1, 9)]
    assert lines[-1]["train/skipped"] == 2
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(checkpoint.load_weights(workdir)[0]))


def test_a_bucket_must_be_mounted(data_dir):
    with pytest.raises(ValueError, match="workdir is 'gs://bucket/run'; a bucket must be mounted"):
        train.run(small(data_dir), "gs://bucket/run")


def run_main(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "openshape_jax.main", *arguments], capture_output=True, text=True, cwd=ROOT
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config=configs/quickstart.py", "--config.optim.learnin_rate=1"],
            "Did you mean optim.learning_rate",
        ),
        (["--config=configs/nothing.py"], "no such file. There are: pointbert_l.py"),
        (
            ["--config=configs/pointbert_xl.py", "--config.data.data_dir=/nowhere"],
            "openshape data build openshape_ensemble",
        ),
        ([], "--config is missing"),
    ],
)
def test_main_ends_with_one_clear_message(arguments, message):
    done = run_main(*arguments)
    assert done.returncode != 0
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_help_names_the_flags():
    done = run_main("--help")
    for part in ("--config", "--workdir", "--resume", "configs/quickstart.py"):
        assert part in done.stdout
