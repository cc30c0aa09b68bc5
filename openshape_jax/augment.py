"""Normalisation and augmentation on the device, jitted with the step.

Written for one cloud (N, 3) with its key and vmapped; the order of operations is OpenShape's, with
departures marked. All coordinates are z-up.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num, PRNGKeyArray, UInt

from openshape_jax.config import AugmentConfig
from openshape_jax.data.schema import GRAY
from openshape_jax.ops import gather

PROBED = 128  # points that place the cut of `partial`
FEWEST = 64  # distinct points that `sparse` and `partial` keep at least


def dequantize(xyz: UInt[Array, "... 3"], rgb: UInt[Array, "... 3"]) -> tuple[Array, Array]:
    """(xyz in [-1, 1], rgb in [0, 1]) float32 of stored uint16 and uint8 codes."""
    return xyz.astype(jnp.float32) * (2 / 65535) - 1, rgb.astype(jnp.float32) * (1 / 255)


def shuffle(key: PRNGKeyArray, xyz: Num[Array, "B N 3"], rgb: Num[Array, "B N 3"]) -> tuple[Array, Array]:
    """The points of each cloud in a random order of its own (ball query takes the first hits)."""
    order = jnp.argsort(jax.random.bits(key, xyz.shape[:2]), axis=1)
    both = jnp.concatenate([xyz.astype(jnp.float32), rgb.astype(jnp.float32)], -1)  # codes stay exact
    moved = jax.vmap(gather)(both, order)
    return moved[..., :3].astype(xyz.dtype), moved[..., 3:].astype(rgb.dtype)


def unit_sphere(xyz: Float[Array, "N 3"], count: Int[Array, ""] | None = None) -> Float[Array, "N 3"]:
    """The cloud centred on its mean with largest norm 1; coincident points all become 0.

    Args:
      count: how many points at the front are the cloud; the rest repeats some of them. None: all.
    """
    share = jnp.full(len(xyz), 1 / len(xyz)) if count is None else (jnp.arange(len(xyz)) < count) / count
    centred = xyz - (share[:, None] * xyz).sum(0)
    return centred * jax.lax.rsqrt(jnp.maximum(jnp.square(centred).sum(1).max(), 1e-12))


def rotation(axis: int, angle: Array) -> Float[Array, "3 3"]:
    """The matrix that turns column vectors by `angle` radians about an axis (0 x, 1 y, 2 z)."""
    c, s = jnp.cos(angle), jnp.sin(angle)
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    return jnp.eye(3).at[i, i].set(c).at[j, j].set(c).at[i, j].set(-s).at[j, i].set(s)


def _keep_some(key: PRNGKeyArray, xyz: Array, config: AugmentConfig) -> Array:
    """Indices (N,): all points, or those of a partial or sparse view repeated to N.

    Departure: OpenShape trains on complete, dense clouds only.
    """
    n = xyz.shape[0]
    use_partial, use_sparse, direction, cut, count = jax.random.split(key, 5)
    normal = jax.random.normal(direction, (3,))
    height = xyz @ (normal / jnp.linalg.norm(normal))
    share = jax.random.uniform(cut, minval=0.4, maxval=0.9)
    # Points are stored shuffled: some of them place the cut as well as all, and need no large sort.
    level = jnp.quantile(height[:PROBED], share)
    keep = ~jax.random.bernoulli(use_partial, config.partial) | (height <= level)
    low = min(FEWEST, n)
    few = jnp.exp(jax.random.uniform(count, minval=jnp.log(float(low)), maxval=jnp.log(float(n))))
    limit = jnp.where(jax.random.bernoulli(use_sparse, config.sparse), few, n).astype(jnp.int32)
    slot = jnp.where(keep, jnp.cumsum(keep) - 1, n)  # kept points first, in index order; others nowhere
    order = jnp.zeros(n, jnp.int32).at[slot].set(jnp.arange(n, dtype=jnp.int32), mode="drop")
    kept = jnp.clip(keep.sum(), 1, limit)
    return order[jnp.arange(n) % kept]


def augment_one(
    key: PRNGKeyArray, xyz: Float[Array, "N 3"], rgb: Float[Array, "N 3"], config: AugmentConfig
) -> tuple[Float[Array, "N 3"], Float[Array, "N 3"]]:
    """One augmented cloud: xyz about the unit sphere, rgb in [0, 1]."""
    n = xyz.shape[0]
    keys = iter(jax.random.split(key, 12))
    keep_key = next(keys)
    if config.partial or config.sparse:
        index = _keep_some(keep_key, xyz, config)
        xyz, rgb = xyz[index], rgb[index]
    xyz = unit_sphere(xyz)
    ratio = jax.random.uniform(next(keys)) * config.dropout
    dropped = jax.random.uniform(next(keys), (n,)) < ratio
    xyz = jnp.where(dropped[:, None], xyz[0], xyz)
    size = jax.random.uniform(next(keys), minval=config.scale_low, maxval=config.scale_high)
    stretch = jax.random.uniform(next(keys), (3,), minval=-config.stretch, maxval=config.stretch)
    flip = jnp.where(jax.random.bernoulli(next(keys), config.mirror), -1.0, 1.0)
    factors = size * jnp.exp(stretch) * jnp.array([1.0, 1.0, 1.0]).at[0].set(flip)
    shift = jax.random.uniform(next(keys), (3,), minval=-config.shift, maxval=config.shift)
    tilt = config.tilt_sigma * jax.random.normal(next(keys), (3,))
    tilt = jnp.clip(tilt, -config.tilt_clip, config.tilt_clip)
    heading = jax.random.uniform(next(keys), minval=-jnp.pi, maxval=jnp.pi) * config.azimuth
    # x, y, z in turn, then the heading: one matrix for all of them.
    turn = rotation(2, tilt[2] + heading) @ rotation(1, tilt[1]) @ rotation(0, tilt[0])
    xyz = (xyz * factors + shift) @ turn.T
    sigma, noise = jax.random.split(next(keys))
    if config.noise_sigma:
        xyz = xyz + config.noise_sigma * jax.random.uniform(sigma) * jax.random.normal(noise, xyz.shape)
    rgb = jnp.where(jax.random.bernoulli(next(keys), config.gray), GRAY, rgb)
    return xyz, rgb


def augment(
    key: PRNGKeyArray, xyz: Float[Array, "B N 3"], rgb: Float[Array, "B N 3"], config: AugmentConfig
) -> tuple[Float[Array, "B N 3"], Float[Array, "B N 3"]]:
    """The batch augmented, each cloud with its own key; only normalised when augmentation is off."""
    if not config.enabled:
        return jax.vmap(unit_sphere)(xyz), rgb
    keys = jax.random.split(key, xyz.shape[0])
    return jax.vmap(lambda k, x, c: augment_one(k, x, c, config))(keys, xyz, rgb)
