"""Saving and restoring runs with orbax: the only file that imports it."""

from __future__ import annotations

import errno
import functools
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging

from openshape_jax.config import Config, ConfigError, difference, to_dict
from openshape_jax.data import files
from openshape_jax.state import TrainState, evaluated

# Fields that say where a run computes and not what: any checkpoint goes on under other values.
PLACEMENT = ("cpu_devices", "fsdp")
# Files of orbax that log, traceback and all, a failed write that they also raise.
REPEATERS = ("future.py", "async_checkpointer.py", "checkpoint_manager.py")


FORMAT = 1  # of what a checkpoint holds; one of a later format is not read


class CheckpointError(RuntimeError):
    """No usable checkpoint, or one that could not be written; the message says what to do."""


def _arrays() -> ocp.PyTreeCheckpointHandler:
    """Writes and reads trees of device arrays.

    In one process, to cut what all devices hold into a slice for each would gain nothing; to compile the cuts
    took seconds at the first checkpoint.
    """
    handler = ocp.type_handlers.ArrayHandler(use_replica_parallel=jax.process_count() > 1)
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, handler))
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)


class Checkpoints:
    """The checkpoints of a run directory: written in the background, complete or not there at all."""

    def __init__(self, workdir: str | Path, keep: int = 3):
        _tell_failures_once()
        self.folder = Path(workdir).absolute() / "checkpoints"
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        handlers = {"state": _arrays(), "weights": _arrays(), "metadata": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)
        self._writing: int | None = None  # the step whose write was left to the background

    def save(self, state: TrainState, metadata: dict[str, Any], wait: bool = False) -> None:
        """Writes `state` under its step; `metadata` (JSON types) describes the model.

        Raises:
          CheckpointError: the disk is full or the folder cannot be written. Earlier checkpoints stay.
        """
        self._finish()  # here and not in orbax, so that a failure is told of the step it belongs to
        step = int(state.step)
        scale = np.exp(np.asarray(state.params["logit_scale"], np.float64))
        args = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state),
            weights=ocp.args.PyTreeSave(_string_keys(evaluated(state))),
            metadata=ocp.args.JsonSave(
                {**metadata, "format": FORMAT, "step": step, "logit_scale": float(scale)}
            ),
        )
        with self._explained(f"the checkpoint of step {step}"):
            if step not in self._manager.all_steps():
                self._manager.save(step, args=args)
                self._writing = step
        if wait:
            self._finish()

    def check(self) -> None:
        """Nothing, in a few microseconds; to be called often, as nobody else looks before the next `save`.

        Raises:
          CheckpointError: the write in the background has failed.
        """
        if not self._manager.is_saving_in_progress():
            self._finish()

    def _finish(self) -> None:
        """Waits for the write in the background, if there is one."""
        step, self._writing = self._writing, None
        if step is not None:
            with self._explained(f"the checkpoint of step {step}"):
                self._manager.wait_until_finished()

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turns a failed write into a CheckpointError that says why and what to do."""
        try:
            yield
        except (OSError, ValueError) as error:
            if not (why := _why_unwritten(error)):
                raise
            raise CheckpointError(
                f"{what} could not be written to {self.folder}: {why}. Earlier checkpoints "
                f"({self._manager.all_steps() or 'none'}) are intact: make room or mend the folder, and "
                "start the same command again."
            ) from error

    def restore(self, like: TrainState) -> TrainState | None:
        """The newest state that can be read, or None when there is no checkpoint at all.

        A damaged checkpoint is reported loudly, removed from the list and the one before it is used.

        Raises:
          ConfigError: the newest readable one belongs to another model or optimizer; nothing is touched.
          CheckpointError: there are checkpoints but none can be read, or only a converted model.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        items = {p.name for step in steps for p in (self.folder / str(step)).iterdir()}
        if "weights" in items and "state" not in items:
            raise CheckpointError(
                f"{self.folder} holds a converted model, without the state that training goes on from: give "
                "the training another --workdir."
            )
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        for step in steps:
            with suppress(OSError, ValueError):  # damaged: the restore that follows says so
                _metadata(self.folder / str(step))
            self._check_fits(step, shapes)
            try:
                args = ocp.args.PyTreeRestore(
                    shapes, restore_args=ocp.checkpoint_utils.construct_restore_args(shapes)
                )
                state = self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]
            except Exception as error:
                logging.warning(
                    "checkpoint %s of step %d is damaged (%s)", self.folder, step, _first_line(error)
                )
                print(
                    f"WARNING: the checkpoint of step {step} cannot be read "
                    f"({_first_line(error)}); using the one before it."
                )
                self._set_aside(step)
                continue
            return state
        if steps:
            raise CheckpointError(
                f"none of the checkpoints of {self.folder} (steps {steps}) can be read; they were renamed to "
                "*.damaged. Start again in another --workdir, or remove this one."
            )
        return None

    def _check_fits(self, step: int, wanted: Any) -> None:
        """Raises ConfigError where a stored state has other arrays than `wanted`."""
        try:
            with ocp.PyTreeCheckpointer() as reader:
                tree = reader.metadata(self.folder / str(step) / "state").item_metadata.tree
        except Exception:  # damaged: the restore that follows says so
            return
        stored, here = _shapes(tree), _shapes(wanted)
        names = [n for n in sorted(stored.keys() | here.keys()) if stored.get(n) != here.get(n)]
        if names:
            lines = [f"  {n}: {stored.get(n, '-')} stored, {here.get(n, '-')} now" for n in names[:5]]
            raise ConfigError(
                f"the checkpoint of step {step} in {self.folder} does not fit this config; "
                f"{len(names)} arrays differ:\n"
                + "\n".join(lines)
                + "\nUse the config that the run was started with (its "
                "config.json), or another --workdir. Nothing was changed."
            )

    def _set_aside(self, step: int) -> None:
        (self.folder / str(step)).rename(
            self.folder / f"{step}.damaged-{int(np.random.default_rng().integers(1 << 30))}"
        )
        self._manager.reload()

    def latest(self) -> int | None:
        """The step of the newest checkpoint."""
        return self._manager.latest_step()

    def close(self) -> None:
        """Waits for writes in progress and stops the background threads."""
        try:
            self._finish()
        finally:
            with suppress(ValueError):  # the same failure again
                self._manager.close()


