"""A `.sh3f` library: its catalogue, and its models as coloured points. Uses no TFDS."""

from __future__ import annotations

import functools
import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from openshape_jax.data.schema import to_z_up
from openshape_jax.mesh_files import ZipFiles, read_obj_in_zip
from openshape_jax.mesh_sampling import Part, decode_image, sample

PROPERTIES = "PluginFurnitureCatalog.properties"
# The catalogue inside the program itself, sweethome3d.jar, and the program's licence (its Debian copyright).
OWN_PROPERTIES = "com/eteks/sweethome3d/io/DefaultFurnitureCatalog.properties"
OWN_LICENSE = "GPL-2.0-or-later"
ICON_SIDE = 128  # largest icon that is stored, in pixels


class Entry(NamedTuple):
    """One model of a catalogue. Sizes are in cm: width along x, height along y, depth along z (y-up)."""

    uid: str
    library: str  # "Scopia"
    library_path: str
    index: int  # number in the catalogue, from 1
    name: str
    category: str
    tags: str  # comma-separated
    creator: str
    license: str  # SPDX-like: CC0-1.0, CC-BY-3.0, CC-BY-3.0-US
    model: str  # path of the OBJ in the library
    icon: str
    size: tuple[float, float, float] | None
    rotation: tuple[float, ...] | None  # 9 numbers, row by row


class Shape(NamedTuple):
    """What a worker returns for an entry; `error` is empty unless the model is unusable."""

    xyz: np.ndarray  # (N, 3) float32, z-up, cm
    rgb: np.ndarray  # (N, 3) float32
    icon: bytes
    error: str = ""


def parse_properties(data: bytes) -> dict[str, str]:
    r"""The keys and values of a Java properties file: Latin-1, `\uXXXX`, `\:`, lines continued by `\`."""
    text = re.sub(r"(?<!\\)((?:\\\\)*)\\\r?\n[ \t\f]*", r"\1", data.decode("latin-1"))
    escapes = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}

    def unescape(value: str) -> str:
        def one(found: re.Match[str]) -> str:
            code = found[1]
            return chr(int(code[1:], 16)) if len(code) == 5 else escapes.get(code, code)

        plain = re.sub(r"\\(u[0-9a-fA-F]{4}|.)", one, value)
        return plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    values = {}
    for line in text.splitlines():
        line = line.lstrip(" \t\f")
        if not line or line[0] in "#!":
            continue
        found = re.match(r"((?:\\.|[^\\:=\s])*)[ \t\f]*[:=]?[ \t\f]*(.*)", line)
        if found:
            values[unescape(found[1])] = unescape(found[2])
    return values


def license_name(text: str) -> str:
    """The short name of a library's licence line, e.g. "CC-BY-3.0"; the line itself where it is not known."""
    if re.search(r"public domain|\bCC-?0\b", text, re.I):
        return "CC0-1.0"
    if re.search(r"Attribution 3\.0", text):
        return "CC-BY-3.0-US" if "United States" in text else "CC-BY-3.0"
    return text


def _floats(text: str, count: int) -> tuple[float, ...] | None:
    try:
        values = tuple(float(word) for word in text.split())
    except ValueError:
        return None
    return values if len(values) == count and np.isfinite(values).all() else None


def read_catalogue(path: Path) -> list[Entry]:
    """The models of one library in catalogue order; uids are not yet unique among libraries.

    Raises:
      ValueError: the file is no library; the message names it.
    """
    own = path.suffix == ".jar"
    properties = OWN_PROPERTIES if own else PROPERTIES
    try:
        with zipfile.ZipFile(path) as archive:
            values = parse_properties(archive.read(properties))
    except (zipfile.BadZipFile, KeyError, zlib.error, EOFError) as error:
        raise ValueError(
            f"{path}: it is no furniture library with {properties} ({error}); fetch it again."
        ) from error
    license_ = OWN_LICENSE if own else license_name(values.get("license", ""))
    numbers = sorted(int(key[5:]) for key in values if re.fullmatch(r"name#\d+", key))
    entries = []
    for i in numbers:

        def get(key: str, i: int = i) -> str:
            return values.get(f"{key}#{i}", "").strip()

        if not get("model") or get("model").endswith("/lightSource.obj"):  # a light without a shape
            continue
        size = _floats(" ".join(get(key) for key in ("width", "height", "depth")), 3)
        entries.append(
            Entry(
                uid=get("id") or f"{path.stem}#{i}",
                library=path.stem,
                library_path=str(path),
                index=i,
                name=get("name"),
                category=get("category"),
                tags=", ".join(t.strip() for t in get("tags").split(",") if t.strip()),
                creator=get("creator") or values.get("provider", ""),
                license=license_,
                model=get("model"),
                icon=get("icon"),
                size=size if size and min(size) > 0 else None,  # type: ignore[arg-type]
                rotation=_floats(get("modelRotation"), 9),
            )
        )
    return entries


