"""Small pictures of coloured point clouds, drawn with NumPy alone."""

from __future__ import annotations

import io

import numpy as np

AZIMUTH = np.radians(32)  # of the camera, from the front (-y) towards the right (+x)
ELEVATION = np.radians(22)


def picture(xyz: np.ndarray, rgb: np.ndarray, size: int = 160) -> np.ndarray:
    """(size, size, 3) uint8 picture of a cloud on white, seen from the front right and a little above.

    Points become discs in a depth buffer; edges in depth are darkened (eye-dome lighting, Boucheny 2009),
    which gives shape without normals.

    Args:
      xyz: (N, 3) z-up with the front towards -y, any unit. rgb: (N, 3) in [0, 1].
    """
    big = 2 * size  # drawn at twice the size and averaged
    centred = xyz - (xyz.max(0) + xyz.min(0)) / 2
    right = np.array([np.cos(AZIMUTH), np.sin(AZIMUTH), 0.0])
    towards = np.array(
        [np.sin(AZIMUTH) * np.cos(ELEVATION), -np.cos(AZIMUTH) * np.cos(ELEVATION), np.sin(ELEVATION)]
    )
    up = np.cross(towards, right)
    view = centred @ np.stack([right, up, towards], 1)
    extent = max(np.ptp(view[:, 0]), np.ptp(view[:, 1]), 1e-9)
    view = (view - [*((view[:, :2].max(0) + view[:, :2].min(0)) / 2), 0]) / extent
    column = np.rint((view[:, 0] * 0.9 + 0.5) * (big - 1)).astype(int)
    row = np.rint((0.5 - view[:, 1] * 0.9) * (big - 1)).astype(int)

    radius = max(3, round(1.3 * big / np.sqrt(len(xyz))))  # wide enough to hide the points behind
    steps = np.arange(-radius, radius + 1)
    dx, dy = np.meshgrid(steps, steps)
    disc = dx**2 + dy**2 <= radius**2
    columns = np.clip(column[:, None] + dx[disc], 0, big - 1)
    rows = np.clip(row[:, None] + dy[disc], 0, big - 1)
    order = np.argsort(view[:, 2], kind="stable")  # far to near: the nearest is written last
    flat = (rows * big + columns)[order]
    depth = np.full(big * big, -np.inf)
    image = np.ones((big * big, 3))
    depth[flat] = np.broadcast_to(view[order, 2, None], flat.shape)
    image[flat] = np.broadcast_to(np.clip(rgb, 0, 1)[order, None], (*flat.shape, 3))
    depth, image = depth.reshape(big, big), image.reshape(big, big, 3)

    covered = np.isfinite(depth)
    filled = np.where(covered, depth, -2.0)
    darkness = np.zeros((big, big))
    for shift in ((4, 0), (-4, 0), (0, 4), (0, -4)):
        darkness += np.clip(np.roll(filled, shift, (0, 1)) - filled - 0.02, 0, 0.12)
    inside = covered.copy()
    for shift in ((2, 0), (-2, 0), (0, 2), (0, -2)):
        inside &= np.roll(covered, shift, (0, 1))
    shade = np.where(covered, np.exp(-2.5 * darkness) * np.where(inside, 1.0, 0.75), 1.0)
    image = image * shade[..., None]
    small = image.reshape(size, 2, size, 2, 3).mean((1, 3))
    return np.rint(small * 255).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    """The PNG file of an (H, W, 3) uint8 picture."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).quantize(128).save(buffer, "png", optimize=True)
    return buffer.getvalue()
