"""Reading mesh files from a folder or an archive into `Part`s, with the files that they name.

A mesh from a stranger reaches nothing but its own folder (or archive): no network, no absolute paths, no
way up; members of archives are checked for their size before they are unpacked.
"""

from __future__ import annotations

import io
import posixpath
import re
import urllib.parse
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from openshape_jax.data.schema import GRAY, unit_colors
from openshape_jax.mesh_sampling import Part, image_array
from openshape_jax.obj_reader import Fetch, read_obj

MAX_FILE_BYTES = 2**31  # larger files (or unpacked archive members) are refused


class RawPoints(NamedTuple):
    """A cloud as the file has it, in the file's axes."""

    xyz: np.ndarray  # (N, 3) float64
    rgb: np.ndarray | None  # (N, 3) float32 in [0, 1]


def _candidates(name: str, base: str = "") -> list[str]:
    """Relative paths to try for a file named in a mesh: as given, then its last part beside the mesh.

    A path that is absolute, has a drive letter or a scheme, or climbs above the root is reduced to its
    last part, so nothing outside is reached.
    """
    found: list[str] = []
    for spelling in dict.fromkeys([name, urllib.parse.unquote(name)]):
        clean = spelling.replace("\\", "/").strip().strip('"').replace("\0", "")
        last = posixpath.basename(clean)
        inside = posixpath.normpath(posixpath.join(base, clean)) if clean else ""
        outside = clean.startswith("/") or re.match(r"^[A-Za-z][A-Za-z0-9+.-]*:", clean)
        if not outside and inside and inside != ".." and not inside.startswith("../"):
            found.append(inside)
        if last not in ("", ".", ".."):
            found.append(posixpath.normpath(posixpath.join(base, last)))
    return list(dict.fromkeys(found))


def folder_fetch(folder: Path) -> Fetch:
    """A function that gives the bytes of a file in `folder` (links that leave it are not followed)."""
    root = folder.resolve()

    def fetch(name: str) -> bytes:
        for candidate in _candidates(name):
            try:
                path = (root / candidate).resolve()
                if not path.is_file():
                    near = {p.name.lower(): p for p in path.parent.iterdir()}
                    path = near.get(path.name.lower(), path).resolve()
                if path.is_relative_to(root) and path.is_file() and path.stat().st_size <= MAX_FILE_BYTES:
                    return path.read_bytes()
            except OSError:
                continue
        raise KeyError(name)

    return fetch


class ZipFiles:
    """The members of an archive by path, whatever their case; `a/../b` and backslashes are understood."""

    def __init__(self, archive: zipfile.ZipFile):
        self._archive = archive
        self._exact = {
            i.filename.replace("\\", "/").lstrip("/"): i for i in archive.infolist() if not i.is_dir()
        }
        self._lower = {name.lower(): info for name, info in self._exact.items()}

    def read(self, name: str, base: str = "") -> bytes:
        """The bytes of a member; `name` counts from the folder `base`.

        Raises:
          KeyError: no such member. ValueError: it is damaged, encrypted or too large.
        """
        for path in _candidates(name, base):
            info = self._exact.get(path) or self._lower.get(path.lower())
            if info is None:
                continue
            if info.file_size > MAX_FILE_BYTES:
                raise ValueError(f"{path} unpacks to {info.file_size / 2**30:.1f} GiB, more than is read")
            try:
                return self._archive.read(info)
            except Exception as error:  # zipfile's errors, zlib's and their kin have no common base
                raise ValueError(f"{path} in the archive is damaged ({error})") from error
        raise KeyError(name)

    def fetch_from(self, base: str) -> Fetch:
        """A function that reads files named in a mesh that lies in the folder `base`."""
        return lambda name: self.read(name, base)


def read_obj_in_zip(files: ZipFiles, member: str) -> list[Part]:
    """The triangles of an OBJ in an archive, with its MTL and textures, without unpacking to disk.

    Raises:
      KeyError: no such member. ValueError: it is unreadable or empty; the message names it.
    """
    path = member.replace("\\", "/").lstrip("/")
    data = files.read(path)
    try:
        return read_obj(
            data, files.fetch_from(posixpath.dirname(path)), posixpath.splitext(posixpath.basename(path))[0]
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}.") from error


