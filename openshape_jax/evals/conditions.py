"""What robustness is measured against: fewer points, noise, gaps, cuts, turns, no colour, size, place.

A condition changes one cloud on the host. The cloud has been normalised before (mean 0, largest norm 1), so
that lengths are in units of that sphere, and is normalised again by the model, as any cloud that a user has;
but for "scale" and "shift", which normalisation would undo: there the encoder sees the changed cloud as it
is, as it happens where a stray point or a part of the floor has moved the centre and the radius.
Clouds are z-up. All levels of a kind share their random numbers, so that curves show the level alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from openshape_jax.data.schema import GRAY

HOLES = 4  # balls without points in the condition "holes"
ANY = 180.0  # degrees of a turn that stand for any orientation

# (xyz (N, 3), rgb (N, 3), level, generator) -> the same of the points that are left, in their order
Change = Callable[[np.ndarray, np.ndarray, float, np.random.Generator], tuple[np.ndarray, np.ndarray]]


class Kind(NamedTuple):
    """One way to change a cloud, and how severely."""

    title: str
    axis: str  # what the level is, with its unit
    levels: tuple[float, ...]  # from mild to severe where it has an order
    clean: float  # the level that changes nothing
    change: Change
    normalized: bool = True  # whether the model normalises the changed cloud


class Condition(NamedTuple):
    """A kind at one of its levels."""

    kind: str
    level: float

    @property
    def clean(self) -> bool:
        """Whether nothing is changed."""
        return self.level == KINDS[self.kind].clean

    @property
    def normalized(self) -> bool:
        """Whether the model normalises the changed cloud."""
        return KINDS[self.kind].normalized


def fewer(xyz: np.ndarray, rgb: np.ndarray, level: float, rng: np.random.Generator) -> Any:
    """The first `level` points: those of the smaller draw, as clouds are drawn in random order; 0: all."""
    count = int(level) or len(xyz)
    return xyz[:count], rgb[:count]


def noise(xyz: np.ndarray, rgb: np.ndarray, level: float, rng: np.random.Generator) -> Any:
    """Gaussian noise of standard deviation `level` on every coordinate."""
    return xyz + level * rng.normal(size=xyz.shape), rgb


def dropout(xyz: np.ndarray, rgb: np.ndarray, level: float, rng: np.random.Generator) -> Any:
    """Each point is lost with probability `level`, but for the one that would have been lost last."""
    chance = rng.random(len(xyz))
    kept = (chance >= level) | (chance == chance.max())
    return xyz[kept], rgb[kept]


def holes(xyz: np.ndarray, rgb: np.ndarray, level: float, rng: np.random.Generator) -> Any:
    """HOLES balls are emptied about points of the cloud, each of the same share; `level` of all are lost."""
    kept = np.arange(len(xyz))
    centres = rng.random(HOLES)
    each = np.diff(np.rint(np.linspace(0, level * len(xyz), HOLES + 1)).astype(int))
    for place, lost in zip(centres, each, strict=True):
        left = xyz[kept]
        distance = np.square(left - left[int(place * len(kept))]).sum(1)
        kept = np.sort(kept[np.argsort(distance, kind="stable")[min(lost, len(kept) - 1) :]])
    return xyz[kept], rgb[kept]


def cut(xyz: np.ndarray, rgb: np.ndarray, level: float, rng: np.random.Generator) -> Any:
    """A half-space is missing: the `level` share of points furthest along a random direction."""
    height = xyz @ _direction(rng)
    count = max(len(xyz) - round(level * len(xyz)), 1)
    kept = np.sort(np.argsort(height, kind="stable")[:count])
    return xyz[kept], rgb[kept]


def turn_z(xyz: np.ndarray, rgb: np.ndarray, level: float, rng: np.random.Generator) -> Any:
    """Turned about the axis that points up by an angle drawn from -level to level degrees."""
    return xyz @ _rotation(np.array([0.0, 0.0, 1.0]), level * rng.uniform(-1, 1)).T, rgb


def turn(xyz: np.ndarray, rgb: np.ndarray, level: float, rng: np.random.Generator) -> Any:
    """Turned by `level` degrees about a random axis; at ANY, by a rotation drawn uniformly from SO(3)."""
    from scipy.spatial.transform import Rotation

    if level == ANY:  # the direction of a Gaussian quaternion is uniform, and so is its rotation
        return xyz @ Rotation.from_quat(rng.normal(size=4)).as_matrix().T, rgb
    return xyz @ _rotation(_direction(rng), level).T, rgb


def colourless(xyz: np.ndarray, rgb: np.ndarray, level: float, rng: np.random.Generator) -> Any:
    """The `level` share of the points has no colour: it is the grey that stands for none."""
    return xyz, np.where(rng.random(len(xyz))[:, None] < level, np.float32(GRAY), rgb)


def scale(xyz: np.ndarray, rgb: np.ndarray, level: float, rng: np.random.Generator) -> Any:
    """`level` times as large."""
    return xyz * level, rgb


def shift(xyz: np.ndarray, rgb: np.ndarray, level: float, rng: np.random.Generator) -> Any:
    """Moved by `level` in a random direction."""
    return xyz + level * _direction(rng), rgb


def _direction(rng: np.random.Generator) -> np.ndarray:
    vector = rng.normal(size=3)
    return vector / np.linalg.norm(vector)


def _rotation(axis: np.ndarray, degrees: float) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    return Rotation.from_rotvec(np.deg2rad(degrees) * axis).as_matrix()


KINDS: dict[str, Kind] = {
    "points": Kind("Number of points", "points", (0, 5000, 2048, 1024, 512, 256, 128), 0, fewer),
    "noise": Kind("Noise", "standard deviation, of the radius", (0, 0.005, 0.01, 0.02, 0.05, 0.1), 0, noise),
    "dropout": Kind("Dropout", "share of points lost at random", (0, 0.25, 0.5, 0.75, 0.9), 0, dropout),
    "holes": Kind("Holes", "share of points lost in four balls", (0, 0.1, 0.25, 0.5, 0.75), 0, holes),
    "cut": Kind(
        "Partial views", "share of points cut off by a half-space", (0, 0.1, 0.25, 0.5, 0.75), 0, cut
    ),
    "rotation_z": Kind("Heading", "largest turn about z, degrees", (0, 15, 45, 90, ANY), 0, turn_z),
    "rotation": Kind(
        "Orientation",
        "turn about any axis, degrees (180: uniform in SO(3))",
        (0, 15, 30, 60, 90, ANY),
        0,
        turn,
    ),
    "colour": Kind(
        "Missing colour", "share of points without colour (grey 0.4)", (0, 0.25, 0.5, 0.75, 1), 0, colourless
    ),
    "scale": Kind("Scale", "size, not normalised", (0.5, 0.7, 0.85, 1, 1.2, 1.5, 2), 1, scale, False),
    "shift": Kind("Shift", "distance in radii, not normalised", (0, 0.1, 0.2, 0.3, 0.5), 0, shift, False),
}


def levels(kind: str, num_points: int) -> list[float]:
    """The levels of a kind for a model of `num_points` points: "points" leaves out what is no less."""
    found = KINDS[kind].levels
    return [level for level in found if kind != "points" or level < num_points]


def changed(
    condition: Condition, xyz: np.ndarray, rgb: np.ndarray, keys: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """(xyz, rgb) float32 of the points that are left of one cloud, at least one, in their order.

    Args:
      xyz: (N, 3) coordinates, z-up, any size; normalised here. rgb: (N, 3) in [0, 1].
      keys: numbers, those of the cloud and the draw, of which all randomness is a function.
    """
    rng = np.random.default_rng([zlib.crc32(condition.kind.encode()), *keys])
    centred = xyz.astype(np.float64) - xyz.mean(0, dtype=np.float64)
    unit = centred / max(float(np.sqrt(np.square(centred).sum(1).max())), 1e-12)
    new_xyz, new_rgb = KINDS[condition.kind].change(unit, rgb, condition.level, rng)
    return new_xyz.astype(np.float32), np.asarray(new_rgb, np.float32)