def read_all(paths: list[Path]) -> list[Entry]:
    """The models of all libraries; an id used twice becomes `library#index`."""
    entries = [entry for path in paths for entry in read_catalogue(path)]
    counts: dict[str, int] = {}
    for entry in entries:
        counts[entry.uid] = counts.get(entry.uid, 0) + 1
    return [e if counts[e.uid] == 1 else e._replace(uid=f"{e.library}#{e.index}") for e in entries]


def attribution(entries: list[Entry]) -> list[dict[str, str | int]]:
    """One {creator, license, library, count} for each creator in each library, sorted."""
    counts: dict[tuple[str, str, str], int] = {}
    for e in entries:
        key = (e.library, e.creator, e.license)
        counts[key] = counts.get(key, 0) + 1
    return [
        {"creator": creator, "license": license_, "library": library, "count": count}
        for (library, creator, license_), count in sorted(counts.items())
    ]


def place(parts: list[Part], entry: Entry) -> list[Part]:
    """The parts as the program shows the piece: turned, then fitted to its size in cm, z-up."""
    turn = np.eye(3) if entry.rotation is None else np.reshape(entry.rotation, (3, 3))
    turned: dict[int, np.ndarray] = {}
    for part in parts:  # the parts of a file share one vertex array
        if id(part.vertices) not in turned:
            turned[id(part.vertices)] = part.vertices @ turn.T
    used = [turned[id(p.vertices)][np.unique(p.faces)] for p in parts]
    low, high = np.min([u.min(0) for u in used], 0), np.max([u.max(0) for u in used], 0)
    extent = high - low
    scale = np.ones(3)
    if entry.size is not None and np.isfinite(extent).all():
        flat = extent <= 1e-9 * max(extent.max(), 1e-300)
        scale = np.where(flat, 1.0, np.array(entry.size) / np.where(flat, 1.0, extent))
    placed = {key: to_z_up((vertices - (low + high) / 2) * scale) for key, vertices in turned.items()}
    return [part._replace(vertices=placed[id(part.vertices)]) for part in parts]


@functools.lru_cache(maxsize=2)  # a worker goes through the libraries one after the other
def _open(path: str) -> ZipFiles:
    return ZipFiles(zipfile.ZipFile(path))


def _icon(files: ZipFiles, name: str) -> bytes:
    """The icon as PNG of at most `ICON_SIDE` pixels a side; b"" where there is none."""
    try:
        data = files.read(name.lstrip("/"))
        pixels = decode_image(data)
    except (KeyError, ValueError):
        return b""
    if data.startswith(b"\x89PNG") and max(pixels.shape[:2]) <= ICON_SIDE:
        return data
    from PIL import Image

    image, buffer = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((ICON_SIDE, ICON_SIDE))
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def load(entry: Entry, num_points: int) -> Shape:
    """The model's points, the same on every machine: the seed is the CRC-32 of its uid.

    An unusable model comes back with `error` set.
    """
    rng = np.random.default_rng(zlib.crc32(entry.uid.encode()))
    try:
        files = _open(entry.library_path)
        parts = place(read_obj_in_zip(files, entry.model), entry)
        xyz, rgb, _ = sample(parts, num_points, rng)
    except KeyError:
        return Shape(np.empty((0, 3)), np.empty((0, 3)), b"", f"the library has no file {entry.model}")
    except (ValueError, MemoryError) as error:
        return Shape(np.empty((0, 3)), np.empty((0, 3)), b"", str(error) or type(error).__name__)
    return Shape(xyz.astype(np.float32), rgb, _icon(files, entry.icon))


def load_all(entries: list[Entry], num_points: int, workers: int) -> Iterator[Shape]:
    """The shapes in the order of the entries, read ahead by `workers` processes.

    Falls back to this process where processes cannot be started or one dies.
    """
    if workers < 2 or len(entries) < 2 * workers:
        yield from (load(entry, num_points) for entry in entries)
        return
    import collections
    from concurrent.futures.process import BrokenProcessPool

    from openshape_jax.data.workers import pool as start

    pool = start(workers)
    waiting: collections.deque = collections.deque()
    done = 0
    try:
        for i in range(len(entries) + 8 * workers):
            if i < len(entries):
                waiting.append(pool.submit(load, entries[i], num_points))
            if i >= 8 * workers:
                yield waiting.popleft().result()
                done += 1
    except BrokenProcessPool:
        print("reading models in parallel failed; going on in one process")
        yield from (load(entry, num_points) for entry in entries[done:])
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
