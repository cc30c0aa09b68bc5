"""Small pictures of coloured point clouds, drawn with NumPy alone (no graphics library, no display)."""

from __future__ import annotations

import io

import numpy as np

AZIMUTH = np.radians(32)  # of the camera, from the front (-y) towards the right (+x)
ELEVATION = np.radians(22)
LIGHT = np.array([-0.42, 0.66, 0.62])  # towards the light, in (right, up, towards the camera)
NEIGHBOURS = 10  # that give a point its normal and its spacing
MOST_POINTS = 10_000  # drawn; more add time, not detail, at this size
MARGIN = 0.05  # of the picture's side, left free on every side
AMBIENT = 0.58  # brightness of what the light does not reach
SMOOTHING = 20  # rounds over the depth picture before its slope is taken


def picture(xyz: np.ndarray, rgb: np.ndarray, size: int = 160) -> np.ndarray:
    """(size, size, 3) uint8 picture of a cloud on white, seen from the front right and a little above.

    Every point becomes a disc, as wide as the cloud is sparse there, in a depth buffer. The borders of
    nearer layers are then drawn back by part of a disc's radius, so that thin parts stay thin. The smoothed
    depth gives a slope and with it light from the upper left: the points themselves need no normals, which
    are ill-defined for thin boards.

    Args:
      xyz: (N, 3) z-up with the front towards -y, any unit. rgb: (N, 3) in [0, 1].
      size: pixels of a side.

    Raises:
      ValueError: no point, shapes that do not fit, or a NaN or infinite coordinate.
    """
    xyz, rgb = np.asarray(xyz, np.float64), np.asarray(rgb, np.float64)
    if xyz.ndim != 2 or xyz.shape[1:] != (3,) or len(xyz) == 0 or xyz.shape != rgb.shape:
        raise ValueError(f"xyz has shape {xyz.shape} and rgb {rgb.shape}; both must be (N, 3) with N >= 1.")
    if not np.isfinite(xyz).all():
        raise ValueError("xyz has a NaN or infinite coordinate; remove such points first.")
    if len(xyz) > MOST_POINTS:
        chosen = np.random.default_rng(0).choice(len(xyz), MOST_POINTS, replace=False)
        xyz, rgb = xyz[chosen], rgb[chosen]
    colour, coverage, light = discs(_to_view(xyz, 2 * size), rgb, size)
    return np.rint((colour + 1 - coverage) * light * 255).astype(np.uint8)


