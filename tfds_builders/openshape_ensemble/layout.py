"""What the release holds and where: its split files, its filter, its folders."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from etils import epath

from openshape_jax.data import files, vocabulary
from tfds_builders import SourceNotFound

TRAIN = "train_all"
LVIS = "lvis"  # gives its shapes a category; no training split
OBJAVERSE = "Objaverse"
# The release's names, by their letters and digits in lower case.
DATASETS = {
    "objaverse": OBJAVERSE,
    "shapenet": "ShapeNet",
    "abo": "ABO",
    "3dfuture": "3D-FUTURE",
    "future3d": "3D-FUTURE",
}
FINAL = ("objaverse-processed", "merged_for_training_final")  # where the release has the data sets' folders
HELP = "README.md of tfds_builders/openshape_ensemble says where the data come from and where they go"
NO_LIST = "no list of {dataset, group, id, data_path}"


class Entry(NamedTuple):
    """A shape as a split file names it."""

    dataset: str
    group: str
    id: str
    data_path: str
    category: str

    @property
    def uid(self) -> str:
        """DATASET/GROUP/ID, or DATASET/ID where there is no group: ShapeNet uses an id in several groups."""
        return "/".join(part for part in self[:3] if part)

    def parts(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(folders down to the data set's, the rest) of where its file is said to be."""
        parts = tuple(p for p in self.data_path.split("/") if p not in ("", "."))
        for i in reversed(range(len(parts) - 1)):
            if dataset_name(parts[i]) == self.dataset:
                return parts[: i + 1], parts[i + 1 :]
        return (self.dataset,), tuple(p for p in (self.group, f"{self.id}.npy") if p)


class Item(NamedTuple):
    """One shape to read: where its file is, and what the meta data say of it."""

    uid: str
    dataset: str
    group: str
    paths: tuple[str, ...]  # the first that is there holds the shape
    category: str  # of Objaverse-LVIS, as written there; "" for other shapes
    label: str  # the vocabulary's name of the category, or ""
    flag: str  # GPT-4's judgement of its metadata text, "Y" or "N"; "" where there is none


class Contents(NamedTuple):
    """The shapes of a build."""

    stored: dict[str, dict[str, Item]]  # {split: {uid: item}}, "train" first
    subsets: dict[str, list[str]]  # {name: uids}, each a part of "train"
    counts: dict[str, int]  # training shapes of each data set
    absent: dict[str, int]  # training shapes of the data sets whose folder is not there
    fingerprint: str  # of everything that the meta data say


def dataset_name(text: str) -> str:
    """The release's spelling of a data set's name; one that is unknown stays as it is."""
    return sys.intern(DATASETS.get(re.sub(r"[^a-z0-9]", "", text.lower()), text))


def read(source: str, wanted: Collection[str]) -> Contents:
    """The shapes of the data sets `wanted` (all if empty) whose folders are there.

    Raises:
      SourceNotFound: no source, no meta data, or none of the folders. ValueError: a damaged file.
    """
    try:
        root, meta = _find_meta(source)
    except ImportError as error:  # of a bucket's backend
        raise SourceNotFound(f"{source} cannot be read here: {error} (pip install does it).") from error
    paths = _split_files(meta / "split")
    digest = hashlib.blake2b(digest_size=16)

    def entries(path: epath.Path) -> list[Entry] | None:
        found = _entries(path, digest)
        return found and [e for e in found if not wanted or e.dataset in wanted]

    shapes = entries(path := paths.pop(TRAIN))
    if shapes is None:
        raise ValueError(f"{path} is {NO_LIST}: fetch it again.")
    folders = _folders(root, shapes)
    counts = Counter(e.dataset for e in shapes)
    absent = {name: counts.pop(name) for name in sorted(counts) if not folders[name]}
    if not counts:
        place = "/".join([str(root), *shapes[0].parts()[0]]) if shapes else "none of it is in the split"
        raise SourceNotFound(
            f"no folder of {', '.join(absent) or ', '.join(wanted)} in {root} (looked for {place} and what "
            f"that path ends in). {HELP}."
        )
    maker = _Maker(folders, _categories(paths.pop(LVIS, None), digest), _flags(meta, digest))
    train = maker.items(shapes)
    stored, subsets = {"train": train}, {}
    for name, path in paths.items():
        shapes = entries(path)
        if shapes is None:
            print(f"left out: {path} is {NO_LIST}.")
            continue
        folders.update(_folders(root, [e for e in shapes if e.dataset not in folders]))
        items = maker.items(shapes)
        inside = [uid for uid in items if uid in train]
        rest = {uid: item for uid, item in items.items() if uid not in train}
        if inside:
            subsets[name] = inside
        if rest:
            stored[f"{name}_rest" if inside else name] = rest
        if inside and rest:
            print(
                f"note: {len(rest)} of {len(items)} shapes of {path.name} are not in {TRAIN}.json, first "
                f"{next(iter(rest))!r}: the split {name!r} is without them, they are stored as '{name}_rest'."
            )
    return Contents(stored, subsets, dict(counts), absent, digest.hexdigest())


