"""Meshes and point files to coloured point clouds, z-up: `load_points` is what most callers want.

Files come from strangers: nothing is unpickled, nothing is fetched from a network, files named inside
a mesh are read only from its own folder (or archive), and pictures are checked before they are decoded.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from openshape_jax.data.schema import GRAY, to_z_up, unit_colors
from openshape_jax.mesh_files import MAX_FILE_BYTES, RawPoints, folder_fetch, read_with_trimesh
from openshape_jax.mesh_sampling import Part, sample
from openshape_jax.obj_reader import read_obj

Up = Literal["y", "z"]
MESH_SUFFIXES = (".glb", ".gltf", ".obj", ".off", ".ply", ".stl")
POINT_SUFFIXES = (".npy", ".npz")
SUFFIXES = MESH_SUFFIXES + POINT_SUFFIXES
_Y_UP = (".glb", ".gltf", ".obj")  # glTF by its standard (section 3.4), OBJ by custom; the others are z-up


class Points(NamedTuple):
    """A coloured cloud, z-up. `up` is the axis that pointed up in the file it was read from."""

    xyz: np.ndarray  # (N, 3) float32, in the file's unit
    rgb: np.ndarray  # (N, 3) float32 in [0, 1]; grey 0.4 where the file states no colour
    has_color: bool
    up: Up


def load_points(path: str | Path, num_points: int = 10_000, seed: int = 0, up: Up | None = None) -> Points:
    """The coloured point cloud of a mesh or point file, z-up.

    A mesh is sampled uniformly by area, coloured from texture, vertex colours or material. A point file
    with more points is subsampled without replacement; one with fewer keeps what it has.

    Args:
      path: a .glb .gltf .obj .off .ply .stl mesh, a .ply of points, or a .npy / .npz (see `read_arrays`).
      num_points: N, at least 1.
      seed: of the sampling; the same seed gives the same points.
      up: "y" or "z", the axis that points up in the file. By default y for glTF and OBJ, z for the others.

    Raises:
      ValueError: an unknown suffix, an unreadable or empty file, a NaN or infinite coordinate, no area,
        all points equal. The message names the file.
      OSError: the file cannot be opened.
    """
    path = Path(path)
    suffix = _suffix(path)
    if up not in (None, "y", "z"):
        raise ValueError(f"up is {up!r}; it must be 'y' or 'z'.")
    if num_points < 1:
        raise ValueError(f"num_points is {num_points}; it must be at least 1.")
    source = read_arrays(path) if suffix in POINT_SUFFIXES else read_mesh(path)
    rng = np.random.default_rng(seed)
    try:
        if isinstance(source, RawPoints):
            xyz, rgb = _subsample(source, num_points, rng)
            has_color = rgb is not None
            rgb = np.full(xyz.shape, GRAY, np.float32) if rgb is None else rgb
        else:
            xyz, rgb, has_color = sample(source, num_points, rng)
        _check_points(xyz)
    except ValueError as error:
        raise ValueError(f"{path}: {error}.") from error
    found: Up = up or up_axis(path)
    xyz = to_z_up(xyz) if found == "y" else xyz
    return Points(xyz.astype(np.float32), rgb.astype(np.float32), has_color, found)


def up_axis(path: str | Path) -> Up:
    """The axis that points up in files of this form: y for glTF and OBJ, z for the others."""
    return "y" if Path(path).suffix.lower() in _Y_UP else "z"


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        known = " ".join(SUFFIXES)
        raise ValueError(
            f"{path}: the suffix {path.suffix!r} is not known; convert the file to one of {known}."
        )
    return suffix


def _check_points(xyz: np.ndarray) -> None:
    bad = int((~np.isfinite(xyz)).any(1).sum())
    if bad:
        raise ValueError(f"{bad} of {len(xyz)} points have a NaN or infinite coordinate; remove them first")
    with np.errstate(over="ignore"):
        kept = xyz.astype(np.float32)
    if not np.isfinite(kept).all():
        raise ValueError(f"a coordinate is {np.abs(xyz).max():.3g}, too large for float32; rescale it first")
    if (kept == kept[0]).all():
        raise ValueError(f"all {len(xyz)} points are equal ({xyz[0].tolist()}); a shape needs an extent")


def _subsample(
    points: RawPoints, num_points: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray | None]:
    """At most `num_points` of the points, without replacement; checked before, so that no fault is missed."""
    _check_points(points.xyz)
    xyz, rgb = points
    if len(xyz) > num_points:
        kept = rng.choice(len(xyz), num_points, replace=False)
        xyz, rgb = xyz[kept], None if rgb is None else rgb[kept]
    return xyz, rgb


# ---------------------------------------------------------------- point arrays


def read_arrays(path: str | Path) -> RawPoints:
    """The points of a .npy or .npz file, never unpickled.

    A .npy holds (N, 3) xyz or (N, 6) xyz + rgb. A .npz holds such an array alone, or `xyz` (N, 3) with or
    without `rgb` (N, 3). Colours are 0-255 if their type is uint8 or one exceeds 1, else in [0, 1].

    Raises:
      ValueError: the file is unreadable, holds objects, or has another shape; the message names it.
    """
    path = Path(path)
    want = "expected (N, 3) xyz or (N, 6) xyz + rgb, or a .npz with the keys xyz and rgb"
    try:
        with path.open("rb") as file:
            if path.suffix.lower() == ".npz":
                _check_archive(file)
            loaded = np.load(file, allow_pickle=False)
            arrays = {k: loaded[k] for k in loaded.files} if hasattr(loaded, "files") else {"": loaded}
    except OSError:
        raise
    except Exception as error:
        # NumPy advises to allow pickles, which nobody should do for a stranger's file.
        reason = "it holds pickled objects or is damaged" if "pickle" in str(error) else str(error)
        raise ValueError(f"{path}: it cannot be read as {path.suffix} ({reason}); {want}.") from error
    if len(arrays) == 1 and "xyz" not in arrays:
        (both,) = arrays.values()
        xyz, rgb = both[..., :3], both[..., 3:] if both.ndim == 2 and both.shape[1] == 6 else None
        shape_ok = both.ndim == 2 and both.shape[1] in (3, 6)
        found = f"an array of shape {both.shape}"
    elif "xyz" in arrays:
        xyz, rgb = arrays["xyz"], arrays.get("rgb")
        shape_ok = xyz.ndim == 2 and xyz.shape[1] == 3 and (rgb is None or rgb.shape == xyz.shape)
        found = f"xyz of shape {xyz.shape}" + ("" if rgb is None else f" and rgb of shape {rgb.shape}")
    else:
        raise ValueError(f"{path}: it holds the keys {', '.join(sorted(arrays)) or '(none)'}; {want}.")
    if not shape_ok:
        raise ValueError(f"{path}: it holds {found}; {want}.")
    if len(xyz) == 0:
        raise ValueError(f"{path}: it holds no points; {want}, N at least 1.")
    kinds = {a.dtype.kind for a in (xyz, rgb) if a is not None}
    if not kinds <= set("fiu"):
        raise ValueError(f"{path}: its numbers are of type {xyz.dtype}; {want}, as floats or integers.")
    try:
        return RawPoints(xyz.astype(np.float64), None if rgb is None else unit_colors(rgb))
    except ValueError as error:
        raise ValueError(f"{path}: {error}.") from error


def _check_archive(file: Any) -> None:
    with zipfile.ZipFile(file) as archive:
        size = sum(info.file_size for info in archive.infolist())
    if size > MAX_FILE_BYTES:
        raise ValueError(
            f"it unpacks to {size / 2**30:.1f} GiB; at most {MAX_FILE_BYTES / 2**30:.0f} GiB are read"
        )
    file.seek(0)


# ---------------------------------------------------------------- meshes


def read_mesh(path: str | Path) -> list[Part] | RawPoints:
    """The coloured triangles of a mesh file in its own axes, or its points where it has no faces.

    Raises:
      ValueError: an unknown suffix, an unreadable file, or neither faces nor points; the message names it.
      OSError: the file cannot be opened.
    """
    path = Path(path)
    suffix = _suffix(path)
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise ValueError(
            f"{path}: it has {size / 2**30:.1f} GiB; at most {MAX_FILE_BYTES / 2**30:.0f} GiB are read."
        )
    data = path.read_bytes()
    if not data.strip():
        raise ValueError(f"{path}: the file is empty; export it again.")
    fetch = folder_fetch(path.parent)
    try:
        if suffix == ".obj":
            return read_obj(data, fetch, path.stem)
        return read_with_trimesh(data, suffix, fetch)
    except ValueError as error:
        raise ValueError(f"{path}: {error}.") from error
