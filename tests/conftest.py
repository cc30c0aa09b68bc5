"""Shared test set-up: eight CPU devices, a tiny synthetic data set, the PyTorch fixtures."""

import atexit
import os
import shutil
import tempfile
from importlib.metadata import version

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# XLA's fusion emitters take most of its time to compile for CPUs (from jaxlib 0.11 it has nothing else), and
# parts to compile in parallel add to the work of two cores that both have enough.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else "",
        "--xla_cpu_parallel_codegen_split_count=1",
        "--xla_force_host_platform_device_count=8",
    ]
)

# Compiling is most of the suite's time. What one test compiles, no other test, worker or command that it
# starts compiles again: all share a cache of this run of pytest alone, of all that takes longer than its
# entry's writing. And XLA optimises little, to the same operations in slower programs, for all but the files
# whose numbers are compared with another implementation's, or depend on what XLA makes of a form
# (AS_USERS_COMPILE; jaxlib 0.10.2 so made a NaN of a variance's gradient in one of them). Nothing
# but this and the emitters differs from what users run.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="openshape_jax_tests_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from openshape_jax.config import ModelConfig
from tests.small_run import small

FIXTURE = Path(__file__).parent / "fixtures" / "openshape_pointbert_tiny.npz"
# Longest first, so that the workers end together.
LONG = ("train", "sharding", "recipe", "losses", "pointbert", "report", "encoder_kernels", "notebook")
AS_USERS_COMPILE = (
    "pointbert",
    "patch_train",
    "clip",
    "convert_read",
    "convert_write",
    "norm",
    "ops",
    "runtime",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {f"test_{name}.py": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.name, len(LONG)))


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


@pytest.fixture(autouse=True, scope="module")
def compiled_as_users_do(request: pytest.FixtureRequest) -> Iterator[None]:
    """All optimisations for the files of AS_USERS_COMPILE, whatever other files have compiled before."""
    import jax

    name = "jax_disable_most_optimizations"
    if request.path.stem.removeprefix("test_") not in AS_USERS_COMPILE:
        yield
        return
    before = jax.config.read(name)
    jax.clear_caches()
    jax.config.update(name, False)
    yield
    jax.config.update(name, before)
    jax.clear_caches()


@pytest.fixture(scope="session")
def gpu_mesh() -> AbstractMesh:
    """To lower programs for a GPU, which no process here has (jax >= 0.11 asks for a device then)."""
    gpu = AbstractDevice(device_kind="NVIDIA A100", num_cores=None, platform="gpu")
    return AbstractMesh((1,), ("data",), axis_types=(AxisType.Auto,), abstract_device=gpu)


@pytest.fixture(scope="session")
def tpu_mesh() -> AbstractMesh:
    """To lower programs for a TPU."""
    tpu = AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
    return AbstractMesh((1,), ("data",), axis_types=(AxisType.Auto,), abstract_device=tpu)


@pytest.fixture(scope="session")
def trained(data_dir: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run of `small_run.small`; copy it to change it."""
    from openshape_jax import train

    return train.run(small(data_dir), tmp_path_factory.mktemp("trained") / "run")
