"""Settings of the process that must be made before JAX starts: CPU devices, allocator, compilation cache."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import zlib
from pathlib import Path

# XLA's own order of operations on CPUs lets independent ones run side by side: that gains nothing on few
# cores and takes a third more memory (experiments/encoder_speed). Only the process-wide flag has an effect.
# With several devices the order must stay XLA's: they would wait for each other's collectives for ever.
IN_ORDER = "--xla_cpu_enable_concurrency_optimized_scheduler"
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's mallopt


def prepare(cpu_devices: int = 1) -> None:
    """Makes JAX see `cpu_devices` devices where it runs on CPUs, programs need little memory there and be
    compiled only once, and the allocator keep its memory."""
    import jax

    if cpu_devices > 1:
        jax.config.update("jax_num_cpu_devices", cpu_devices)
    flags = os.environ.get("XLA_FLAGS", "")
    alone = jax.config.jax_num_cpu_devices <= 1 and "device_count" not in flags  # type: ignore[attr-defined]
    if alone and IN_ORDER not in flags and not jax.distributed.is_initialized():
        os.environ["XLA_FLAGS"] = f"{flags} {IN_ORDER}=false".strip()
    keep_freed_memory()
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder()))


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
