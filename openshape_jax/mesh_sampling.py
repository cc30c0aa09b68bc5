"""Area-uniform coloured points of triangle meshes: `Part` holds the triangles, `sample` the mathematics.

NumPy only. Colours are display colours in [0, 1] as the file states them; as in OpenShape's own
preparation, glTF factors are taken as they are, not converted from linear light.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from openshape_jax.data.schema import GRAY

MAX_IMAGE_PIXELS = 64_000_000  # larger textures are refused: they are bombs or mistakes
TEXTURE_SIDE = 1024  # textures are reduced to this many texels a side: less aliasing, less memory
MIN_ALPHA = 0.25  # texels below are holes (leaf cut-outs, nets, decals): no point is put there
_IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TGA", "WEBP", "TIFF", "PPM")


class Part(NamedTuple):
    """Triangles with one source of colour; of several sources the first is used."""

    vertices: np.ndarray  # (V, 3) float64
    faces: np.ndarray  # (F, 3) int, into vertices
    uv: np.ndarray | None = None  # (U, 2) texture coordinates, origin bottom left, repeating
    uv_faces: np.ndarray | None = None  # (F, 3) int, into uv
    texture: np.ndarray | None = None  # (H, W, 4) uint8 RGBA
    vertex_rgb: np.ndarray | None = None  # (V, 3) in [0, 1]
    face_rgb: np.ndarray | None = None  # (F, 3) in [0, 1]
    color: np.ndarray | None = None  # (3,) in [0, 1]

    @property
    def textured(self) -> bool:
        """Whether the texture can be used: it needs texture coordinates."""
        return self.texture is not None and self.uv is not None and self.uv_faces is not None

    @property
    def has_color(self) -> bool:
        """Whether the file states any colour for this part."""
        return self.textured or any(c is not None for c in (self.vertex_rgb, self.face_rgb, self.color))


def triangle_areas(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(F,) areas of triangles, from (V, 3) vertices and (F, 3) indices."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    return np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2


def look_up(texture: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """(n, 4) colours in [0, 1] of the texels nearest to (n, 2) coordinates.

    The origin is the bottom left corner of the picture, and the picture repeats outside [0, 1).
    """
    height, width = texture.shape[:2]
    uv = np.where(np.isfinite(uv), uv, 0.0) % 1.0
    column = np.minimum((uv[:, 0] * width).astype(np.intp), width - 1)
    row = np.minimum(((1.0 - uv[:, 1]) * height).astype(np.intp), height - 1)
    return texture[row, column] / np.float32(255)


def colors_at(part: Part, face: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(n, 4) RGBA of points given as face numbers (n,) and barycentric weights (n, 3)."""
    rgba = np.ones((len(face), 4), np.float32)
    if part.textured:
        uv = np.einsum("nk,nkd->nd", weights, part.uv[part.uv_faces[face]])  # type: ignore[index]
        rgba = look_up(part.texture, uv)  # type: ignore[arg-type]
    elif part.vertex_rgb is not None:
        rgba[:, :3] = np.einsum("nk,nkd->nd", weights, part.vertex_rgb[part.faces[face]])
    elif part.face_rgb is not None:
        rgba[:, :3] = part.face_rgb[face]
    else:
        rgba[:, :3] = GRAY if part.color is None else part.color
    return rgba