def discs(view: np.ndarray, rgb: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(colour times coverage (size, size, 3), coverage (size, size, 1), light (size, size, 1)) of a cloud.

    Args:
      view: (N, 3) column and row from the middle to the right and up, and towards the camera, in pixels of
        half the size: it is drawn at twice the size and averaged.
      rgb: (N, 3) in [0, 1].
      size: pixels of a side.
    """
    side = 2 * size
    radius = 0.8 * _spacing(view)
    typical = float(np.clip(np.median(radius), 2.0, side / 30))
    radius = np.clip(radius, 2.0, 1.4 * typical)
    winner, depth = _splat(view, radius, side)
    winner, depth = _draw_back(winner, depth, round(0.6 * typical), step=typical)
    image = np.concatenate([np.clip(rgb, 0, 1), np.zeros((1, 3))])[winner]  # the last row is the background
    image *= _outline(depth)[..., None]
    image = image.reshape(size, 2, size, 2, 3).mean((1, 3))
    coverage = (winner >= 0).reshape(size, 2, size, 2).mean((1, 3))
    light = _light(depth.reshape(size, 2, size, 2).max((1, 3)) / 2, step=1.5 * typical)
    return image, coverage[..., None], light[..., None]


def png(pixels: np.ndarray) -> bytes:
    """The PNG file of an (H, W, 3) uint8 picture, reduced to 128 colours."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).quantize(128).save(buffer, "png", optimize=True)
    return buffer.getvalue()


def _to_view(xyz: np.ndarray, side: int) -> np.ndarray:
    """(N, 3) pixels: column, up, towards the camera, fitted into a (side, side) picture."""
    right = np.array([np.cos(AZIMUTH), np.sin(AZIMUTH), 0.0])
    towards = np.array(
        [np.sin(AZIMUTH) * np.cos(ELEVATION), -np.cos(AZIMUTH) * np.cos(ELEVATION), np.sin(ELEVATION)]
    )
    view = (xyz - xyz.mean(0)) @ np.stack([right, np.cross(towards, right), towards], 1)
    low, high = view.min(0), view.max(0)
    extent = max(float((high - low)[:2].max()), 1e-9 * float(np.abs(xyz).max()), 1e-30)
    return (view - (low + high) / 2) / extent * ((1 - 2 * MARGIN) * side - 1)


def _spacing(view: np.ndarray) -> np.ndarray:
    """(N,) distance to the farthest of a few neighbours."""
    from scipy.spatial import KDTree

    k = min(NEIGHBOURS, len(view))
    distance, _ = KDTree(view).query(view, k=k)
    return np.reshape(distance, (len(view), k))[:, -1]


def _splat(view: np.ndarray, radius: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """((side, side) index of the nearest point or -1, (side, side) depth towards the camera or -inf)."""
    column = np.rint(view[:, 0] + side / 2).astype(np.int64)
    row = np.rint(side / 2 - view[:, 1]).astype(np.int64)
    order = np.argsort(view[:, 2], kind="stable")
    rank = np.empty(len(view), np.int64)
    rank[order] = np.arange(len(view))
    best = np.full(side * side, -1, np.int64)  # rank in depth: the nearest point is the largest
    reach = int(radius.max())
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            x, y = column + dx, row + dy
            mine = (radius**2 >= dx * dx + dy * dy) & (x >= 0) & (x < side) & (y >= 0) & (y < side)
            np.maximum.at(best, (y * side + x)[mine], rank[mine])
    best = best.reshape(side, side)
    empty = best < 0
    return np.where(empty, -1, order[best]), np.where(empty, -np.inf, view[order[best], 2])


def _draw_back(
    winner: np.ndarray, depth: np.ndarray, times: int, step: float
) -> tuple[np.ndarray, np.ndarray]:
    """Winner and depth after the borders of nearer layers moved back by `times` pixels.

    A border is where depth falls by more than `step` from one pixel to the next.
    """
    for i in range(times):
        # Edge neighbours and all eight in turn: the reach comes close to a disc's.
        shifts = [(0, 1), (0, -1), (1, 0), (-1, 0)]
        if i % 2:
            shifts += [(1, 1), (1, -1), (-1, 1), (-1, -1)]
        new_winner, new_depth = winner, depth
        for shift in shifts:
            other = np.roll(depth, shift, (0, 1))
            falls = (other < depth - step) & (other < new_depth)
            new_depth = np.where(falls, other, new_depth)
            new_winner = np.where(falls, np.roll(winner, shift, (0, 1)), new_winner)
        winner, depth = new_winner, new_depth
    return winner, depth


def _light(depth: np.ndarray, step: float) -> np.ndarray:
    """(H, W) brightness, at most 1, of a depth picture in pixels; -inf is background."""
    shifts = ((0, 1), (0, -1), (1, 0), (-1, 0))
    covered = np.isfinite(depth)
    depth = np.where(covered, depth, 1e9)
    for _ in range(SMOOTHING):  # a mean that does not cross borders
        total, count = depth.copy(), np.ones_like(depth)
        for shift in shifts:
            other = np.roll(depth, shift, (0, 1))
            same = np.abs(other - depth) < step
            total += np.where(same, other, 0)
            count += same
        depth = total / count
    slope = []
    for axis, sign in ((1, 1), (0, -1)):  # to the right, and up
        ahead, behind = np.roll(depth, -1, axis) - depth, depth - np.roll(depth, 1, axis)
        steps = [np.where(np.abs(d) < step, d, np.nan) for d in (ahead, behind)]
        known = np.isfinite(steps).sum(0)
        slope.append(sign * np.nansum(steps, 0) / np.maximum(known, 1))
    normal = np.stack([-slope[0], -slope[1], np.ones_like(depth)], -1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    light = normal @ (LIGHT / np.linalg.norm(LIGHT))
    return np.where(covered, AMBIENT + (1 - AMBIENT) * np.clip(1.15 * light, 0, 1), 1.0)


def _outline(depth: np.ndarray) -> np.ndarray:
    """(side, side) factors that darken the silhouette a little: white things are seen on white."""
    covered = np.isfinite(depth)
    inside = covered.copy()
    for axis in (0, 1):
        for shift in (-1, 1):
            inside &= np.roll(covered, shift, axis)
    return np.where(covered & ~inside, 0.7, 1.0)
