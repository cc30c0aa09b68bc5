"""Checkpoints that cannot be written, and metrics files that a crash cut."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from openshape_jax import checkpoint, metrics, state
from openshape_jax.config import Config, ModelConfig

SMALL = ModelConfig(dim=8, depth=1, heads=1, mlp_dim=8, sa_dim=8, patches=4, nsample=4, embed_dim=8)
METADATA = {"model": {}}
# A limit of 64 KB a file stands for a full disk: writes fail in the threads of orbax and tensorstore alike.
FAILING = """
import dataclasses, resource, sys, time
import jax.numpy as jnp
from openshape_jax import checkpoint, state
from openshape_jax.config import Config, ModelConfig

now = state.init(Config(model=ModelConfig(dim=96, depth=3, heads=3, mlp_dim=192, embed_dim=8)))
saves = checkpoint.Checkpoints(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
for step in (0, 1, 2):
    now = dataclasses.replace(now, step=jnp.int32(step))
    saves.save(now, {"model": {}})
    deadline = time.time() + 60
    try:
        while time.time() < deadline:
            saves.check()
            time.sleep(0.01)
    except checkpoint.CheckpointError as error:
        print(error)
saves.close()
"""


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("RESOURCE_EXHAUSTED: No space left on device"),
    ],
)
def test_a_full_disk_says_what_is_safe_and_what_to_do(tmp_path, monkeypatch, error):
    saves = checkpoint.Checkpoints(tmp_path)
    now = state.init(Config(model=SMALL))
    saves.save(now, METADATA, wait=True)

    def full(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(saves._manager, "save", full)
    later = state.TrainState(
        step=now.step + 5, params=now.params, stats=now.stats, opt_state=now.opt_state, ema={}
    )
    with pytest.raises(
        checkpoint.CheckpointError, match=r"step 5 .* the disk is full. Earlier checkpoints \(\[0\]\)"
    ):
        saves.save(later, METADATA)
    saves.close()
    weights, metadata, step = checkpoint.load_weights(tmp_path)
    assert step == 0
    assert metadata["logit_scale"] == pytest.approx(14.28, rel=1e-4)
    assert weights["encoder"]["sa"]["convs"][0]["kernel"].shape == (9, 64)


def test_a_write_that_fails_in_the_background_is_told_soon_and_once(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FAILING, tmp_path],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    folder = tmp_path / "checkpoints"
    said = [
        f"the checkpoint of step {step} could not be written to {folder}: {os.strerror(errno.EFBIG)}. "
        "Earlier checkpoints (none) are intact: make room or mend the folder, and start the same command "
        "again."
        for step in (0, 1, 2)
    ]
    assert done.stderr == ""  # neither a traceback of orbax nor one a fragment of tensorstore
    assert done.stdout.splitlines() == said
    assert done.returncode == 0


def test_other_errors_are_not_hidden(tmp_path, monkeypatch):
    saves = checkpoint.Checkpoints(tmp_path)

    def broken(*_args, **_kwargs):
        raise ValueError("something else")

    monkeypatch.setattr(saves._manager, "save", broken)
    with pytest.raises(ValueError, match="something else"):
        saves.save(state.init(Config(model=SMALL)), METADATA)
    saves.close()


def test_metrics_after_the_resumed_step_are_dropped(tmp_path):
    first = metrics.Writer(tmp_path)
    for step in range(1, 6):
        first.write(step, {"train/loss": step / 2})
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "train/lo')
    assert [line["step"] for line in metrics.read(tmp_path)] == [1, 2, 3, 4, 5]
    second = metrics.Writer(tmp_path, 3)
    second.write(4, {"train/loss": 9.0})
    second.close()
    assert [(line["step"], line["train/loss"]) for line in metrics.read(tmp_path)] == [
        (1, 0.5),
        (2, 1.0),
        (3, 1.5),
        (4, 9.0),
    ]
