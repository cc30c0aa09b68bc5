"""The run that several test files share: a real config shrunk to 8 steps."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import pytest

from openshape_jax import config as config_lib

ROOT = Path(__file__).parent.parent
CONFIG = f"{ROOT}/configs/quickstart.py:smoke"
OVERRIDES = (
    "steps=8", "batch_size=8", "log_every=1", "checkpoint_every=2", "model.depth=1", "eval.report=false"
)  # fmt: skip


def small(data_dir: str, *overrides: str) -> config_lib.Config:
    return config_lib.load(CONFIG, [*OVERRIDES, f"data.data_dir={data_dir}", *overrides])


@contextmanager
def quickly() -> Iterator[None]:
    """XLA compiles in half the time, to slower programs; also in commands that a test starts.

    For tests of what happens around the programs. A number is compared only with one of the same program, or
    of one that was compiled as users have it.
    """
    name = "jax_disable_most_optimizations"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name.upper(), "1")
        before = jax.config.read(name)
        jax.config.update(name, True)
        try:
            yield
        finally:
            jax.config.update(name, before)
