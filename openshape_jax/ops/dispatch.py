"""The public geometry operations, and the one place where their implementation is chosen.

| lowered for | implementation |
|---|---|
| tpu | the Pallas kernels `fps_tpu`, `ball_query_tpu` and `gather_tpu` |
| cuda, in a process that has a GPU fit for Triton | the Pallas kernels `fps_gpu` and `ball_query_gpu` |
| anything else, and clouds too large for a kernel | plain XLA: `farthest_points`, `first_in_ball`, indexing |

The choice is made when a program is lowered, not by the machine that traces it, so a program for TPUs
can be compiled on a laptop. `OPENSHAPE_KERNELS=0` in the environment turns all kernels off; one
`jax.export` for several platforms at once needs that, as JAX lowers a Pallas call for each of them.

The operations are written for one cloud; `jax.vmap`, also nested, hands all clouds together to a kernel.
The compiler cannot partition a Pallas call, so in a program for several devices each device runs the
kernel on its own clouds, through `jax.shard_map` over all automatic axes of the mesh. The mesh is that
of `jax.set_mesh`, or else that of the arguments of the enclosing `jax.jit`: arrays placed by a
`NamedSharding` carry it. Lower with `jax.ShapeDtypeStruct(..., sharding=...)` or inside `jax.set_mesh`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from openshape_jax.ops.ball_query import first_in_ball
from openshape_jax.ops.fps import farthest_points
from openshape_jax.ops.placement import batch_axes, platform


def farthest_point_sampling(
    xyz: Float[Array, "N 3"], num_samples: int, start: int | Int[Array, ""] = 0
) -> Int[Array, S]:
    """Indices (S,) int32 of points, each the farthest from all those chosen before it.

    The first index wins ties, which is DGL's rule; the first chosen point is `start` (DGL draws it at
    random, here it is 0 unless asked, so that embeddings are reproducible). Where fewer than
    `num_samples` points are distinct, the rest repeats index 0.

    Args:
      xyz: (N, 3) coordinates, any unit; computed in float32 whatever the input type.
      num_samples: number S of indices.
      start: index of the first point.

    Raises:
      ValueError: xyz is not (N, 3), or has fewer than `num_samples` points.
    """
    if xyz.ndim != 2 or xyz.shape[1] != 3:
        raise ValueError(f"xyz has shape {xyz.shape}; expected (N, 3). Use jax.vmap for a batch.")
    n = xyz.shape[0]
    if n < num_samples:
        raise ValueError(f"xyz has {n} points; cannot sample {num_samples}: give at least that many.")
    first = jnp.asarray(start, jnp.int32)[None]
    return _sample(num_samples)(_points(xyz)[None], first)[0]


def ball_query(
    xyz: Float[Array, "N 3"], centres: Float[Array, "S 3"], radius: float, num_samples: int
) -> Int[Array, "S K"]:
    """Indices (S, K) int32 of the first K points, in index order, with squared distance <= radius².

    A group with fewer than K members is filled with its first member, as the reference does; it is
    not a nearest-neighbour search, so points should be shuffled. A centre without any member gets
    index 0.

    Args:
      xyz: (N, 3) points. centres: (S, 3) same unit. Both are taken as float32.
      radius: in the unit of xyz.
      num_samples: K.

    Raises:
      ValueError: a wrong shape, or K < 1.
    """
    if xyz.ndim != 2 or xyz.shape[1] != 3 or centres.ndim != 2 or centres.shape[1] != 3:
        raise ValueError(f"xyz {xyz.shape} and centres {centres.shape} must be (N, 3) and (S, 3).")
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}; it must be at least 1.")
    return _query(float(radius), num_samples)(_points(xyz)[None], _points(centres)[None])[0]


def gather(table: Float[Array, "N F"], index: Int[Array, ...]) -> Float[Array, "... F"]:
    """table[index] in float32, without a gradient; each index from 0 to N - 1.

    XLA fetches one row after the other on a TPU.
    """
    return _look_up()(_points(table)[None], index.reshape(1, -1))[0].reshape(*index.shape, table.shape[1])


def _points(xyz: Array) -> Array:
    return jax.lax.stop_gradient(xyz.astype(jnp.float32))  # indices have no gradient


@functools.cache
def _sample(num_samples: int) -> Callable[..., Array]:
    """(xyz (B, N, 3), start (B,)) -> (B, S)."""
    from openshape_jax.ops import fps_gpu, fps_tpu  # here, as importing Pallas takes a quarter of a second

    def tpu(xyz: Array, start: Array) -> Array:
        return fps_tpu.fps_tpu(xyz, num_samples, start)

    def cuda(xyz: Array, start: Array) -> Array:
        return fps_gpu.fps_gpu(xyz, num_samples, start)

    def plain(xyz: Array, start: Array) -> Array:
        return farthest_points(xyz, num_samples, start)

    return _over_clouds(plain, tpu=(tpu, fps_tpu.MAX_POINTS), cuda=(cuda, fps_gpu.MAX_POINTS))


@functools.cache
def _query(radius: float, num_samples: int) -> Callable[..., Array]:
    """(xyz (B, N, 3), centres (B, S, 3)) -> (B, S, K)."""
    from openshape_jax.ops import ball_query_gpu, ball_query_tpu

    def tpu(xyz: Array, centres: Array) -> Array:
        return ball_query_tpu.ball_query_tpu(xyz, centres, radius, num_samples)

    def cuda(xyz: Array, centres: Array) -> Array:
        return ball_query_gpu.ball_query_gpu(xyz, centres, radius, num_samples)

    def plain(xyz: Array, centres: Array) -> Array:
        return first_in_ball(xyz, centres, radius, num_samples)

    return _over_clouds(plain, tpu=(tpu, ball_query_tpu.MAX_POINTS), cuda=(cuda, ball_query_gpu.MAX_POINTS))


@functools.cache
def _look_up() -> Callable[..., Array]:
    """(table (B, N, F), index (B, M)) -> (B, M, F)."""
    from openshape_jax.ops import gather_tpu

    tpu = (gather_tpu.gather_tpu, gather_tpu.MAX_POINTS)
    return _over_clouds(lambda table, index: table[index], tpu=tpu)


def _over_clouds(
    plain: Callable[..., Array], **kernels: tuple[Callable[..., Array], int]
) -> Callable[..., Array]:
    """A function of arrays with a leading axis B of clouds, whose vmap joins the new axis to B.

    Args:
      plain: for one cloud. kernels: for B clouds by platform, with the largest N they take.
    """

    def batch(xyz: Array, other: Array) -> Array:
        def any_platform(xyz: Array, other: Array) -> Array:
            if len(xyz) == 1:  # plain indexing where vmap would gather
                return plain(xyz[0], other[0])[None]
            return jax.vmap(plain)(xyz, other)

        chosen = {
            platform: by_device(kernel)
            for platform, (kernel, most) in kernels.items()
            if xyz.shape[1] <= most and has_kernels(platform)
        }
        return jax.lax.platform_dependent(xyz, other, default=any_platform, **chosen)

    call = custom_vmap(batch)

    @call.def_vmap
    def join(size: int, batched: Any, *args: Array) -> tuple[Array, bool]:
        whole = [
            a if b else jnp.broadcast_to(a, (size, *a.shape)) for a, b in zip(args, batched, strict=True)
        ]
        out = call(*[a.reshape(-1, *a.shape[2:]) for a in whole])
        return out.reshape(size, -1, *out.shape[1:]), True

    return jax.jit(call)  # a shape is traced once, whoever calls; without it each eager call compiles


def has_kernels(platform: str) -> bool:
    """Whether hand-made kernels for "tpu" or "cuda" are used: not turned off and, for GPUs, the process has
    GPUs that can run them, or has none and `jax.set_mesh` names one to compile for."""
    if os.environ.get("OPENSHAPE_KERNELS") == "0":
        return False
    if platform != "cuda":
        return True
    # Pallas' Triton route needs compute capability 8.0 (Ampere), and a device to lower for.
    gpus = [d for d in jax.local_devices() if d.platform == "gpu"]
    if gpus:
        return all(_ampere(str(getattr(d, "compute_capability", ""))) for d in gpus)
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and getattr(mesh.abstract_device, "platform", "") == "gpu"


def gpu_kernels(x: Array) -> bool:
    """Whether the program around x is for GPUs, and hand-made kernels for them are used."""
    return platform(x) == "gpu" and has_kernels("cuda")


def _ampere(capability: str) -> bool:
    """Of NVIDIA's "8.0" or later; AMD's are called "gfx942"."""
    return capability[:1].isdigit() and float(capability) >= 8


def by_device(kernel: Callable[..., Any], shared: int = 0) -> Callable[..., Any]:
    """kernel, run by each device on its own share of the leading axis where there is a mesh.

    Args:
      shared: how many of the last arguments each device gets whole.
    """

    def call(*args: Array) -> Any:
        mesh, auto, devices = batch_axes(args[0])
        if devices == 1:
            return kernel(*args)
        # A batch that does not divide is computed in full by every device.
        rows = PartitionSpec(auto) if len(args[0]) % devices == 0 else PartitionSpec()
        return jax.shard_map(
            kernel,
            mesh=mesh,
            in_specs=(*(rows,) * (len(args) - shared), *(PartitionSpec(),) * shared),
            out_specs=rows,
            axis_names=set(auto),
            check_vma=False,
        )(*args)

    return call