def save_weights(
    folder: str | Path, weights: Mapping[str, Any], metadata: Mapping[str, Any], step: int
) -> None:
    """Writes a model without its training's state, under folder/checkpoints/STEP, for `load_weights`.

    Args:
      weights: {"encoder", "stats"}. metadata: JSON types; describes the model.

    Raises:
      CheckpointError: the disk is full or the folder cannot be written.
    """
    _tell_failures_once()
    args = ocp.args.Composite(
        weights=ocp.args.PyTreeSave(_string_keys(dict(weights))),
        metadata=ocp.args.JsonSave({**metadata, "format": FORMAT}),
    )
    try:
        with ocp.CheckpointManager(Path(folder).absolute() / "checkpoints") as manager:
            manager.save(step, args=args)
            manager.wait_until_finished()
    except (OSError, ValueError) as error:
        if not (why := _why_unwritten(error)):
            raise
        raise CheckpointError(
            f"the model could not be written to {folder}: {why}. Nothing was kept of it: make room or mend "
            "the folder, and start the same command again."
        ) from error


def _why_unwritten(error: OSError | ValueError) -> str:
    """Why a file could not be written; "" where the error is of another kind."""
    # tensorstore tells the system's errors as a ValueError, their number in the text
    told = re.search(r"os_error_code='(\d+)'", str(error))
    number = error.errno if isinstance(error, OSError) else int(told[1]) if told else None
    if number == errno.ENOSPC or "No space left" in str(error):
        return "the disk is full"
    if isinstance(error, OSError):
        return str(error)
    return os.strerror(number) if number else ""


@functools.cache
def _tell_failures_once() -> None:
    """Keeps orbax and tensorstore from printing a traceback a thread for a failed write that is raised here.

    For the life of the process, as fragments of the checkpoint go on failing after the first has been raised.
    """

    def news(record: logging.LogRecord) -> bool:
        return not (record.exc_info and "orbax" in record.pathname and record.filename in REPEATERS)

    def lone(record: logging.LogRecord) -> bool:
        # asyncio tells of other fragments' errors, in futures that nobody waits for after the first
        error = record.exc_info[1] if record.exc_info else None
        return not (isinstance(error, (OSError, ValueError)) and _why_unwritten(error))

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        # tensorstore's threads report to the event loop that the first failure has closed
        if unraisable.object is not None or str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    absl_logging.get_absl_logger().addFilter(news)
    logging.getLogger("asyncio").addFilter(lone)
    warnings.filterwarnings("ignore", "coroutine '.*write_fragment' was never awaited", RuntimeWarning)
    before, sys.unraisablehook = sys.unraisablehook, hook


