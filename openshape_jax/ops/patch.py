"""The kernels of set abstraction's MLP as operations with gradients, and where they are used.

| program for | inference | training |
|---|---|---|
| TPUs, bfloat16 | `patch_tpu.forward` | `patch_train` with the passes of `patch_tpu` |
| GPUs, bfloat16 | `patch_gpu.forward` | `patch_train` with the passes of `patch_gpu` |
| anything else | chunks in plain XLA (`models/pointbert.py`) | `patch_train` with those of `patch_passes` |
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from openshape_jax.ops.dispatch import by_device, gpu_kernels, has_kernels
from openshape_jax.ops.patch_passes import CHUNK_ROWS
from openshape_jax.ops.patch_train import Layer, patch_training
from openshape_jax.ops.placement import batch_axes, platform

MAX_TILE = 2048  # points of eight patches whose activations stand in a TPU's VMEM
MAX_MEMBERS = 256  # of a patch on a GPU, whose tiles are unrolled
MAX_ELEMENTS = 1 << 31  # of an array on a GPU: offsets are 32-bit


def patch_kernel(xyz: Array, members: tuple[int, int, int], dtype: str) -> str | None:
    """Whose kernels take members of shape (B, S, K): "tpu", "gpu" or None; only bfloat16.

    On TPUs patches come in eights and K is a multiple of 32; on GPUs K is a power of two from 16.

    Args:
      xyz: the clouds, which tell for which devices the program is.
    """
    b, s, k = members
    if dtype != "bfloat16":
        return None
    if (
        platform(xyz) == "tpu"
        and s % 8 == 0
        and 8 * k <= MAX_TILE
        and 4 * k % 128 == 0
        and has_kernels("tpu")
    ):
        return "tpu"
    devices = batch_axes(xyz)[2]
    own = b // devices if b % devices == 0 else b
    fits = 16 <= k <= MAX_MEMBERS and k & (k - 1) == 0 and own * s * k * 64 < MAX_ELEMENTS
    return "gpu" if fits and gpu_kernels(xyz) else None


def member_order(x: Float[Array, "S K ..."], where: str | None) -> Float[Array, ...]:
    """What each member of a cloud's patches has, in the order in which the kernels of `patch_kernel` take the
    points: on TPUs (S/8, 8K, ...), eight patches member by member, else as it is."""
    return _kernels("tpu").by_eights(x) if where == "tpu" else x


def patch_features(
    grouped: Float[Array, "B ... F"], layers: list[tuple[Array, Array]], where: str
) -> Float[Array, "B S C"]:
    """bfloat16 maxima over each patch of three layers relu(x W + b); no gradient to the points.

    Args:
      grouped: in the order of `member_order`.
      layers: (W, b) of each, F to 64, 64 to 64, and 64 to C channels.
      where: of `patch_kernel`.
    """
    weights = [w for layer in layers for w in layer]
    out: Any = _features(where, _arranged(jax.lax.stop_gradient(grouped), where), *weights)
    return out.reshape(len(grouped), -1, out.shape[-1])


def patch_training_fused(
    grouped: Float[Array, "B ... F"], layers: list[Layer], where: str
) -> tuple[Float[Array, "B S C"], list[tuple[Array, Array]]]:
    """`patch_training` in bfloat16 by the kernels of `patch_kernel`; no gradient to the points."""
    x = _arranged(jax.lax.stop_gradient(grouped), where)
    out, moments = patch_training(x, layers, _kernels(where).passes())
    return out.reshape(len(grouped), -1, out.shape[-1]), moments


def _kernels(where: str) -> Any:
    if where == "gpu":  # imported here, as importing Pallas takes a quarter of a second
        from openshape_jax.ops import patch_gpu

        return patch_gpu
    from openshape_jax.ops import patch_tpu

    return patch_tpu


def _arranged(grouped: Array, where: str) -> Array:
    """The points as the kernels take them."""
    return by_device(functools.partial(_kernels(where).arrange, dtype=jnp.bfloat16))(grouped)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _features(where: str, x: Array, *weights: Array) -> Float[Array, "n C"]:
    return by_device(_kernels(where).forward, len(weights))(x, *weights)


def _forward(where: str, x: Array, *weights: Array) -> tuple[Array, tuple[Array, ...]]:
    return _features(where, x, *weights), (x, *weights)


def _backward(where: str, kept: tuple[Array, ...], g: Array) -> Any:
    """In plain XLA: training does not come here, as there BatchNorm is not folded in."""
    x, *weights = kept

    def slopes(x: Array, g: Array, *weights: Array) -> tuple[Array, ...]:
        return plain_slopes(_kernels("tpu").rows(x) if where == "tpu" else x, g, *weights)

    shares = by_device(slopes, len(weights))(x, g, *weights)
    return jnp.zeros_like(x), *[share.sum(0) for share in shares]


_features.defvjp(_forward, _backward)


def plain_slopes(x: Float[Array, "n K F"], g: Float[Array, "n C"], *weights: Array) -> tuple[Array, ...]:
    """The gradients (1, ...) to the weights of a kernel's `forward`, from that to its result, in float32."""
    n, k, _ = x.shape
    count = next(c for c in range(1, n + 1) if n % c == 0 and (n // c * k <= CHUNK_ROWS or c == n))

    def features(x: Array, weights: list[Array]) -> Array:
        x = x[..., : len(weights[0])].reshape(-1, len(weights[0]))
        for kernel, bias in zip(weights[::2], weights[1::2], strict=True):
            y = jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)
            x = jax.nn.relu(y + bias).astype(x.dtype)
        return x.reshape(-1, k, x.shape[-1]).max(1)

    def one(chunk: tuple[Array, Array]) -> list[Array]:
        return jax.vjp(functools.partial(features, chunk[0]), list(weights))[1](chunk[1])[0]

    parts = jax.tree.map(lambda t: t.reshape(count, n // count, *t.shape[1:]), (x, g.astype(x.dtype)))
    return tuple(slope.sum(0, keepdims=True) for slope in jax.lax.map(one, parts))
