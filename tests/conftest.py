"""Shared test set-up: eight CPU devices, a tiny synthetic data set, the PyTorch fixtures."""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

# What one test compiles, no other compiles again, nor a command that it starts.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="openshape_jax_tests_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

from pathlib import Path

import numpy as np
import pytest

from openshape_jax.config import ModelConfig

FIXTURE = Path(__file__).parent / "fixtures" / "openshape_pointbert_tiny.npz"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What may pass is tried again at once."""
    from openshape_jax.data import files

    monkeypatch.setattr(files, "FIRST_WAIT", 0.0)


@pytest.fixture(scope="session")
def golden() -> dict[str, np.ndarray]:
    """The tensors of the PyTorch original (tests/fixtures/README.md)."""
    with np.load(FIXTURE) as file:
        return dict(file)


@pytest.fixture(scope="session")
def golden_model() -> ModelConfig:
    return ModelConfig(
        dim=32, depth=2, heads=2, mlp_dim=48, sa_dim=16, patches=24, radius=0.35, nsample=16, embed_dim=40
    )


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the data set primitives/tiny."""
    from openshape_jax.cli import main

    folder = str(tmp_path_factory.mktemp("data"))
    with pytest.raises(SystemExit) as done:
        main.main(["data", "build", "primitives/tiny", "--data_dir", folder])
    assert not done.value.code
    return folder
