"""The run that several test files share: a real config shrunk to 8 steps."""

import os
from pathlib import Path

from openshape_jax import config as config_lib

ROOT = Path(__file__).parent.parent
CONFIG = f"{ROOT}/configs/quickstart.py:smoke"
OVERRIDES = (
    "steps=8", "batch_size=8", "log_every=1", "checkpoint_every=2", "model.depth=1", "eval.report=false"
)  # fmt: skip
# For commands that choose their number of devices themselves.
XLA_FLAGS = os.environ["XLA_FLAGS"].replace("--xla_force_host_platform_device_count=8", "")


def small(data_dir: str, *overrides: str) -> config_lib.Config:
    return config_lib.load(CONFIG, [*OVERRIDES, f"data.data_dir={data_dir}", *overrides])