def _find_meta(source: str) -> tuple[epath.Path, epath.Path]:
    """(the source, the folder that holds split/)."""
    if not source:
        raise SourceNotFound(
            "openshape_ensemble is made from OpenShape's released files: name their folder with --source "
            f"FOLDER. {HELP}."
        )
    root = epath.Path(os.path.expanduser(source))
    places = [root / "meta_data", root]
    for meta in places:
        if (meta / "split" / f"{TRAIN}.json").exists():
            return root, meta
    tried = " and ".join(str(meta / "split" / f"{TRAIN}.json") for meta in places)
    raise SourceNotFound(f"no {TRAIN}.json: looked for {tried}. Unpack meta_data.zip in {root}. {HELP}.")


def _split_files(folder: epath.Path) -> dict[str, epath.Path]:
    """{split: file}, sorted; named after the files, as far as a split can be called so."""
    found: dict[str, epath.Path] = {}
    for path in sorted([*folder.glob("*.json"), *folder.glob("*/*.json")]):
        name = re.sub(r"\W", "_", path.stem)
        if name == "train" or name in found:
            raise ValueError(
                f"{path} would be the split {name!r}, as {found.get(name, TRAIN + '.json')} is: rename it."
            )
        found[name] = path
    return found


def _json(path: epath.Path, digest: Any) -> Any:
    data = files.read_bytes(path)
    digest.update(data)
    return files.parse_json(data, path)


def _entries(path: epath.Path, digest: Any, dataset: str = "") -> list[Entry] | None:
    """A split file's shapes; None where it holds something else.

    Args:
      dataset: of entries that name none.
    """
    raw = _json(path, digest)
    if not isinstance(raw, list) or not all(isinstance(e, dict) for e in raw):
        return None

    def entry(e: Mapping[str, Any]) -> Entry:
        # lvis.json calls "uid" what the training splits call "id".
        name, group, shape, data_path, category = (
            next((str(e[key]) for key in keys if e.get(key) is not None), "")
            for keys in (("dataset",), ("group",), ("id", "uid"), ("data_path",), ("category",))
        )
        return Entry(dataset_name(name or dataset), sys.intern(group), shape, data_path, sys.intern(category))

    found = [entry(e) for e in raw]
    return found if all(e.dataset and e.id for e in found) else None


def _categories(path: epath.Path | None, digest: Any) -> dict[str, str]:
    """{uid: category} of Objaverse-LVIS."""
    entries = None if path is None else _entries(path, digest, OBJAVERSE)
    if entries is None:
        print(f"note: there is no usable {LVIS}.json: shapes get no category.")
    return {e.uid: e.category for e in entries or ()}


def _flags(meta: epath.Path, digest: Any) -> dict[str, str]:
    """{id: "Y" or "N"}, of Objaverse."""
    path = meta / "gpt4_filtering.json"
    if not path.exists():
        print(f"note: there is no {path}: training cannot leave out texts that say nothing.")
        return {}
    raw = _json(path, digest)
    if not isinstance(raw, dict):
        raise ValueError(f"{path} is no {{id: {{'flag': 'Y' or 'N'}}}}: fetch it again.")
    flags = {shape: e.get("flag") if isinstance(e, dict) else e for shape, e in raw.items()}
    return {shape: flag for shape, flag in flags.items() if flag in ("Y", "N")}


def _folders(root: epath.Path, entries: Iterable[Entry]) -> dict[str, str]:
    """{data set: its folder, "" where there is none}: where its shapes' paths say, or what they end in."""
    ways: dict[str, dict[tuple[str, ...], None]] = {}
    for entry in entries:
        ways.setdefault(entry.dataset, {})[entry.parts()[0]] = None
    found = {}
    for name, prefixes in ways.items():
        ends = [p[k:] for p in (*prefixes, (*FINAL, name)) for k in range(len(p))]
        found[name] = next((p for p in _inside(str(root), ends) if epath.Path(p).is_dir()), "")
    return found


def _inside(folder: str, ways: Iterable[Iterable[str]]) -> list[str]:
    """The distinct paths below a folder; those that lead out of it are left out."""
    paths = ["/".join([folder, *filter(None, way)]) for way in ways]
    return [path for path in dict.fromkeys(paths) if ".." not in path[len(folder) :].split("/")]


class _Maker(NamedTuple):
    folders: Mapping[str, str]
    categories: Mapping[str, str]
    flags: Mapping[str, str]

    def items(self, entries: Iterable[Entry]) -> dict[str, Item]:
        """{uid: item} of the entries whose data set is there."""
        made = {}
        labels = {"": ""}
        for entry in entries:
            if not self.folders[entry.dataset]:
                continue
            uid = entry.uid
            category = self.categories.get(uid, entry.category)
            if category not in labels:
                labels[category] = _label(category)
            flag = self.flags.get(entry.id, "") if entry.dataset == OBJAVERSE else ""
            paths = _places(self.folders[entry.dataset], entry)
            made[uid] = Item(uid, entry.dataset, entry.group, paths, category, labels[category], flag)
        return made


def _places(folder: str, entry: Entry) -> tuple[str, ...]:
    """Where a shape may be: as its path says, by its group, or without one."""
    ways = (entry.parts()[1], (entry.group, f"{entry.id}.npy"), (f"{entry.id}.npy",))
    return tuple(_inside(folder, ways))


def _label(category: str) -> str:
    words = vocabulary.load()
    index = words.find(f"lvis:{category}")
    index = words.find(category) if index is None else index
    return "" if index is None else words.names[index]
