"""Metrics to JSONL and TensorBoard, and the progress bar."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openshape_jax.data import files


class Writer:
    """Appends one line per call to WORKDIR/metrics.jsonl and the same scalars to TensorBoard.

    Lines after `first_step` that a killed run left behind are dropped, so that a resumed run's file
    reads as if nothing had happened.
    """

    def __init__(self, workdir: Path, first_step: int = 0, active: bool = True):
        """`active` False: nothing is written; of several hosts one is active."""
        from tensorboardX import SummaryWriter

        self._active = active
        if not active:
            return
        self._path = workdir / "metrics.jsonl"
        if self._path.exists():
            kept = [line for line in self._path.read_text().splitlines() if _step_of(line) <= first_step]
            files.write(self._path, "".join(line + "\n" for line in kept))
        self._file = self._path.open("a")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step + 1)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes scalars under names such as "train/loss"."""
        if not self._active:
            return
        scalars = {k: float(v) for k, v in values.items()}
        self._file.write(json.dumps({"step": step, "time": time.time(), **scalars}) + "\n")
        self._file.flush()
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        if not self._active:
            return
        self._file.close()
        self._board.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")  # a line cut by a crash


def read(workdir: str | Path) -> list[dict[str, float]]:
    """The lines of WORKDIR/metrics.jsonl, oldest first; a cut last line is left out."""
    path = Path(workdir) / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if _step_of(line) != float("inf")]
