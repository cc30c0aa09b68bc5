"""Where the rows of a batch stand in a program for several devices.

The compiler spreads placements from the arguments of a program through its operations, and now and then
takes a batch apart along another axis, or gathers it: a training step for eight devices then has a hundred
exchanges too many (experiments/tpu_dryrun). These functions say what is meant. They do nothing without a
mesh.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Shaped

# Devices up to which rows are scattered, or gathered, in one step. Of an exchange among more, XLA for TPUs
# may make an all-reduce of all rows (experiments/tpu_dryrun).
SCATTERED, GATHERED = 16, 256
NEIGHBOURS = 16  # at most, in a group of an exchange in two steps


def batch_axes(x: Array) -> tuple[jax.sharding.AbstractMesh, tuple[str, ...], int]:
    """(mesh, names of its automatic axes, number of devices along them).

    The mesh is that of `jax.set_mesh`, or else that of the arguments of the enclosing `jax.jit`, which x
    carries.
    """
    context = jax.sharding.get_abstract_mesh()
    mesh = jax.typeof(x).sharding.mesh if context.empty else context
    auto = tuple(
        name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto
    )
    devices = 1
    for name in auto:
        devices *= mesh.shape[name]
    return mesh, auto, devices


def platform(x: Array) -> str:
    """For which kind of device the program around x is made, "cpu", "tpu" or "gpu"; not where it is
    traced."""
    device = batch_axes(x)[0].abstract_device
    return jax.default_backend() if device is None else device.platform


def split_rows(x: Array, axis: int = 0) -> Array:
    """x with its axis of rows split over all devices; as it is where they do not divide it."""
    mesh, auto, devices = batch_axes(x)
    if devices == 1 or x.shape[axis] % devices:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*[None] * axis, auto)))


def gather_rows(x: Shaped[Array, "n ..."], axes: tuple[str, ...]) -> Shaped[Array, "B ..."]:
    """All devices' rows, in `jax.shard_map` over `axes`; x itself for ().

    Not to be differentiated: numbers of four bytes travel as integers, and no gradient comes back.
    """
    if not axes:
        return x
    sent = x
    if x.dtype == bool or x.dtype.itemsize == 4:
        # As one type, so that XLA sends all small arrays at once.
        sent = x.astype(jnp.int32) if x.dtype == bool else jax.lax.bitcast_convert_type(x, jnp.int32)
    for groups in reversed(_steps(x, axes, GATHERED)):
        sent = jax.lax.all_gather(sent, axes, tiled=True, axis_index_groups=groups)
    if x.dtype == bool:
        return sent.astype(bool)
    return sent if sent.dtype == x.dtype else jax.lax.bitcast_convert_type(sent, x.dtype)


def scatter_sum(x: Float[Array, "B ..."], axes: tuple[str, ...]) -> Float[Array, "n ..."]:
    """A device's rows of the sum of all devices' x, in `jax.shard_map` over `axes`; x itself for ()."""
    for groups in _steps(x, axes, SCATTERED) if axes else []:
        x = jax.lax.psum_scatter(x, axes, tiled=True, axis_index_groups=groups)
    return x


def _steps(x: Array, axes: tuple[str, ...], most: int) -> list[list[list[int]] | None]:
    """The groups of devices that scatter rows of x among themselves, one step after the other; None: all.

    More than `most` TPUs do it in two: first those that stand some neighbours apart, each of whom keeps the
    part of the rows that it and its neighbours shall have, then neighbours. To gather, the other way round.
    """
    devices = jax.lax.axis_size(axes)
    near = max(n for n in range(1, NEIGHBOURS + 1) if devices % n == 0)
    if devices <= most or near == 1 or platform(x) != "tpu":
        return [None]
    apart = [list(range(first, devices, near)) for first in range(near)]
    return [apart, [list(range(first, first + near)) for first in range(0, devices, near)]]