def read_with_trimesh(data: bytes, suffix: str, fetch: Fetch) -> list[Part] | RawPoints:
    """The triangles of a .glb .gltf .ply .stl or .off, or its points where it has no faces.

    Raises:
      ValueError: it is damaged, or has neither faces nor points.
    """
    import trimesh  # half a second: imported where it is needed
    from trimesh.resolvers import Resolver as BaseResolver

    class Resolver(BaseResolver):
        """Files beside the mesh only."""

        def __init__(self, get: Callable[[str], bytes]):
            self._get = get

        def get(self, key: str) -> bytes:
            return self._get(key)

        def keys(self) -> list[str]:
            return []

        def write(self, name: str, data: Any) -> None:
            raise PermissionError("meshes are only read")

        def namespaced(self, namespace: str) -> Resolver:
            return Resolver(lambda key: self._get(f"{namespace}/{key}"))

    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # of its own deprecations and of large pictures, which are checked
            scene = trimesh.load_scene(
                io.BytesIO(data), file_type=suffix[1:], resolver=Resolver(fetch), process=False
            )
            placed = [(*scene.graph[node], node) for node in scene.graph.nodes_geometry]
            pieces = [(np.asarray(matrix, np.float64), scene.geometry[name]) for matrix, name, _ in placed]
            parts = [_part(g, m) for m, g in pieces if isinstance(g, trimesh.Trimesh) and len(g.faces)]
            if parts:
                return parts
            clouds = [_cloud(g, m) for m, g in pieces if isinstance(g, trimesh.PointCloud | trimesh.Trimesh)]
    except (
        Exception
    ) as error:  # a damaged file can raise anything: struct.error, KeyError, RecursionError, ...
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"it cannot be read as {suffix} ({reason}); is it complete? Export it again"
        ) from error
    clouds = [c for c in clouds if len(c.xyz)]
    if not clouds:
        raise ValueError("it has neither faces nor points; export it again with its surface")
    if suffix != ".ply" and not any(isinstance(g, trimesh.PointCloud) for _, g in pieces):
        raise ValueError(
            "it has vertices but no faces; export it with its surface, or as points (.ply, .npy)"
        )
    rgb = None
    if any(c.rgb is not None for c in clouds):
        rgb = np.concatenate(
            [np.full(c.xyz.shape, GRAY, np.float32) if c.rgb is None else c.rgb for c in clouds]
        )
    return RawPoints(np.concatenate([c.xyz for c in clouds]), rgb)


def _cloud(geometry: Any, matrix: np.ndarray) -> RawPoints:
    xyz = np.asarray(geometry.vertices, np.float64) @ matrix[:3, :3].T + matrix[:3, 3]
    colors = getattr(geometry, "colors", None)
    has = colors is not None and np.shape(colors)[:1] == xyz.shape[:1] and len(xyz) > 0
    return RawPoints(xyz, unit_colors(np.asarray(colors)[:, :3]) if has else None)


def _part(mesh: Any, matrix: np.ndarray) -> Part:
    """One trimesh geometry, moved by its node's matrix."""
    vertices = np.asarray(mesh.vertices, np.float64) @ matrix[:3, :3].T + matrix[:3, 3]
    faces = np.asarray(mesh.faces)
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise ValueError(f"a face names vertex {faces.max()}, but there are {len(vertices)}")
    part = Part(vertices, faces)
    visual = mesh.visual
    material = getattr(visual, "material", None)
    if material is None:
        if visual.kind == "face":
            part = part._replace(face_rgb=_rgb(visual.face_colors))
        elif visual.kind == "vertex":
            part = part._replace(vertex_rgb=_rgb(visual.vertex_colors))
        return part
    image, factor = getattr(material, "baseColorTexture", None), getattr(material, "baseColorFactor", None)
    image = image if image is not None else getattr(material, "image", None)
    factor = None if factor is None else _rgb(np.asarray(factor)[None])[0]
    uv = None if visual.uv is None else np.asarray(visual.uv, np.float64)[:, :2]
    if image is not None and uv is not None and len(uv) == len(vertices):
        try:
            texture = image_array(image)
        except ValueError:
            texture = None  # falls back to the material's colour
        if texture is not None:
            tint = np.ones(4) if factor is None else np.append(factor, 1.0)
            texture = np.rint(texture * tint).astype(np.uint8)
            if str(getattr(material, "alphaMode", None) or "OPAQUE") == "OPAQUE" and hasattr(
                material, "alphaMode"
            ):
                texture[..., 3] = 255  # glTF: the alpha of an opaque material means nothing
            return part._replace(uv=uv, uv_faces=faces, texture=texture)
    colors = visual.vertex_attributes.get("color") if hasattr(visual, "vertex_attributes") else None
    if colors is not None and len(colors) == len(vertices):
        return part._replace(vertex_rgb=_rgb(colors) * (1.0 if factor is None else factor))
    return part._replace(color=factor)


def _rgb(colors: Any) -> np.ndarray:
    """(n, 3) colours in [0, 1] of (n, 3 or 4) integers of any width or floats."""
    colors = np.asarray(colors)[:, :3]
    full = np.iinfo(colors.dtype).max if colors.dtype.kind == "u" else 1.0
    return np.clip(np.nan_to_num(colors / full), 0, 1)
