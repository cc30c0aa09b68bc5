"""One device, eight, parameters split, two processes: the same losses; and checkpoints that fit any of
them."""

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from openshape_jax import checkpoint, metrics, runtime, sharding, state, train
from openshape_jax import config as config_lib
from openshape_jax.data import pipeline
from tests.small_run import XLA_FLAGS

ROOT = Path(__file__).parent.parent
STEPS = 20
# One matrix of a block has the size from which parameters are split. The learning rate keeps differences of
# rounding, which Adam feeds back, at their size.
OVERRIDES = (
    f"steps={STEPS}", "batch_size=16", "log_every=1", "checkpoint_every=10", "model.depth=1",
    "model.mlp_dim=768", "optim.learning_rate=3e-4", "eval.report=false", "eval.datasets=",
)  # fmt: skip


def small(data_dir: str, *overrides: str) -> config_lib.Config:
    return config_lib.load(
        str(ROOT / "configs/quickstart.py:smoke"), [*OVERRIDES, f"data.data_dir={data_dir}", *overrides]
    )


def stepwise(
    config: config_lib.Config, batches: list[dict], devices: int
) -> tuple[list[float], state.TrainState]:
    """(losses, last state) of the training step on so many devices."""
    mesh = sharding.make_mesh(config.fsdp, jax.devices()[:devices])
    places = sharding.of_state(jax.eval_shape(lambda: state.init(config)), mesh)
    now = jax.jit(lambda: state.init(config), out_shardings=places)()
    step = state.jit_train_step(config, mesh, places)
    seen = []
    for rows in batches:
        now, values = step(now, sharding.put_batch(rows, mesh))
        seen.append(float(values["loss"]))
    return seen, now


@pytest.fixture(scope="module")
def batches(data_dir) -> list[dict]:
    stream = pipeline.dataset(small(data_dir))
    rows = [dict(stream[i]) for i in range(STEPS)]
    for row in rows:
        del row["uid"]
    return rows


@pytest.fixture(scope="module")
def one_device(data_dir, batches) -> list[float]:
    return stepwise(small(data_dir, "fsdp=1"), batches, 1)[0]


# Split parameters without parts of the batch are those of the two processes below.
@pytest.mark.parametrize("changes", [("fsdp=1",), ("fsdp=4", "model.microbatches=2")])
def test_eight_devices_equal_one(data_dir, batches, one_device, changes):
    config = small(data_dir, *changes)
    found, last = stepwise(config, batches, 8)
    np.testing.assert_allclose(found, one_device, rtol=1e-5)
    split = [x for x in jax.tree.leaves(last) if not x.sharding.is_fully_replicated]
    assert bool(split) == (config.fsdp > 1)
    for x in split:
        assert x.addressable_shards[0].data.size * config.fsdp == x.size


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def two_processes(data_dir: str, workdir: Path, *overrides: str) -> None:
    """The command itself in two processes of four devices each."""
    every = [f"--config.{o}" for o in (*OVERRIDES, f"data.data_dir={data_dir}", "cpu_devices=4", *overrides)]
    command = [sys.executable, "-m", "openshape_jax.main", f"--config={ROOT}/configs/quickstart.py:smoke"]
    cluster = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    env = {**os.environ, **cluster, "XLA_FLAGS": XLA_FLAGS}
    running = [
        subprocess.Popen(
            [*command, *every, f"--workdir={workdir}"],
            env={**env, "JAX_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
        )
        for index in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in running]
    for process, output in zip(running, outputs, strict=True):
        assert process.returncode == 0, output[-3000:]


def test_two_processes_equal_one_device_and_others_go_on_from_their_checkpoint(
    data_dir, one_device, tmp_path
):
    workdir = tmp_path / "two"
    two_processes(data_dir, workdir, "fsdp=4")
    lines = [line for line in metrics.read(workdir) if "train/loss" in line]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))  # one process writes
    np.testing.assert_allclose([line["train/loss"] for line in lines], one_device, rtol=1e-5)
    stored = json.loads((workdir / "checkpoints/20/metadata/metadata").read_text())
    assert stored["step"] == 20
    shutil.rmtree(workdir / "checkpoints/20")
    train.run(small(data_dir, "fsdp=2"), workdir)  # eight devices of one process
    resumed = [line["train/loss"] for line in metrics.read(workdir) if "train/loss" in line]
    np.testing.assert_allclose(resumed, one_device, rtol=1e-5)
    weights = checkpoint.load_weights(workdir)[0]
    assert jax.tree.map(np.shape, weights["encoder"]) == jax.tree.map(
        np.shape, state.evaluated(jax.eval_shape(lambda: state.init(small(data_dir))))["encoder"]
    )


