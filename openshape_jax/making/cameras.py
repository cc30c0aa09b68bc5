"""The twelve cameras by which a shape is looked at, and how they project.

OpenShape rendered 12 views at 60, 90 and 120 degrees from the up axis (four each) but released neither the
azimuths nor the distance. Ours: azimuths 90 degrees apart, turned by another offset at each elevation, so
that no two views share an azimuth; a field of view of 40 degrees, and the bounding sphere just inside it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

POLAR = (60.0, 90.0, 120.0)  # degrees from the up axis: from above, level, from below
OFFSET = (30.0, 60.0, 0.0)  # azimuth of the first camera at each: the first view of all is front right
AROUND = 4  # cameras at each elevation
FIELD = 40.0  # degrees, the full angle of view
MARGIN = 1.04  # the bounding sphere's share of the picture, inverse
DISTANCE = MARGIN / np.sin(np.radians(FIELD / 2))  # of the camera from the centre, in bounding radii


class Camera(NamedTuple):
    """Where a camera stands, looking at the centre with z up.

    Attributes:
      polar: degrees from the up axis (+z).
      azimuth: degrees from the front (-y) towards the right (+x).
    """

    polar: float
    azimuth: float

    @property
    def towards(self) -> np.ndarray:
        """(3,) unit vector from the centre to the camera."""
        polar, azimuth = np.radians([self.polar, self.azimuth])
        return np.array([np.sin(polar) * np.sin(azimuth), -np.sin(polar) * np.cos(azimuth), np.cos(polar)])

    @property
    def axes(self) -> np.ndarray:
        """(3, 3) rows: right, up, towards the camera."""
        azimuth = np.radians(self.azimuth)
        right = np.array([np.cos(azimuth), np.sin(azimuth), 0.0])
        return np.stack([right, np.cross(self.towards, right), self.towards])


CAMERAS = tuple(
    Camera(polar, (offset + 360.0 / AROUND * i) % 360.0)
    for polar, offset in zip(POLAR, OFFSET, strict=True)
    for i in range(AROUND)
)


class Frame(NamedTuple):
    """What is scaled to the unit sphere: x -> (x - center) / radius."""

    center: np.ndarray  # (3,) of the bounding box
    radius: float  # of the sphere about it that holds all

    def __call__(self, xyz: np.ndarray) -> np.ndarray:
        """(N, 3) points in the unit sphere."""
        return (xyz - self.center) / self.radius


def frame(xyz: np.ndarray) -> Frame:
    """The frame of (N, 3) points.

    Raises:
      ValueError: no point, a NaN or infinite coordinate, or no extent.
    """
    if len(xyz) == 0:
        raise ValueError("it has no points")
    if bad := int((~np.isfinite(xyz)).any(1).sum()):
        raise ValueError(f"{bad} of {len(xyz)} points have a NaN or infinite coordinate; repair it first")
    low, high = xyz.min(0), xyz.max(0)
    center = (low + high) / 2
    with np.errstate(over="ignore"):
        radius = float(np.sqrt(((xyz - center) ** 2).sum(1).max()))
    if not np.isfinite(radius):
        raise ValueError(f"a coordinate is {np.abs(xyz).max():.3g}, too large; rescale it first")
    if radius <= 1e-12 * max(1.0, float(np.abs(center).max())):
        raise ValueError(f"all {len(xyz)} points are equal ({center.tolist()}); a shape needs an extent")
    return Frame(center, radius)


def project(camera: Camera, xyz: np.ndarray, size: int) -> np.ndarray:
    """(N, 3): column and row, in pixels from the upper left corner, and depth in front of the camera.

    Args:
      xyz: (N, 3) points in the unit sphere.
      size: pixels of a side.
    """
    right, up, near = (xyz @ camera.axes.T).T
    depth = DISTANCE - near
    focal = size / 2 / np.tan(np.radians(FIELD / 2))
    return np.stack([size / 2 + focal * right / depth, size / 2 - focal * up / depth, depth], 1)


def rays(camera: Camera, columns: np.ndarray, rows: np.ndarray, size: int) -> np.ndarray:
    """(R, C, 3) float32 vectors from the camera through places of the picture, the inverse of `project`.

    Their length is that of the way to the plane through the centre.

    Args:
      columns: (C,) and rows: (R,), pixels from the upper left corner.
    """
    reach = np.tan(np.radians(FIELD / 2)) * DISTANCE / (size / 2)
    right, up, near = camera.axes
    across = (reach * (columns - size / 2))[:, None] * right
    down = (reach * (size / 2 - rows))[:, None] * up - DISTANCE * near
    return down.astype(np.float32)[:, None] + across.astype(np.float32)
