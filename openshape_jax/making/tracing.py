"""Pictures of textured meshes, by rays cast with Embree: no display, graphics driver or system library.

Colours are looked up where `mesh_sampling` looks them up for point clouds, so that pictures and points agree
to the texel: materials, vertex and face colours, textures, and holes where a texture is transparent. Every
machine draws the same picture, but for the last bit of a colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from openshape_jax.making import cameras
from openshape_jax.making.cameras import Camera
from openshape_jax.mesh_sampling import MIN_ALPHA, Part, colors_at

SAMPLES = 2  # rays a side of a pixel: adding two and two is ten times as fast as NumPy's mean of an axis
LAYERS = 8  # transparent surfaces that a ray passes, at most
AMBIENT, DIFFUSE = 0.5, 0.62  # brightness where no light falls, and what the light adds; at most 1 in all
LIGHT = np.array([-0.35, 0.5, 0.8])  # towards the light, in (right, up, towards the camera)
BEHIND = 3e-5  # of the way from the camera to the centre: where a ray goes on behind a hole

INSTALL = (
    "rendering needs Embree, which is not installed here: pip install 'openshape_jax[render]' (there are "
    "wheels for Linux on x86, macOS 13 or later, and Windows, none for Linux on ARM)."
)


def available() -> None:
    """Returns if Embree is installed.

    Raises:
      ValueError: it is not; says what installs it.
    """
    try:
        import embreex.mesh_construction  # noqa: F401
    except ImportError as error:
        raise ValueError(f"{INSTALL} ({error})") from error


def pictures(
    parts: Sequence[Part], views: Sequence[Camera] = cameras.CAMERAS, size: int = 512
) -> list[np.ndarray]:
    """A (size, size, 4) uint8 RGBA picture of a mesh from each camera; transparent where nothing is.

    Args:
      parts: z-up with the front towards -y, any unit.

    Raises:
      ValueError: no triangle, a NaN or infinite coordinate, no extent, or Embree is not installed.
    """
    parts = [part for part in parts if len(part.faces)]
    if not parts:
        raise ValueError("it has no faces; export it with its surface, or give points as .ply, .npy or .npz")
    corners = np.concatenate([part.vertices[part.faces].reshape(-1, 3) for part in parts])
    frame = cameras.frame(corners)
    triangles = frame(corners).astype(np.float32).reshape(-1, 3, 3)
    first = np.concatenate([[0], np.cumsum([len(part.faces) for part in parts])[:-1]])
    mesh = _Mesh(_scene(triangles), triangles, parts, first)
    return [_picture(mesh, camera, size) for camera in views]


class _Mesh(NamedTuple):
    scene: Any  # of Embree
    triangles: np.ndarray  # (F, 3, 3) float32 corners in the unit sphere
    parts: Sequence[Part]
    first: np.ndarray  # (P,) number of each part's first face


def _scene(triangles: np.ndarray) -> Any:
    available()
    from embreex.mesh_construction import TriangleMesh
    from embreex.rtcore_scene import EmbreeScene

    scene = EmbreeScene(robust=True)
    TriangleMesh(scene, triangles)
    return scene


def _picture(mesh: _Mesh, camera: Camera, size: int) -> np.ndarray:
    side = size * SAMPLES
    # Only places inside the shape's bounds can show it.
    spots = cameras.project(camera, mesh.triangles.reshape(-1, 3), side)[:, :2]
    left, top = np.maximum(np.floor(spots.min(0)), 0).astype(int)
    right, bottom = np.minimum(np.ceil(spots.max(0)) + 1, side).astype(int)
    direction = cameras.rays(camera, np.arange(left, right) + 0.5, np.arange(top, bottom) + 0.5, side)
    canvas = np.zeros((side, side, 4), np.float32)
    seen = _cast(mesh, camera, direction.reshape(-1, 3))
    canvas[top:bottom, left:right] = seen.reshape(bottom - top, right - left, 4)
    rows = canvas.reshape(size, SAMPLES, side, 4)
    rows = (rows[:, 0] + rows[:, 1]).reshape(size, size, SAMPLES, 4)
    return straight((rows[:, :, 0] + rows[:, :, 1]) / SAMPLES**2)


def _cast(mesh: _Mesh, camera: Camera, direction: np.ndarray) -> np.ndarray:
    """(n, 4) premultiplied colours in [0, 1] of what rays of (n, 3) directions meet."""
    out = np.zeros((len(direction), 4), np.float32)
    bright = _brightness(mesh.triangles, camera)
    active = np.arange(len(direction))
    start = np.tile((cameras.DISTANCE * camera.towards).astype(np.float32), (len(direction), 1))
    for _ in range(LAYERS):
        hits = mesh.scene.run(start, direction, output=True)
        met = np.flatnonzero(hits["primID"] >= 0)
        if not len(met):
            break
        face, u, v = hits["primID"][met], hits["u"][met], hits["v"][met]
        weights = np.stack([1 - u - v, u, v], 1)
        rgba = np.empty((len(met), 4), np.float32)
        owner = np.searchsorted(mesh.first, face, side="right") - 1
        for part in np.flatnonzero(np.bincount(owner)):
            mine = np.flatnonzero(owner == part)
            rgba[mine] = colors_at(mesh.parts[int(part)], face[mine] - mesh.first[part], weights[mine])
        shown = rgba[:, 3] >= MIN_ALPHA
        rgba[:, :3] *= bright[face, None]
        rgba[:, 3] = 1
        out[active[met[shown]]] = rgba[shown]
        behind = met[~shown]
        if not len(behind):
            break
        reach = hits["tfar"][behind, None] + np.float32(BEHIND)
        active, direction = active[behind], direction[behind]
        start = start[behind] + reach * direction
    return out


def _brightness(triangles: np.ndarray, camera: Camera) -> np.ndarray:
    """(F,) float32 factors of the triangles' colours: a light beside the camera, on the side that it sees.

    Many files have faces that are turned inside out.
    """
    corners = triangles.astype(np.float64)
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-30
    eye = cameras.DISTANCE * camera.towards
    normal *= np.where(((eye - corners[:, 0]) * normal).sum(1, keepdims=True) < 0, -1, 1)
    light = (LIGHT / np.linalg.norm(LIGHT)) @ camera.axes
    return np.clip(AMBIENT + DIFFUSE * np.clip(normal @ light, 0, 1), 0, 1).astype(np.float32)


def straight(canvas: np.ndarray) -> np.ndarray:
    """(H, W, 4) uint8 of premultiplied (H, W, 4) colours in [0, 1]: colour and coverage apart."""
    alpha = canvas[..., 3:]
    rgb = np.where(alpha > 0, canvas[..., :3] / np.maximum(alpha, 1e-6), 0)
    return np.rint(np.clip(np.concatenate([rgb, alpha], -1), 0, 1) * 255).astype(np.uint8)
