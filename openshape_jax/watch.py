"""What ends a run before its last step: signals, and values that are not finite."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from openshape_jax.config import Config

SKIPPED_IN_A_ROW = 100  # steps without finite values after which a run stops even if it may skip them
# sysexits.h's "temporary failure; try again": what a job ends with when it is preempted.
EXIT_CODES = {"SIGINT": 130, "SIGTERM": 75}


class Interrupted(Exception):
    """Ctrl-C or a termination signal; the state is saved and the message says how to go on."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code  # of the process: 130 after SIGINT, 75 after SIGTERM


class Watch:
    """Looks at the values of the last step, once the device has them."""

    def __init__(self, config: Config):
        self._config = config
        self._last: tuple[int, dict[str, Any], Any] | None = None
        self.skipped = self._in_a_row = 0

    def step(self, step: int, values: dict[str, Any], uids: np.ndarray) -> None:
        self._last = step, values, uids

    def check(self) -> bool:
        """Whether a host was asked to stop before the last step.

        Raises:
          FloatingPointError: the step's loss or gradient is not finite, and it may not be skipped.
        """
        if self._last is None:
            return False
        (step, values, uids), self._last = self._last, None
        if values["finite"]:
            self._in_a_row = 0
        else:
            self.skipped, self._in_a_row = self.skipped + 1, self._in_a_row + 1
            message = _not_finite(step, values, uids)
            if self._config.optim.nonfinite == "stop" or self._in_a_row == SKIPPED_IN_A_ROW:
                raise FloatingPointError(message)
            tqdm.write(f"WARNING: skipped: {message.splitlines()[0]}")
        return bool(values.get("stop", False))


def _not_finite(step: int, values: dict[str, Any], uids: np.ndarray) -> str:
    """What is not finite at a step, in which of this host's shapes, and what to do."""
    first = len(uids) * jax.process_index()
    bad = np.asarray(values["bad_rows"])[first : first + len(uids)]
    terms = [k for k in ("text_loss", "image_loss") if not np.isfinite(values[k])]
    if bad.any():
        what = f"the embedding of {bad.sum()} of {len(uids)} shapes"
    else:
        what = f"the {terms[0].replace('_', ' ')}" if terms else "the gradient"
    named = uids[bad] if bad.any() else uids
    return (
        f"{what} is not finite at step {step} (loss {values['loss']:.4g}, gradient norm "
        f"{values['grad_norm']:.4g}).\nShapes: {', '.join(map(str, named[:20]))}"
        + (f" and {len(named) - 20} more" if len(named) > 20 else "")
        + "\nLower --config.optim.learning_rate, set --config.optim.clip_norm=1, or leave such steps out "
        "with --config.optim.nonfinite=skip; earlier checkpoints stay."
    )


@contextmanager
def signals() -> Iterator[Callable[[], str]]:
    """A function that names the SIGINT or SIGTERM that came, or ""; a second one acts at once."""
    came: list[str] = []

    def note(number: int, _frame: Any) -> None:
        came.append(signal.Signals(number).name)
        signal.signal(number, old[signal.Signals(number)])

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
