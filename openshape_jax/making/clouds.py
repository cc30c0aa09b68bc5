"""Pictures of point clouds from the same cameras: every point a disc, as wide as the cloud is sparse."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from openshape_jax import render
from openshape_jax.data.schema import GRAY
from openshape_jax.geometry_io import RawPoints
from openshape_jax.making import cameras
from openshape_jax.making.cameras import Camera
from openshape_jax.making.tracing import straight


def pictures(
    points: RawPoints, views: Sequence[Camera] = cameras.CAMERAS, size: int = 512
) -> list[np.ndarray]:
    """A (size, size, 4) uint8 RGBA picture of a cloud from each camera; transparent where nothing is.

    Args:
      points: z-up with the front towards -y, any unit; grey where they have no colour.

    Raises:
      ValueError: no point, a NaN or infinite coordinate, or no extent.
    """
    xyz = points.xyz
    rgb = np.full(xyz.shape, GRAY) if points.rgb is None else np.asarray(points.rgb, np.float64)
    unit = cameras.frame(xyz)(xyz)
    if len(unit) > render.MOST_POINTS:
        chosen = np.random.default_rng(0).choice(len(unit), render.MOST_POINTS, replace=False)
        unit, rgb = unit[chosen], rgb[chosen]
    return [_picture(unit, rgb, camera, size) for camera in views]


def _picture(unit: np.ndarray, rgb: np.ndarray, camera: Camera, size: int) -> np.ndarray:
    side = 2 * size
    column, row, depth = cameras.project(camera, unit, side).T
    focal = side / 2 / np.tan(np.radians(cameras.FIELD / 2))
    near = (cameras.DISTANCE - depth) * focal / cameras.DISTANCE  # in pixels as they are at the centre
    view = np.stack([column - side / 2, side / 2 - row, near], 1)
    colour, coverage, light = render.discs(view, rgb, size)
    return straight(np.concatenate([colour * light, coverage], -1))
