"""Settings of the process that must be made before JAX starts: CPU devices and the allocator."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's mallopt


def prepare(cpu_devices: int) -> None:
    """Makes JAX see `cpu_devices` devices where it runs on CPUs, and the allocator keep its memory."""
    import jax

    if cpu_devices > 1:
        jax.config.update("jax_num_cpu_devices", cpu_devices)
    keep_freed_memory()


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
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)  # ... which does not shrink below 2 GB
        mallopt(M_TOP_PAD, 1 << 28)
