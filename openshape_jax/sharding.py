"""The device mesh and the shardings of state and batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp")  # the batch is split over both, parameters over the second
LARGE = 100_000_000  # parameters from which they are split over a host's devices unless asked otherwise
SMALL_ARRAY = 1 << 16  # elements below which an array is not worth an exchange


def make_mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh (devices / fsdp, fsdp) over all devices of all hosts, with the axes "data" and "fsdp".

    Args:
      fsdp: devices over which parameters and the optimizer's state are split.
      devices: None: those of the process's cluster.

    Raises:
      ValueError: fsdp does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if count % fsdp:
        raise ValueError(f"fsdp is {fsdp} but there are {count} devices; use a divisor of {count}.")
    kinds = (AxisType.Auto, AxisType.Auto)
    # Four chips of a host are half a side of a cube of 8 x 8 x 8: jax.make_mesh would refuse to part it.
    grid = mesh_utils.create_device_mesh((count // fsdp, fsdp), devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=kinds)


def choose_fsdp(asked: int, num_params: int, local_devices: int) -> int:
    """`asked`, but no more than there are devices; for 0, 1 (every device holds all parameters) below 100 M
    of them, else a host's devices."""
    if asked:
        return min(asked, jax.device_count())
    return local_devices if num_params >= LARGE else 1


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device: metrics, and parameters where fsdp is 1."""
    return NamedSharding(mesh, PartitionSpec())


def by_row(mesh: Mesh) -> NamedSharding:
    """Leading axis split over the devices: batches."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def of_state(tree: Any, mesh: Mesh) -> Any:
    """A sharding for each array of a state: its largest axis that the "fsdp" devices divide is split over
    them.

    Small arrays, and all where there is no such axis, are on every device. Of three axes the first, that of
    the transformer's blocks, stays whole: a block's parameters are gathered when its turn comes.

    Args:
      tree: arrays, or their shapes.
    """
    ways = mesh.shape.get("fsdp", 1)

    def place(x: Any) -> NamedSharding:
        axes = range(1 if len(x.shape) > 2 else 0, len(x.shape))
        fitting = [a for a in axes if x.shape[a] % ways == 0]
        if ways == 1 or not fitting or np.prod(x.shape) < SMALL_ARRAY:
            return replicated(mesh)
        largest = max(fitting, key=lambda a: x.shape[a])
        return NamedSharding(mesh, PartitionSpec(*[None] * largest, "fsdp"))

    return jax.tree.map(place, tree)


def check_batch_size(batch_size: int, mesh: Mesh, parts: int = 1) -> None:
    """Raises ValueError unless the global batch divides over the devices, and each share into `parts`."""
    unit = mesh.size * parts
    if batch_size % unit:
        nearest = max(round(batch_size / unit), 1) * unit
        each = f", each to take its share in {parts} parts (model.microbatches)" if parts > 1 else ""
        raise ValueError(
            f"batch_size is {batch_size} but there are {mesh.size} devices{each}; use a multiple of {unit}, "
            f"e.g. {nearest}."
        )


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, Any]:
    """Global arrays of the rows (B / hosts, ...) that this host read."""
    sharding = by_row(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def put_rows(x: np.ndarray, mesh: Mesh) -> jax.Array:
    """A global array of rows that every host has in full; each gives its devices their share."""
    return jax.make_array_from_callback(x.shape, by_row(mesh), lambda index: x[index])


def is_first_host() -> bool:
    """Whether this process is the one that writes what all know."""
    return jax.process_index() == 0


def in_turn(make: Callable[[], Any]) -> None:
    """Calls `make` on the first host, then on the others: who shares its disk finds the files there."""
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        make()
        return
    for turn in (True, False):
        if is_first_host() == turn:
            make()
        multihost_utils.sync_global_devices(f"openshape_jax in_turn {turn}")
