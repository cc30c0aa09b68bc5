"""The training job, read top to bottom: mesh, data, state, restore, loop, evaluation, report."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from openshape_jax import checkpoint, metrics, runtime, sharding, state
from openshape_jax.augment import dequantize
from openshape_jax.config import Config, to_dict
from openshape_jax.data import pipeline, schema, sources, vocabulary
from openshape_jax.evals.zero_shot import ZeroShot
from openshape_jax.version import __version__
from openshape_jax.watch import EXIT_CODES, Interrupted, Watch, signals


@dataclass(frozen=True)
class _Job:
    """What stays the same over a run."""

    config: Config
    workdir: Path
    mesh: jax.sharding.Mesh
    step_fn: Callable[..., Any]  # (state, batch) -> (state, metrics)
    embed: Callable[..., Any]  # (weights, xyz codes, rgb codes, counts) -> (B, D)
    evaluators: list[ZeroShot]
    saves: checkpoint.Checkpoints
    log: metrics.Writer
    again: str  # the command that resumes, for messages
    stopped: Callable[[], str]  # the signal that came, or ""
    text_space: str  # of the targets


def run(config: Config, workdir: str | Path, again: str = "the same command") -> Path:
    """Trains until config.steps, evaluates and writes the report; returns the run directory.

    Started again on the same directory it continues after the newest checkpoint with bit-identical
    losses; a finished run returns at once.

    Raises:
      ConfigError: workdir holds another config's run. DatasetMissing: build it first.
      Interrupted: a signal came; everything is saved. CheckpointError: see there.
    """
    if "://" in str(workdir):
        raise ValueError(
            f"workdir is {str(workdir)!r}; a bucket must be mounted as a folder (for gs:// with gcsfuse, "
            "docs/launching.md): give its path."
        )
    with signals() as stopped:
        return _run(config, Path(workdir), again, stopped)


def _run(config: Config, workdir: Path, again: str, stopped: Callable[[], str]) -> Path:
    for name in {*config.data.datasets, *config.eval.datasets}:
        sources.find(name, config.data.data_dir)  # fails before anything is written
    checkpoint.check_workdir(workdir, config)

    shapes = jax.eval_shape(lambda: state.init(config))
    size = sum(x.size for x in jax.tree.leaves(shapes.params))
    mesh = sharding.make_mesh(sharding.choose_fsdp(config.fsdp, size, jax.local_device_count()))
    sharding.check_batch_size(config.batch_size, mesh, config.model.microbatches)
    places = sharding.of_state(shapes, mesh)
    saves = checkpoint.Checkpoints(workdir, config.checkpoints_kept)
    first = saves.latest() or 0
    if first >= config.steps and _is_complete(config, workdir):
        saves.close()
        print(f"{workdir} is finished ({first} steps); nothing to do")
        return workdir

    space = sources.text_space(config.data.datasets, config.data.data_dir)
    fitting = -(-config.eval.batch_size // mesh.size) * mesh.size  # each device needs a row
    evaluators = [
        ZeroShot(
            name,
            dataclasses.replace(config.eval, batch_size=fitting),
            config.data.data_dir,
            config.model.embed_dim,
            space,
        )
        for name in config.eval.datasets
    ]
    train_state = jax.jit(lambda: state.init(config), out_shardings=places)()
    restored = saves.restore(train_state)
    if sharding.is_first_host():
        checkpoint.claim_workdir(workdir, config)
    train_state = train_state if restored is None else restored
    first = int(train_state.step)
    step_fn = state.jit_train_step(config, mesh, places)
    log = metrics.Writer(workdir, first, sharding.is_first_host())
    embed = make_embed(config, mesh, places)
    job = _Job(config, workdir, mesh, step_fn, embed, evaluators, saves, log, again, stopped, space)
    try:
        if first < config.steps:
            message = "resuming after" if first else "starting at"
            print(f"{message} step {first} of {config.steps}; run directory {workdir}", flush=True)
            train_state = _loop(job, train_state)
        _evaluate(job, train_state, final=True)
    finally:
        log.close()
        saves.close()
    if config.eval.report and evaluators and sharding.is_first_host():
        from openshape_jax.evals import report

        report.write(workdir, config.data.data_dir)
    return workdir


def _loop(job: _Job, train_state: state.TrainState) -> state.TrainState:
    """The steps that are left, with logging, checkpoints and evaluations in between."""
    config = job.config
    first = int(train_state.step)
    hosts, host = jax.process_count(), jax.process_index()
    started, counted, waited = time.perf_counter(), first, 0.0
    watch = Watch(config)
    with (
        closing(pipeline.batches(config, first, host, hosts)) as stream,
        tqdm(total=config.steps, initial=first, unit="step", desc="train", disable=host != 0) as bar,
    ):
        for step in range(first + 1, config.steps + 1):
            asked = time.perf_counter()
            rows = next(stream)
            waited += time.perf_counter() - asked
            uids = rows.pop("uid")
            if hosts > 1:  # so that all stop after the same step
                rows["stop"] = np.full(len(uids), bool(job.stopped()))
            batch = sharding.put_batch(rows, job.mesh)
            signalled = watch.check()  # waits: one step ahead of the device, so that the bar tells the truth
            train_state, values = job.step_fn(train_state, batch)
            watch.step(step, values, uids)
            bar.update()
            if step % config.log_every == 0 or step == config.steps:
                scalars = {f"train/{k}": float(v) for k, v in values.items() if v.ndim == 0}
                now = time.perf_counter()
                rate = (step - counted) * config.batch_size / (now - started)
                # An upper bound of the devices' idle time: they are still at the step before.
                extra = {"shapes_per_s": rate, "input_wait": waited / (now - started)}
                if config.optim.nonfinite == "skip":
                    extra["skipped"] = watch.skipped
                started, counted, waited = now, step, 0.0
                job.log.write(step, {**scalars, **{f"train/{k}": v for k, v in extra.items()}})
                bar.set_postfix(loss=f"{scalars['train/loss']:.3f}", shapes_per_s=f"{rate:.0f}")
                watch.check()
            job.saves.check()
            if signalled or hosts == 1:
                _stop_if_asked(job, train_state, signalled)
            if step % config.checkpoint_every == 0 or step == config.steps:
                watch.check()
                job.saves.save(train_state, describe(config, job.text_space), wait=step == config.steps)
            if config.eval.every and step % config.eval.every == 0 and step < config.steps:
                _evaluate(job, train_state)
                started, counted, waited = time.perf_counter(), step, 0.0
    return train_state


def _stop_if_asked(job: _Job, train_state: state.TrainState, signalled: bool = False) -> None:
    """Saves and raises Interrupted where a signal came, to this host or (`signalled`) to any."""
    if job.stopped() or signalled:
        job.saves.save(train_state, describe(job.config, job.text_space), wait=True)
        name = job.stopped() or "a signal to another host"
        raise Interrupted(
            f"stopped by {name} after step {int(train_state.step)}; saved. To go on, run {job.again}",
            EXIT_CODES.get(name, EXIT_CODES["SIGTERM"]),
        )


def make_embed(config: Config, mesh: jax.sharding.Mesh, places: Any = None) -> Callable[..., Any]:
    """A function (weights, xyz codes, rgb codes, counts) -> (B, D) unit vectors, rows split over the mesh.

    Args:
      places: shardings of a state; None: each device has all weights.
    """
    unit = state.make_embed(config.model, config.eval.views)
    whole, rows = sharding.replicated(mesh), sharding.by_row(mesh)
    weights_at = whole if places is None else state.evaluated(places)

    def embed(weights: Any, xyz: jax.Array, rgb: jax.Array, count: jax.Array) -> jax.Array:
        # Host arrays know no mesh; the geometry kernels must (ops/dispatch.py).
        xyz, rgb, count = jax.lax.with_sharding_constraint((xyz, rgb, count), rows)
        return unit(weights, *dequantize(xyz, rgb), count)

    jit = runtime.jit_of_model(config.model.dtype, mesh)
    return jit(embed, in_shardings=(weights_at, rows, rows, rows), out_shardings=whole)


def _evaluate(job: _Job, train_state: state.TrainState, final: bool = False) -> None:
    """Logs the accuracies; the final ones are also written to WORKDIR/eval."""
    weights = state.evaluated(train_state)

    def embed(xyz: np.ndarray, rgb: np.ndarray, count: np.ndarray) -> Any:
        if jax.process_count() == 1:  # several would have to agree on it at every batch
            _stop_if_asked(job, train_state)
        return job.embed(weights, *(sharding.put_rows(x, job.mesh) for x in (xyz, rgb, count)))

    for evaluator in job.evaluators:
        written = job.workdir if final and sharding.is_first_host() else None
        values = dict(evaluator.run(embed, written, weights.get("text_proj")))
        job.log.write(int(train_state.step), values)
        top1 = ", ".join(f"{k.split('/')[1]} {v:.1%}" for k, v in values.items() if k.endswith("/top1"))
        tqdm.write(f"step {int(train_state.step)}: top-1 {top1}")


def _is_complete(config: Config, workdir: Path) -> bool:
    """Whether the results and the report of a finished run are there."""
    wanted = [workdir / "eval" / f"{name.replace('/', '_')}.json" for name in config.eval.datasets]
    if config.eval.report and config.eval.datasets:
        wanted.append(workdir / "report" / "index.html")
    return all(path.exists() for path in wanted)


def describe(config: Config, text_space: str = vocabulary.TEXT_SPACE) -> dict[str, Any]:
    """What a checkpoint says of itself: architecture, target space, axes, colour, data, version."""
    return {
        "model": to_dict(config.model),
        "text_space": text_space,
        "embed_dim": config.model.embed_dim,
        "up": "z",
        "colour": schema.COLOUR,
        "num_points": config.eval.num_points,
        "views": config.eval.views,
        "trained_on": list(config.data.datasets),
        "dataset_versions": sources.versions(config.data.datasets, config.data.data_dir),
        "config": to_dict(config),
        "version": __version__,
    }