def load_weights(path: str | Path) -> tuple[dict[str, Any], dict[str, Any], int]:
    """(weights, metadata, step) of the newest readable checkpoint of a run directory.

    Only the encoder's evaluated parameters and statistics are read, neither optimizer nor data.

    Args:
      path: a run directory, its checkpoints folder, or one step's folder.

    Raises:
      CheckpointError: there is none, or none can be read.
    """
    folder = Path(path).absolute()
    if (folder / "checkpoints").is_dir():
        folder = folder / "checkpoints"
    candidates = sorted((p for p in folder.glob("*") if p.name.isdigit()), key=lambda p: -int(p.name))
    if folder.name.isdigit() and (folder / "weights").is_dir():
        candidates = [folder]
    if not candidates:
        raise CheckpointError(
            f"{path} holds no checkpoint: give a run directory (--workdir of a training run) or one step's "
            "folder in its checkpoints/."
        )
    for candidate in candidates:
        try:
            with _quiet(), ocp.PyTreeCheckpointer() as reader:
                shapes = reader.metadata(candidate / "weights").item_metadata.tree
                args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), dict(shapes))
                weights = reader.restore(candidate / "weights", restore_args=args)
            metadata = _metadata(candidate)
        except CheckpointError:
            raise
        except Exception as error:
            print(f"WARNING: {candidate} cannot be read ({_first_line(error)}); trying an older checkpoint.")
            continue
        return _int_keys(weights), metadata, int(candidate.name)
    raise CheckpointError(f"none of the checkpoints in {folder} can be read; train again or use another run.")


def _metadata(folder: Path) -> dict[str, Any]:
    """What the checkpoint of one step says of itself.

    Raises:
      CheckpointError: it is of a later format. OSError, ValueError: damaged.
    """
    metadata = json.loads((folder / "metadata" / "metadata").read_text())
    if metadata.get("format", FORMAT) > FORMAT:
        raise CheckpointError(
            f"{folder} is of format {metadata['format']}, by openshape_jax {metadata.get('version')}; "
            f"this version reads formats up to {FORMAT}: pip install --upgrade openshape_jax."
        )
    return metadata


@contextmanager
def _quiet() -> Iterator[None]:
    """Without orbax's warning that an item read on its own has no checkpoint metadata of its own."""
    before = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.ERROR)
    try:
        yield
    finally:
        absl_logging.set_verbosity(before)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:200]


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shapes by path, the same for a stored tree and for a TrainState."""
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): tuple(x.shape) for path, x in paths}


def _string_keys(tree: Any) -> Any:
    return {str(k): _string_keys(v) for k, v in tree.items()} if isinstance(tree, dict) else tree


def _int_keys(tree: Any) -> Any:
    """The inverse of `_string_keys`: list-like levels have integer keys in NNX's pure dicts."""
    if not isinstance(tree, dict):
        return tree
    return {int(k) if k.isdigit() else k: _int_keys(v) for k, v in tree.items()}


def check_workdir(workdir: Path, config: Config) -> None:
    """Nothing where `workdir` is free for the run: empty, without a checkpoint, or of the same config.

    Raises:
      ConfigError: another config's run is there; shows every difference and the ways out.
    """
    path = workdir / "config.json"
    if config.resume == "force" or not path.exists() or not any((workdir / "checkpoints").glob("[0-9]*")):
        return
    try:
        old = json.loads(path.read_text())
    except json.JSONDecodeError:
        old = {"(unreadable)": path.read_text()[:80]}
    # A field that came with a later version had what is now its default.
    before, now = _with_defaults(old, _described(Config())), _described(config)
    for name in PLACEMENT:
        before[name] = now[name]
    if lines := difference(before, now):
        raise ConfigError(
            f"{workdir} holds a run with another config:\n  "
            + "\n  ".join(lines)
            + "\nUse another --workdir, or --resume=force to go on with the new values."
        )


def _with_defaults(old: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """`old` with the fields that it lacks, of the groups that it has."""
    filled = {key: value for key, value in defaults.items() if not isinstance(value, dict)} | old
    for key, group in defaults.items():
        if isinstance(group, dict) and isinstance(old.get(key), dict):
            filled[key] = _with_defaults(old[key], group)
    return filled


def claim_workdir(workdir: Path, config: Config) -> None:
    """Writes WORKDIR/config.json; an earlier, different one is kept as config.json.before-<n>."""
    path, new = workdir / "config.json", json.dumps(_described(config), indent=2)
    workdir.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.read_text() != new:
        number = len(list(workdir.glob("config.json.before-*"))) + 1
        path.replace(workdir / f"config.json.before-{number}")
    files.write(path, new)


def _described(config: Config) -> dict[str, Any]:
    values = to_dict(config)
    values.pop("resume")
    return values
