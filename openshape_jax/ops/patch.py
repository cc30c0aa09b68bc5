"""The kernel of set abstraction's MLP as an operation with gradients, and where it is used."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from openshape_jax.ops.dispatch import by_device, has_kernels
from openshape_jax.ops.placement import platform

MAX_TILE = 2048  # points of eight patches whose activations stand in VMEM


def has_patch_kernel(xyz: Array, grouped: tuple[int, ...], dtype: str) -> bool:
    """Whether `patch_features` takes points of shape (B, S, K, F): on TPUs in bfloat16, patches in eights.

    Args:
      xyz: the clouds, which tell for which devices the program is.
    """
    _, s, k, _ = grouped
    fits = dtype == "bfloat16" and s % 8 == 0 and 8 * k <= MAX_TILE and 8 * k % 128 == 0
    return fits and platform(xyz) == "tpu" and has_kernels("tpu")


def patch_features(
    grouped: Float[Array, "B S K F"], layers: list[tuple[Array, Array]]
) -> Float[Array, "B S C"]:
    """bfloat16 maxima over each patch of three layers relu(x W + b); no gradient to the points.

    Args:
      layers: (W, b) of each, F to 64, 64 to 64, and 64 to C channels.
    """
    from openshape_jax.ops import patch_tpu  # here, as importing Pallas takes a quarter of a second

    tiles = by_device(patch_tpu.tiles)(jax.lax.stop_gradient(grouped))
    out = _features(tiles, *[w for layer in layers for w in layer])
    return out.reshape(*grouped.shape[:2], -1)


@jax.custom_vjp
def _features(tiles: Array, *weights: Array) -> Array:
    from openshape_jax.ops import patch_tpu

    return by_device(patch_tpu.forward, len(weights))(tiles, *weights)


def _forward(tiles: Array, *weights: Array) -> tuple[Array, tuple[Array, ...]]:
    return _features(tiles, *weights), (tiles, *weights)


def _backward(kept: tuple[Array, ...], g: Array) -> Any:
    from openshape_jax.ops import patch_tpu

    tiles, *weights = kept
    shares = by_device(patch_tpu.backward, len(weights))(tiles, g, *weights)
    return jnp.zeros_like(tiles), *[share.sum(0) for share in shares]


_features.defvjp(_forward, _backward)