def _draw(
    parts: Sequence[Part], cumulative: np.ndarray, first: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(count, 3) points and their (count, 4) colours; `first[i]` is the number of part i's first face."""
    # searchsorted on the right side never picks a triangle without area
    pick = np.searchsorted(cumulative, rng.random(count) * cumulative[-1], side="right")
    pick = np.minimum(pick, len(cumulative) - 1)
    # uniform in a triangle: Osada et al. 2002, "Shape distributions", equation 1
    root, along = np.sqrt(rng.random(count)), rng.random(count)
    weights = np.stack([1 - root, root * (1 - along), root * along], 1)
    xyz, rgba = np.empty((count, 3)), np.empty((count, 4), np.float32)
    owner = np.searchsorted(first, pick, side="right") - 1
    for i in np.unique(owner):
        mine = owner == i
        face, w = pick[mine] - first[i], weights[mine]
        xyz[mine] = np.einsum("nk,nkd->nd", w, parts[i].vertices[parts[i].faces[face]])
        rgba[mine] = colors_at(parts[i], face, w)
    return xyz, rgba


def sample(
    parts: Sequence[Part], num_points: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, bool]:
    """(xyz (N, 3) float64, rgb (N, 3) float32 in [0, 1], has_color): points uniform in area, in random order.

    Invisible texels (alpha below `MIN_ALPHA`) get no points, unless nearly the whole surface is
    invisible. Parts without a colour are grey 0.4; `has_color` is False if no part has one.

    Raises:
      ValueError: no triangle, a NaN or infinite coordinate, or no area.
    """
    parts = [p for p in parts if len(p.faces)]
    if not parts:
        raise ValueError("it has no faces; export it with its surface, or give points as .ply, .npy or .npz")
    for part in parts:
        bad = int((~np.isfinite(part.vertices[part.faces]).all((1, 2))).sum())
        if bad:
            raise ValueError(f"{bad} triangles have a NaN or infinite coordinate; repair the file first")
    areas = np.concatenate([triangle_areas(p.vertices, p.faces) for p in parts])
    cumulative = np.cumsum(areas)
    if not np.isfinite(cumulative[-1]):
        raise ValueError("its coordinates are so large that areas overflow; rescale it first")
    if not cumulative[-1] > 0:
        raise ValueError(
            f"its {len(areas)} triangles have no area; a surface is needed, or points as .ply or .npy"
        )
    first = np.concatenate([[0], np.cumsum([len(p.faces) for p in parts])[:-1]])

    xyz, rgba = _draw(parts, cumulative, first, num_points, rng)
    for _ in range(8):
        hidden = np.flatnonzero(rgba[:, 3] < MIN_ALPHA)
        if not len(hidden):
            break
        again, colors = _draw(parts, cumulative, first, max(256, 2 * len(hidden)), rng)
        good = np.flatnonzero(colors[:, 3] >= MIN_ALPHA)[: len(hidden)]
        xyz[hidden[: len(good)]], rgba[hidden[: len(good)]] = again[good], colors[good]
    return xyz, rgba[:, :3], any(p.has_color for p in parts)


def image_array(image: Any) -> np.ndarray:
    """(H, W, 4) uint8 RGBA of an opened PIL image, at most `TEXTURE_SIDE` texels a side.

    Raises:
      ValueError: it is damaged, or has no or too many pixels (`MAX_IMAGE_PIXELS`; checked before decoding).
    """
    width, height = image.size
    if not 0 < width * height <= MAX_IMAGE_PIXELS:
        raise ValueError(f"the image has {width} x {height} pixels; at most {MAX_IMAGE_PIXELS:,} are read")
    try:
        image.draft("RGB", (TEXTURE_SIDE, TEXTURE_SIDE))  # JPEG decodes smaller at once; others ignore it
        if image.mode.startswith("I") or image.mode == "F":  # 16 bits a channel
            image = image.point(lambda v: v / 256).convert("L")
        image = image.convert("RGBA")
        image.thumbnail((TEXTURE_SIDE, TEXTURE_SIDE))
        return np.asarray(image)
    except Exception as error:  # PIL raises OSError, SyntaxError, struct.error, ... on damaged files
        raise ValueError(f"the image is damaged ({error})") from error


def decode_image(data: bytes) -> np.ndarray:
    """(H, W, 4) uint8 RGBA of an encoded picture; see `image_array` for the limits.

    Raises:
      ValueError: it cannot be read, or it is too large.
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL warns of large pictures; image_array refuses them
        try:
            image = Image.open(io.BytesIO(data), formats=_IMAGE_FORMATS)
        except Exception as error:
            raise ValueError(f"not a picture ({error})") from error
        return image_array(image)
