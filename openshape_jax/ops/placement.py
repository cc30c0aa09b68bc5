"""Where the rows of a batch stand in a program for several devices.

The compiler spreads placements from the arguments of a program through its operations, and now and then
takes a batch apart along another axis, or gathers it: a training step for eight devices then has a hundred
exchanges too many (experiments/tpu_dryrun). These functions say what is meant. They do nothing without a
mesh.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Float


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


def _whole(x: Float[Array, "B D"], wire: Any) -> Float[Array, "B D"]:
    """All of float32 x on every device, sent as type `wire`; a gradient comes back split by rows, as the
    devices' sum in float32."""
    sent = x.astype(wire)
    if batch_axes(x)[2] > 1:
        sent = jax.lax.with_sharding_constraint(sent, NamedSharding(batch_axes(x)[0], PartitionSpec()))
    return sent.astype(jnp.float32)


# Left to itself, the gradient would be summed up on every device, to be split afterwards.
whole = jax.custom_vjp(_whole, nondiff_argnums=(1,))
whole.defvjp(lambda x, wire: (_whole(x, wire), None), lambda wire, _, g: (split_rows(g),))
