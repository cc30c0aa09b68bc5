"""Checkpoints in PyTorch's file format, written for the tests without PyTorch."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from openshape_jax.convert import torch_read, torch_write

FIXTURE = Path(__file__).parent / "fixtures" / "openshape_pointbert_tiny.pt"
SAMPLING = {"patches": 24, "radius": 0.35, "nsample": 16}
GIVEN = {**SAMPLING, "up": "z"}
FLAGS = ["--patches", "24", "--radius", "0.35", "--nsample", "16", "--up", "z"]


def fixture() -> dict[str, Any]:
    """The PyTorch original's checkpoint, arrays for tensors."""
    return torch_read.load(FIXTURE)


def plain() -> dict[str, np.ndarray]:
    """Its tensors without the prefix."""
    return {k.removeprefix("module."): v for k, v in fixture()["state_dict"].items()}


def unprojected() -> dict[str, np.ndarray]:
    """The encoder alone, named as in the demo's B/32 file."""
    return {"pc_encoder." + k.removeprefix("ppat."): v for k, v in plain().items() if k.startswith("ppat.")}


def write(path: Path, value: Mapping[str, Any]) -> Path:
    with path.open("wb") as file:
        torch_write.save(value, file)
    return path


def write_pickle(path: Path, data: bytes, compress: bool = False) -> Path:
    """A file of PyTorch's form around any pickle."""
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
    return path


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *arguments: Any):
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


def pickled(value: Any) -> bytes:
    return pickle.dumps(value, protocol=2)
