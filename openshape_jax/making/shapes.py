"""The shapes that targets are made for: a folder of meshes, or the records of a built data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from openshape_jax import geometry_io
from openshape_jax.data import schema, sources, vocabulary
from openshape_jax.geometry_io import RawPoints
from openshape_jax.making import rules, work
from openshape_jax.mesh_sampling import Part

TRUSTED = ("class", "synonym")  # what a person said on purpose: no filter judges it


@dataclass(frozen=True)
class Source:
    """Where the shapes come from.

    Attributes:
      folder: of meshes and point files, as mesh_folder takes it; "": `data` is read.
      captions: CSV or JSON file of names, classes and captions.
      up: "y" or "z", the axis that points up in the files; "": as their form has it.
      class_from: "folder": a shape without a class gets its parent folder's name.
      data: a built data set, NAME or NAME/CONFIG, with all its stored splits.
      data_dir: where it lies.
    """

    folder: str = ""
    captions: str = ""
    up: str = ""
    class_from: str = ""
    data: str = ""
    data_dir: str = ""

    def __post_init__(self) -> None:
        if bool(self.folder) == bool(self.data):
            raise ValueError(
                "give either --source DIR, a folder of meshes, or --data NAME, a built data set."
            )
        unused = [n for n in ("captions", "up", "class_from") if self.data and getattr(self, n)]
        if unused:
            flags = ", ".join("--" + n.replace("_", "-") for n in unused)
            raise ValueError(f"{flags}: these are for --source; the records of --data have their own words.")


class Said(NamedTuple):
    """A text of a shape."""

    text: str
    source: str  # as in `schema.Text`

    @property
    def trusted(self) -> bool:
        """Whether no filter judges it."""
        return self.source in TRUSTED


class Shape(NamedTuple):
    """One shape and what is said of it."""

    uid: str
    split: str
    stamp: Any  # another one where the shape itself has changed
    said: tuple[Said, ...]
    label: str  # its class, "" where it has none
    meta: dict[str, str]  # name, category, tags, creator, license


def open_source(folder: Path, asked: Source | None) -> Source:
    """The source of a work folder: the one asked for, or the one that was noted there (`note_source`).

    Raises:
      ValueError: none was ever given, or the folder belongs to another.
    """
    path = folder / "source.json"
    noted = work.read_json(path)
    if asked is None and noted is None:
        raise ValueError(f"{folder} is new: say with --source DIR or --data NAME which shapes it is for.")
    if asked is None:
        return Source(**noted)
    full = asdict(asked)
    for name in ("folder", "captions", "data_dir"):
        if full[name]:
            full[name] = str(Path(full[name]).expanduser().resolve())
    if noted is not None and noted != full:
        other = ", ".join(f"{k} {noted.get(k)!r}" for k in full if noted.get(k) != full[k])
        raise ValueError(
            f"{folder} belongs to other shapes ({other}): take another --work, or delete {path}."
        )
    return Source(**full)


def note_source(folder: Path, source: Source) -> None:
    """Notes the source in the work folder, which is made where it is not there, for the stages to come."""
    if not (folder / "source.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        work.write_json(folder / "source.json", asdict(source))


def read(source: Source) -> list[Shape]:
    """All shapes, ordered by uid.

    Raises:
      SourceNotFound: no shapes there. DatasetMissing: not built. ValueError: the captions file is wrong.
    """
    return _of_folder(source) if source.folder else _of_records(source)


def load(source: Source, shape: Shape) -> list[Part] | RawPoints:
    """The coloured triangles of a shape, z-up, or its points where it has none.

    Raises:
      ValueError: it cannot be used, says why. OSError: it cannot be read.
    """
    if source.data:
        split, index = shape.stamp[:2]
        record = sources.open_split(source.data, split, source.data_dir)[0][index]
        return RawPoints(
            schema.dequantize_xyz(record["xyz"]).astype(np.float64), record["rgb"] / np.float32(255)
        )
    path = Path(source.folder, shape.uid)
    found: list[Part] | RawPoints
    if path.suffix.lower() in geometry_io.POINT_SUFFIXES:
        found = geometry_io.read_arrays(path)
    else:
        found = geometry_io.read_mesh(path)
    if (source.up or geometry_io.up_axis(path)) == "z":
        return found
    if isinstance(found, RawPoints):
        return found._replace(xyz=schema.to_z_up(found.xyz))
    return [part._replace(vertices=schema.to_z_up(part.vertices)) for part in found]


# ---------------------------------------------------------------- folders


def _of_folder(source: Source) -> list[Shape]:
    from tfds_builders.mesh_folder import builder, captions

    root = builder.folder_of(source.folder)
    files, _ = builder.find_files(root)
    if not files:
        from tfds_builders import SourceNotFound

        raise SourceNotFound(f"{root} holds no shape: {' '.join(geometry_io.SUFFIXES)} are read.")
    said = captions.read(Path(source.captions), list(files), root) if source.captions else {}
    known = vocabulary.load()
    shapes = []
    for uid, stamp in files.items():
        words = builder.with_class(said.get(uid, captions.Words()), uid, source.class_from)
        index = known.find(words.kind) if words.kind else None
        label = known.names[index] if index is not None else " ".join(words.kind.replace("_", " ").split())
        name = words.name or rules.title_of(Path(uid).stem)
        texts = [Said(label, "class")] if label else []
        texts += [Said(text, "synonym") for text in words.synonyms]
        texts += [Said(name, "name")]
        texts += [Said(text, "caption") for text in words.captions]
        meta = {
            "name": words.name or Path(uid).stem,
            "category": words.kind,
            "tags": ", ".join(words.tags),
            "creator": words.creator,
            "license": words.license,
        }
        shapes.append(Shape(uid, words.split, list(stamp), tuple(dict.fromkeys(texts)), label, meta))
    return shapes


# ---------------------------------------------------------------- records


def _of_records(source: Source) -> list[Shape]:
    shapes = []
    for split, index, record in records(source):
        texts = tuple(dict.fromkeys(Said(t.text, t.source) for t in record["texts"] if t.text.strip()))
        meta = {key: record[key] for key in ("name", "category", "tags", "creator", "license", "group")}
        stamp = [split, index, int(record["checksum"])]
        shapes.append(Shape(record["uid"], split, stamp, texts, record["label"], meta))
    return sorted(shapes, key=lambda shape: shape.uid)


def records(source: Source) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """(split, index, record) of all stored splits of a data set, with a progress bar where there are many."""
    from tqdm import tqdm

    info = sources.open_folder(sources.find(source.data, source.data_dir), source.data).info
    total = info.splits.total_num_examples
    with tqdm(total=total, unit="shape", desc="read", disable=total < 5000) as bar:
        for split in info.splits:
            found, _ = sources.open_split(source.data, split, source.data_dir)
            for index in range(len(found)):
                bar.update()
                yield split, index, found[index]


def by_uid(shapes: Sequence[Shape]) -> dict[str, Shape]:
    """The shapes by uid.

    Raises:
      ValueError: a uid twice.
    """
    found = {shape.uid: shape for shape in shapes}
    if len(found) < len(shapes):
        seen: set[str] = set()
        twice = next(s.uid for s in shapes if s.uid in seen or seen.add(s.uid))
        raise ValueError(f"two shapes are called {twice!r}; every shape needs a uid of its own.")
    return found
