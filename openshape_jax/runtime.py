"""What must be settled before JAX starts (CPU devices, allocator, compilation cache, the cluster), and how a
model's programs are compiled."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import sys
import zlib
from collections.abc import Callable, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jax.sharding import Mesh

# XLA's own order of operations on CPUs lets independent ones run side by side: that gains nothing on few
# cores and takes a third more memory (experiments/encoder_speed). Only the process-wide flag has an effect.
# With several devices the order must stay XLA's: they would wait for each other's collectives for ever.
IN_ORDER = "--xla_cpu_enable_concurrency_optimized_scheduler"
# cuBLAS alone makes the products: it adds bias, GELU and residual as they come, and nothing is tuned first
# (PointBERT-L's forward pass compiles in 5 instead of 25 s; experiments/encoder_speed).
OWN_PRODUCTS = "--xla_gpu_enable_triton_gemm"
# jaxlib 0.11.2 and 0.12.0.1 leave operations on CPUs to YNNPACK. Three products in bfloat16 with ReLU between
# and a sum or maximum behind, left to it as one, become anything up to NaN. In float32 a constant broadcast
# into a product before a sum comes out wrong; `ops/attention.py` takes care that its gradient has none.
YNNPACK, NO_SUMS = "xla_cpu_experimental_ynn_fusion_type", "-reduce"
PRODUCTS, SUMS = ("INDIVIDUAL_DOT", "INDIVIDUAL_CONVOLUTION"), ("REDUCE",)
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's mallopt


def prepare(cpu_devices: int = 1) -> None:
    """Makes JAX see `cpu_devices` devices where it runs on CPUs, programs need little memory there and be
    compiled only once, and the allocator keep its memory."""
    import jax

    if cpu_devices > 1:
        jax.config.update("jax_num_cpu_devices", cpu_devices)
    if _has_ynnpack():
        _set_flag(f"--{YNNPACK}", NO_SUMS)
    flags = os.environ.get("XLA_FLAGS", "")
    alone = jax.config.jax_num_cpu_devices <= 1 and "device_count" not in flags  # type: ignore[attr-defined]
    _set_flag(OWN_PRODUCTS, "false")
    if alone and not jax.distributed.is_initialized():
        _set_flag(IN_ORDER, "false")
    keep_freed_memory()
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder()))


def jit_of_model(dtype: str, mesh: Mesh | None = None) -> Callable[..., Any]:
    """`jax.jit` for all programs with a model of this type, with `compiler_options`.

    Args:
      mesh: of the devices; None: JAX's default ones.
    """
    import jax

    where = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    options = compiler_options(dtype, where)
    return functools.partial(jax.jit, compiler_options=options)


def compiler_options(dtype: str, platform: str) -> dict[str, str] | None:
    """Options of `jax.jit` for a model of this type: what a CPU leaves to YNNPACK.

    In float32 that is sums, with the products right in front of them; others are Eigen's, which are faster.
    In bfloat16 it is products and no sums, for the matrix units (experiments/encoder_speed).
    None where nothing is to be set, or the person has set it; `-reduce` alone is taken as that of `prepare`.
    """
    flags = os.environ.get("XLA_FLAGS", "").split()
    theirs = any(YNNPACK in flag and flag != f"--{YNNPACK}={NO_SUMS}" for flag in flags)
    if platform != "cpu" or not _has_ynnpack() or theirs:
        return None
    kinds = SUMS if dtype == "float32" else PRODUCTS
    return {YNNPACK: ",".join(f"LIBRARY_FUSION_TYPE_{kind}" for kind in kinds)}


def _has_ynnpack() -> bool:
    return not version("jaxlib").startswith("0.10.")


def _set_flag(flag: str, value: str) -> None:
    """For XLA, unless the person has set it."""
    flags = os.environ.get("XLA_FLAGS", "")
    if flag not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}={value}".strip()


def join_cluster(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is one of several that train together; it then has joined them.

    | started by | known from |
    |---|---|
    | hand, or a launcher that sets them | JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES,
    JAX_PROCESS_ID |
    | srun, mpirun | SLURM_STEP_NUM_TASKS or OMPI_COMM_WORLD_SIZE above 1 |
    | a TPU pod or multislice, also on GKE | TPU_WORKER_HOSTNAMES, TPU_PROCESS_ADDRESSES,
    MEGASCALE_COORDINATOR_ADDRESS, or the chips of a TPU machine and its metadata server |

    Raises:
      ValueError: JAX_COORDINATOR_ADDRESS without the other two, or they do not fit together.
      RuntimeError: the others did not come within JAX's five minutes.
    """
    import jax

    if jax.distributed.is_initialized():
        return True
    if "JAX_COORDINATOR_ADDRESS" in environment:
        names = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
        if not all(environment.get(name, "").isdigit() for name in names):
            got = ", ".join(f"{name}={environment.get(name)!r}" for name in names)
            raise ValueError(
                f"JAX_COORDINATOR_ADDRESS is set, but {got}: set both, e.g. 16 and 0 to 15 "
                "(docs/launching.md)."
            )
        count, index = (int(environment[name]) for name in names)
        if not index < count:
            raise ValueError(f"JAX_PROCESS_ID is {index}; it must be below JAX_NUM_PROCESSES ({count}).")
        jax.distributed.initialize(environment["JAX_COORDINATOR_ADDRESS"], count, index)
        return True
    tasks = (environment.get(name, "1") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    hosts = (environment.get(name, "") for name in ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"))
    several = any(n.isdigit() and int(n) > 1 for n in tasks) or any("," in h for h in hosts)
    if several or "MEGASCALE_COORDINATOR_ADDRESS" in environment or _on_tpu_machine(environment):
        jax.distributed.initialize()
        return True
    return False


def _on_tpu_machine(environment: Mapping[str, str]) -> bool:
    """Whether this is a machine of Google Cloud with TPU chips, whose metadata server tells of its pod."""
    chips = any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*"))
    asked = environment.get("JAX_PLATFORMS", "") in ("", "tpu", "tpu,cpu")
    return chips and asked and bool(find_spec("libtpu")) and "TPU_SKIP_MDS_QUERY" not in environment


def cache_folder() -> Path:
    """Where compiled programs are kept: XDG_CACHE_HOME or ~/.cache, a folder for each kind of processor.

    JAX's own setting, the environment variable JAX_COMPILATION_CACHE_DIR, goes before it.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    try:  # a program compiled for one processor may not run on another that shares the home directory
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        kind = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        kind = platform.processor()
    return root / "openshape_jax" / f"xla-{platform.machine()}-{zlib.crc32(kind.encode()):08x}"


def keep_freed_memory() -> None:
    """Lets glibc keep freed memory for the next step instead of giving it back to the kernel.

    XLA:CPU allocates the scratch memory of a program at every call. Given back each time, its pages are
    cleared by the kernel each time: up to a third of the time of a small training step. Does nothing
    with other C libraries.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)  # large blocks come from the heap ...
        mallopt(M_TRIM_THRESHOLD, -1)  # ... which never shrinks
        mallopt(M_TOP_PAD, 1 << 28)
