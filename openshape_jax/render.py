"""Small pictures of coloured point clouds, drawn with NumPy alone (no graphics library, no display)."""

from __future__ import annotations

import io
from collections.abc import Callable

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
    column = np.rint(view[:, 0] + side / 2).astype(np.int64)
    row = np.rint(side / 2 - view[:, 1]).astype(np.int64)
    top, bottom = _span(row, radius, size)
    left, right = _span(column, radius, size)
    spots = np.stack([row - 2 * top, column - 2 * left], 1)
    winner, depth = _splat(spots, view[:, 2], radius, (2 * (bottom - top), 2 * (right - left)))
    winner, depth = _draw_back(winner, depth, round(0.6 * typical), step=typical)
    colours = np.concatenate([np.clip(rgb, 0, 1), np.zeros((1, 3))])  # the last row is the background
    image = _halved(colours[winner] * _outline(depth)[..., None], np.add) / 4
    coverage = _halved((winner >= 0)[..., None].astype(float), np.add) / 4
    light = _light(_halved(depth, np.maximum) / 2, step=1.5 * typical)
    whole = np.zeros((size, size, 5))
    whole[..., 4] = 1
    whole[top:bottom, left:right] = np.concatenate([image, coverage, light[..., None]], -1)
    return whole[..., :3], whole[..., 3:4], whole[..., 4:]


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


def _span(places: np.ndarray, radius: np.ndarray, size: int) -> tuple[int, int]:
    """(first, end) of the rows or columns of a picture that discs reach, with one beside them.

    Args:
      places: (N,) rows or columns of the discs' middles, and radius: (N,), at twice the size.
      size: the picture's rows or columns.
    """
    first = np.clip((places - radius).min() // 2 - 1, 0, size - 1)
    end = np.clip((places + radius).max() // 2 + 2, first + 1, size)
    return int(first), int(end)


def _halved(pixels: np.ndarray, two: Callable[..., np.ndarray]) -> np.ndarray:
    """(H, W, ...) of (2H, 2W, ...): two by two pixels made one by a function of two arrays.

    This is several times as fast as NumPy's reductions over two axes.
    """
    rows = two(pixels[::2], pixels[1::2])
    return two(rows[:, ::2], rows[:, 1::2])


def _splat(
    spots: np.ndarray, towards: np.ndarray, radius: np.ndarray, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """((H, W) index of the nearest point or -1, (H, W) depth towards the camera or -inf).

    Args:
      spots: (N, 2) row and column of the discs' middles. towards: (N,) their depths.
      radius: (N,) pixels. shape: (H, W).
    """
    order = np.argsort(towards, kind="stable")
    rank = np.empty(len(towards), np.int64)
    rank[order] = np.arange(len(towards))
    reach = int(radius.max())
    # A rim so wide that no disc needs clipping that can be seen; the widest discs come first, so that those
    # that cover an offset are the first ones.
    rim = 2 * reach
    height, width = shape[0] + 2 * rim, shape[1] + 2 * rim
    spots = spots + rim
    inside = ((spots >= reach) & (spots < np.array([height, width]) - reach)).all(1)
    widest = np.flatnonzero(inside)[np.argsort(-radius[inside], kind="stable")]
    place, rank, square = spots[widest] @ np.array([width, 1]), rank[widest], radius[widest] ** 2
    best = np.full(height * width, -1, np.int64)  # rank in depth: the nearest point is the largest
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            covering = int(np.searchsorted(-square, -(dx * dx + dy * dy), side="right"))
            np.maximum.at(best, place[:covering] + (dy * width + dx), rank[:covering])
    best = best.reshape(height, width)[rim : height - rim, rim : width - rim]
    empty = best < 0
    return np.where(empty, -1, order[best]), np.where(empty, -np.inf, towards[order[best]])


def _draw_back(
    winner: np.ndarray, depth: np.ndarray, times: int, step: float
) -> tuple[np.ndarray, np.ndarray]:
    """Winner and depth after the borders of nearer layers moved back by `times` pixels.

    A border is where depth falls by more than `step` from one pixel to the next. Only pixels beside one are
    looked at: they are few.
    """
    from scipy import ndimage

    shape = (depth.shape[0] + 2, depth.shape[1] + 2)  # with a rim of background
    winner, depth = (np.pad(a, 1, constant_values=v).ravel() for a, v in ((winner, -1), (depth, -np.inf)))
    edges = np.array([-1, 1, -shape[1], shape[1]])
    all_eight = np.concatenate([edges, edges[2] + edges[:2], edges[3] + edges[:2]])
    lowest = ndimage.minimum_filter(depth.reshape(shape), 3, mode="nearest").ravel()
    beside_border = lowest < depth - step
    for i in range(times):
        near = np.flatnonzero(beside_border)
        # Edge neighbours and all eight in turn: the reach comes close to a disc's.
        around = near + (all_eight if i % 2 else edges)[:, None]
        source = around[depth[around].argmin(0), np.arange(len(near))]
        falls = depth[source] < depth[near] - step
        moved, source = near[falls], source[falls]
        winner[moved], depth[moved] = winner[source], depth[source]
        beside_border[moved + all_eight[:, None]] = True
        beside_border &= winner >= 0
    kept = np.s_[1:-1, 1:-1]
    return winner.reshape(shape)[kept], depth.reshape(shape)[kept]


def _light(depth: np.ndarray, step: float) -> np.ndarray:
    """(H, W) brightness, at most 1, of a depth picture in pixels; -inf is background."""
    covered = np.isfinite(depth)
    depth = np.where(covered, depth, 1e9)
    for _ in range(SMOOTHING):  # a mean that does not cross borders
        change, count = np.zeros_like(depth), np.ones_like(depth)
        for ahead, behind in ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[1:], np.s_[:-1])):
            rise = depth[ahead] - depth[behind]
            same = np.abs(rise) < step
            rise *= same
            change[ahead] -= rise
            change[behind] += rise
            count[ahead] += same
            count[behind] += same
        depth += change / count
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