def test_placement_of_parameters():
    mesh = sharding.make_mesh(4)
    shape = jax.ShapeDtypeStruct
    tree = {
        "stacked": shape((12, 512, 1536), np.float32), "small": shape((64, 256), np.float32),
        "odd": shape((1023, 1025), np.float32), "wide": shape((512, 1280), np.float32),
        "step": shape((), int),
    }  # fmt: skip
    found = {name: place.spec for name, place in sharding.of_state(tree, mesh).items()}
    assert found == {
        "stacked": PartitionSpec(None, None, "fsdp"), "small": PartitionSpec(), "odd": PartitionSpec(),
        "wide": PartitionSpec(None, "fsdp"), "step": PartitionSpec(),
    }  # fmt: skip
    alone = sharding.of_state(tree, sharding.make_mesh(1))
    assert all(place.is_fully_replicated for place in alone.values())


def test_parameters_are_split_from_100_million_on():
    assert sharding.choose_fsdp(0, 72_000_000, 8) == 1
    assert sharding.choose_fsdp(0, 171_000_000, 8) == 8
    assert sharding.choose_fsdp(2, 1_000, 8) == 2
    assert sharding.choose_fsdp(16, 1_000, 8) == 8  # what there is


def test_a_mesh_that_does_not_fit():
    with pytest.raises(ValueError, match="fsdp is 3 but there are 8 devices; use a divisor of 8"):
        sharding.make_mesh(3)
    with pytest.raises(
        ValueError, match=r"batch_size is 24 .* 8 devices, each .* 2 parts.*multiple of 16, e.g. 32"
    ):
        sharding.check_batch_size(24, sharding.make_mesh(), 2)


def test_a_cluster_is_joined_only_where_there_is_one(monkeypatch):
    asked = []
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: False)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a: asked.append(a))
    monkeypatch.setattr(runtime, "_on_tpu_machine", lambda environment: "TPU" in environment)
    alone = ({}, {"SLURM_STEP_NUM_TASKS": "1"}, {"TPU_WORKER_HOSTNAMES": "localhost"})
    assert not any(runtime.join_cluster(environment) for environment in alone)
    assert asked == []
    for environment in (
        {"SLURM_STEP_NUM_TASKS": "4"}, {"OMPI_COMM_WORLD_SIZE": "2"}, {"TPU_WORKER_HOSTNAMES": "a,b"},
        {"TPU": "1"},
        {"MEGASCALE_COORDINATOR_ADDRESS": "a"},
    ):  # fmt: skip
        assert runtime.join_cluster(environment)
    assert asked == [()] * 5
    by_hand = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
    assert runtime.join_cluster(by_hand)
    assert asked[-1] == ("a:1", 2, 1)
    with pytest.raises(ValueError, match="JAX_PROCESS_ID=None: set both"):
        runtime.join_cluster({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2"})
    with pytest.raises(ValueError, match=r"JAX_PROCESS_ID is 2; it must be below JAX_NUM_PROCESSES \(2\)"):
        runtime.join_cluster({**by_hand, "JAX_PROCESS_ID": "2"})


def test_the_same_parameters_whatever_the_recipe_needs_to_hold(data_dir):
    """Options that add parameters leave the encoder's first values as they are."""
    config = small(data_dir)
    plain = state.init(config)
    config.loss = dataclasses.replace(config.loss, projections=True, separate_scales=True)
    more = state.init(config)
    assert more.params.keys() - plain.params.keys() == {"text_proj", "image_proj", "image_logit_scale"}
    jax.tree.map(np.testing.assert_array_equal, more.params["encoder"], plain.params["encoder"])
