"""The device mesh and the shardings of state and batch."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh() -> Mesh:
    """A mesh over all devices of all hosts with the single axis "data"."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device: parameters, optimizer state, metrics."""
    return NamedSharding(mesh, PartitionSpec())


def by_row(mesh: Mesh) -> NamedSharding:
    """Leading axis split over the devices: batches."""
    return NamedSharding(mesh, PartitionSpec("data"))


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raises ValueError unless the global batch divides over the devices."""
    if batch_size % mesh.size:
        nearest = max(round(batch_size / mesh.size), 1) * mesh.size
        raise ValueError(
            f"batch_size is {batch_size} but there are {mesh.size} devices; use a multiple, e.g. {nearest}."
        )


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, Any]:
    """Global arrays of the rows (B / hosts, ...) that this host read."""
    sharding = by_row(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
