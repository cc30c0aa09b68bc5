"""The training job, read top to bottom: mesh, data, state, restore, loop, evaluation, report."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from openshape_jax import checkpoint, metrics, sharding, state
from openshape_jax.augment import dequantize
from openshape_jax.config import Config, to_dict
from openshape_jax.data import pipeline, sources, vocabulary
from openshape_jax.evals.zero_shot import ZeroShot
from openshape_jax.version import __version__


class Interrupted(Exception):
    """Ctrl-C or a termination signal; the state is saved and the message says how to go on."""


def run(config: Config, workdir: str | Path, again: str = "the same command") -> Path:
    """Trains until config.steps, evaluates and writes the report; returns the run directory.

    Started again on the same directory it continues after the newest checkpoint with bit-identical
    losses; a finished run returns at once.

    Args:
      again: the command that resumes, for messages.

    Raises:
      ConfigError: workdir holds another config's run. DatasetMissing: build it first.
      Interrupted: a signal came; everything is saved. CheckpointError: see there.
    """
    workdir = Path(workdir)
    for name in config.data.datasets:
        sources.find(name, config.data.data_dir)  # fails before anything is written
    evaluators = [ZeroShot(name, config.eval, config.data.data_dir) for name in config.eval.datasets]
    checkpoint.claim_workdir(workdir, config)

    mesh = sharding.make_mesh()
    sharding.check_batch_size(config.batch_size, mesh)
    whole, rows = sharding.replicated(mesh), sharding.by_row(mesh)
    train_state = jax.jit(lambda: state.init(config), out_shardings=whole)()
    saves = checkpoint.Checkpoints(workdir, config.checkpoints_kept)
    restored = saves.restore(train_state)
    first = int(restored.step) if restored is not None else 0
    train_state = jax.device_put(restored, whole) if restored is not None else train_state

    step_fn = jax.jit(
        state.make_train_step(config),
        in_shardings=(whole, rows),
        out_shardings=(whole, whole),
        donate_argnums=0,
    )
    embed = make_embed(config, mesh)
    log = metrics.Writer(workdir, first)
    description = describe(config)
    try:
        if first < config.steps:
            message = "resuming after" if first else "starting at"
            print(f"{message} step {first} of {config.steps}; run directory {workdir}", flush=True)
            train_state = _loop(
                config, train_state, step_fn, saves, log, embed, evaluators, mesh, description, again
            )
        if first < config.steps or not _evaluated(workdir, evaluators):
            _evaluate(config, train_state, embed, evaluators, log, workdir)
    finally:
        log.close()
        saves.close()
    if config.eval.report and evaluators and jax.process_index() == 0:
        from openshape_jax.evals import report

        page = workdir / "report" / "index.html"
        if first < config.steps or not page.exists():
            report.write(workdir, config.data.data_dir)
    return workdir


def _loop(
    config: Config,
    train_state: state.TrainState,
    step_fn: Callable[..., Any],
    saves: checkpoint.Checkpoints,
    log: metrics.Writer,
    embed: Callable[..., Any],
    evaluators: list[ZeroShot],
    mesh: jax.sharding.Mesh,
    description: dict[str, Any],
    again: str,
) -> state.TrainState:
    """The steps that are left, with logging, checkpoints and evaluations in between."""
    first = int(train_state.step)
    hosts, host = jax.process_count(), jax.process_index()
    stream = pipeline.batches(config, first, host, hosts)
    bar = tqdm(
        total=config.steps, initial=first, unit="step", desc="train", disable=host != 0, dynamic_ncols=True
    )
    started, counted = time.perf_counter(), first
    with _signals() as stopped:
        for step in range(first + 1, config.steps + 1):
            batch = sharding.put_batch(next(stream), mesh)
            train_state, values = step_fn(train_state, batch)
            bar.update()
            if step % config.log_every == 0 or step == config.steps:
                values = {f"train/{k}": float(v) for k, v in values.items()}  # waits for the device
                now = time.perf_counter()
                rate = (step - counted) * config.batch_size / (now - started)
                started, counted = now, step
                log.write(step, {**values, "train/shapes_per_s": rate})
                bar.set_postfix(loss=f"{values['train/loss']:.3f}", shapes_per_s=f"{rate:.0f}")
                _check_finite(values, step)
            if step % config.checkpoint_every == 0 or step == config.steps:
                saves.save(train_state, description, wait=step == config.steps)
            if config.eval.every and step % config.eval.every == 0 and step < config.steps:
                _evaluate(config, train_state, embed, evaluators, log)
                started = time.perf_counter()
            if stopped():
                bar.close()
                saves.save(train_state, description, wait=True)
                stream.close()
                raise Interrupted(f"stopped by {stopped()} after step {step}; saved. To go on, run {again}")
    bar.close()
    stream.close()
    return train_state


def _check_finite(values: dict[str, float], step: int) -> None:
    if not np.isfinite(values["train/loss"]):
        raise FloatingPointError(
            f"the loss is {values['train/loss']} at step {step} (gradient norm {values['train/grad_norm']}): "
            "lower --config.optim.learning_rate or set --config.optim.clip_norm=1; earlier checkpoints stay."
        )


def make_embed(config: Config, mesh: jax.sharding.Mesh) -> Callable[..., Any]:
    """A function (weights, xyz codes, rgb codes) -> (B, D) unit vectors, rows split over the mesh."""
    unit = state.make_embed(config.model)
    whole, rows = sharding.replicated(mesh), sharding.by_row(mesh)
    return jax.jit(
        lambda weights, xyz, rgb: unit(weights, *dequantize(xyz, rgb)),
        in_shardings=(whole, rows, rows),
        out_shardings=whole,
    )


def _evaluate(
    config: Config,
    train_state: state.TrainState,
    embed: Callable[..., Any],
    evaluators: list[ZeroShot],
    log: metrics.Writer,
    workdir: Path | None = None,
) -> None:
    weights = state.evaluated(train_state)
    for evaluator in evaluators:
        values = dict(evaluator.run(lambda xyz, rgb: embed(weights, xyz, rgb), workdir))
        log.write(int(train_state.step), values)
        top1 = ", ".join(f"{k.split('/')[1]} {v:.1%}" for k, v in values.items() if k.endswith("/top1"))
        tqdm.write(f"step {int(train_state.step)}: zero-shot top-1 {top1}")


def _evaluated(workdir: Path, evaluators: list[ZeroShot]) -> bool:
    tasks = [task for evaluator in evaluators for task in evaluator.tasks if len(task.rows)]
    return all((workdir / "eval" / f"{task.name}.json").exists() for task in tasks)


def describe(config: Config) -> dict[str, Any]:
    """What a checkpoint says of itself: architecture, target space, axes, colour, data, version."""
    return {
        "model": to_dict(config.model),
        "text_space": vocabulary.TEXT_SPACE,
        "embed_dim": config.model.embed_dim,
        "up": "z",
        "colour": "rgb in [0, 1]; 0.4 where a shape has none",
        "num_points": config.eval.num_points,
        "trained_on": list(config.data.datasets),
        "version": __version__,
    }


@contextmanager
def _signals() -> Iterator[Callable[[], str]]:
    """A function that names the SIGINT or SIGTERM that came, or ""; a second one acts at once."""
    came: list[str] = []

    def note(number: int, _frame: Any) -> None:
        came.append(signal.Signals(number).name)
        signal.signal(number, old[number])

    numbers = (signal.SIGINT, signal.SIGTERM)
    try:
        old = {n: signal.signal(n, note) for n in numbers}
    except ValueError:  # not in the main thread: the caller owns the signals
        yield lambda: ""
        return
    try:
        yield lambda: came[0] if came else ""
    finally:
        for n in numbers:
            signal.signal(n, old[n])
