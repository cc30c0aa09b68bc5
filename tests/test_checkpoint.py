"""Checkpoints that cannot be written, and metrics files that a crash cut."""

import errno

import pytest

from openshape_jax import checkpoint, metrics, state
from openshape_jax.config import Config, ModelConfig

SMALL = ModelConfig(dim=8, depth=1, heads=1, mlp_dim=8, sa_dim=8, patches=4, nsample=4, embed_dim=8)
METADATA = {"model": {}}


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
