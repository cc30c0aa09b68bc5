"""The TFDS builder of a person's own folder of meshes and point clouds (ArrayRecord; needs no TensorFlow)."""

from __future__ import annotations

import hashlib
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import tensorflow_datasets as tfds

from openshape_jax.data import schema, sources, vocabulary
from openshape_jax.geometry_io import SUFFIXES, load_points
from tfds_builders import SourceNotFound
from tfds_builders.mesh_folder import captions
from tfds_builders.mesh_folder.captions import Words
from tfds_builders.sharded import Loader, ShardedBuilder

NUM_POINTS = 10_000
TEXT_DIM = 512
SHOWN = 8  # unknown classes that are printed


class Item(NamedTuple):
    """A file and what is said of it."""

    uid: str  # path relative to the folder, with slashes
    words: Words


class Load(NamedTuple):
    """Item -> record."""

    root: str
    up: str  # "y" or "z"; "" goes by the file's form
    origin: str  # digest of files and captions: an interrupted build of others is not gone on with

    def __call__(self, item: Item) -> dict[str, Any]:
        path = Path(self.root, item.uid)
        try:
            points = load_points(path, NUM_POINTS, zlib.crc32(item.uid.encode()), self.up or None)  # type: ignore
        except PermissionError as error:
            raise ValueError(f"{path}: it may not be read; change its permissions.") from error
        texts, label = texts_of(item.words, vocabulary.load())
        return schema.encode(
            uid=item.uid,
            dataset="mesh_folder",
            xyz=points.xyz,
            rgb=points.rgb,
            texts=texts,
            text_dim=TEXT_DIM,
            meta={
                "name": item.words.name or path.stem,
                "label": label,
                "category": item.words.kind,
                "tags": ", ".join(item.words.tags),
                "creator": item.words.creator,
                "license": item.words.license,
            },
        )


def texts_of(words: Words, known: vocabulary.Vocabulary) -> tuple[list[schema.Text], str]:
    """(the texts of a shape, the canonical name of its class or "").

    Class, synonyms and name have a feature if the vocabulary knows exactly them (plurals included); captions
    have none.
    """
    texts: dict[tuple[str, str], schema.Text] = {}
    canonical = ""
    if words.kind:
        index = known.find(words.kind)
        canonical = "" if index is None else known.names[index]
        _add(texts, canonical or " ".join(words.kind.replace("_", " ").split()), "class", known)
    for phrase in words.synonyms:
        _add(texts, phrase, "synonym", known)
    _add(texts, words.name, "name", known)
    for caption in words.captions:
        texts[caption, "caption"] = schema.Text(caption, "caption")
    return list(texts.values()), canonical


def _add(texts: dict, phrase: str, source: str, known: vocabulary.Vocabulary) -> None:
    if phrase:
        index = known.find(phrase)
        texts[phrase, source] = schema.Text(phrase, source, None if index is None else known.features[index])


class MeshFolder(ShardedBuilder):
    """Every mesh and point file of a folder; see README.md.

    Attributes beside those of ShardedBuilder (`openshape_jax.data.build.Options` sets them):
      captions: CSV or JSON file of names, classes and captions; "" where there is none.
      up: the axis that points up in the files, "y" or "z"; "" goes by their form.
      class_from: "folder": a shape without a class in the captions gets its parent folder's name.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First release."}
    BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name="default", description="a folder of meshes")]

    captions = ""
    up = ""
    class_from = ""

    @classmethod
    def own_config(cls, name: str, dataset: str = "mesh_folder") -> tfds.core.BuilderConfig:
        """The config of mesh_folder/NAME, or of another `dataset` that takes the same names.

        Raises:
          ValueError: a name that is no folder name.
        """
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", name):
            raise ValueError(
                f"{dataset}/{name}: {name!r} cannot be a name; use letters, digits, _ and -, e.g. "
                f"{dataset}/toys."
            )
        return tfds.core.BuilderConfig(name=name, description="a folder of meshes")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Meshes and point clouds of a folder as coloured points.",
            features=schema.features(text_dim=TEXT_DIM),
            license="as the owner of the folder says: see `license` and `creator` of the records",
            metadata=tfds.core.MetadataDict(
                classes=[],
                text_space=vocabulary.TEXT_SPACE,
                up="z",
                num_points=NUM_POINTS,
                version=str(self.VERSION),
            ),
        )

    def _items(self, dl_manager: Any) -> Mapping[str, Mapping[str, Item]]:
        del dl_manager  # nothing is fetched
        self._root = folder_of(self.source)
        files, others = find_files(self._root)
        if not files:
            kinds = f" (it has {_counts(others)})" if others else ""
            raise SourceNotFound(f"{self._root} holds no shape{kinds}: {' '.join(SUFFIXES)} are read.")
        said = {}
        if self.captions:
            said = captions.read(Path(self.captions).expanduser(), list(files), self._root)
        words = {uid: with_class(said.get(uid, Words()), uid, self.class_from) for uid in files}
        digest = hashlib.blake2b(digest_size=16)
        for uid, stamp in files.items():
            digest.update(repr((uid, stamp, words[uid])).encode())
        self._origin = digest.hexdigest()
        self._describe(files, others, said, words)
        items: dict[str, dict[str, Item]] = {split: {} for split in captions.SPLITS}
        for uid, its in words.items():
            items[its.split][uid] = Item(uid, its)
        return {split: its for split, its in items.items() if its}

    def _loader(self) -> Loader:
        return Load(str(self._root), self.up, self._origin)

    def _describe(
        self, files: Mapping[str, Any], others: Mapping[str, int], said: Mapping, words: Mapping[str, Words]
    ) -> None:
        """Prints what was found, and notes it in the metadata."""
        left_out = f"; left out: {_counts(others)}" if others else ""
        print(f"{len(files)} shapes in {self._root} ({_counts(_kinds(files))}){left_out}")
        if self.captions and len(said) < len(files):
            first = next(uid for uid in files if uid not in said)
            print(f"{len(files) - len(said)} of them are not in {self.captions}, first {first!r}")
        known = vocabulary.load()
        self._targets, labels, unknown = set(), set(), Counter()
        for uid, its in words.items():
            texts, label = texts_of(its, known)
            labels.add(label)
            if its.kind and not label:
                unknown[its.kind] += 1
            if any(text.feature is not None for text in texts):
                self._targets.add(uid)
        if unknown:
            print(f"classes that the vocabulary does not know, so without a text feature: {_counts(unknown)}")
        credit = Counter((its.creator or "not stated", its.license or "not stated") for its in words.values())
        assert self.info.metadata is not None
        self.info.metadata.update(
            classes=sorted(labels - {""}),
            source=str(self._root),
            captions=self.captions,
            attribution=[
                {"creator": creator, "license": license_, "library": self._root.name, "count": count}
                for (creator, license_), count in credit.items()
            ],
        )

    def _finish(self, folder: Path) -> None:
        files = [folder / f"uids.{split}.txt" for split in self.info.splits]
        uids = [uid for file in files for uid in sources.listed_uids(file) or ()]
        count = sum(uid in self._targets for uid in uids)
        assert self.info.metadata is not None
        self.info.metadata["with_target"] = count
        print(
            f"{count} of {len(uids)} shapes have a training target: a class, synonym or name that the "
            "vocabulary knows"
        )
        if count < len(uids):
            print("  the others can be embedded and searched; for training name them in --captions FILE")


def folder_of(source: str) -> Path:
    """The folder that --source names.

    Raises:
      SourceNotFound: none was given, or it is not there.
    """
    root = Path(source).expanduser()
    if not source:
        raise SourceNotFound("mesh_folder needs --source DIR, the folder of your meshes and point clouds.")
    if not root.is_dir():
        state = "is no folder" if root.exists() else "does not exist"
        raise SourceNotFound(f"--source {source} {state}; give the folder of your meshes and point clouds.")
    return root.resolve()


def with_class(words: Words, uid: str, class_from: str) -> Words:
    """The words of a shape, with its folder's name for a class where they have none and `class_from` says so.

    Raises:
      ValueError: the folder is called like a split.
    """
    parent = Path(uid).parent.name
    if words.kind or class_from != "folder" or not parent:
        return words
    if parent.lower() in ("train", "test", "val", "valid", "validation"):
        raise ValueError(
            f"--class-from folder: is {parent!r} of {uid!r} a class or a split? Rename the folder, or "
            "give the classes and splits with --captions FILE."
        )
    return words._replace(kind=parent)


def find_files(root: Path) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
    """({relative path: (size, time of change)} of the shapes, sorted; {suffix: number} of other files).

    Hidden files and folders are passed over, and links to folders are not followed.

    Raises:
      ValueError: a file name that no text file can hold.
    """
    found, others = {}, Counter()
    for folder, subfolders, names in os.walk(root, onerror=_raise):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            if name.startswith(".") or not path.is_file():
                continue
            if path.suffix.lower() not in SUFFIXES:
                others[path.suffix.lower() or "without suffix"] += 1
                continue
            uid = path.relative_to(root).as_posix()
            if len(uid.splitlines()) != 1 or any("\ud800" <= letter <= "\udfff" for letter in uid):
                raise ValueError(
                    f"{root}: the file name {uid!r} has a line break or bytes that are no UTF-8; rename it."
                )
            state = path.stat()
            found[uid] = (state.st_size, state.st_mtime_ns)
    return dict(sorted(found.items())), others


def _raise(error: OSError) -> None:
    raise error  # a folder that cannot be read must not be passed over in silence


def _kinds(files: Iterable[str]) -> Counter:
    return Counter(Path(uid).suffix.lower() for uid in files)


def _counts(counts: Mapping[str, int]) -> str:
    """ "chair 12, table 3, ..." with the most frequent first."""
    listed = Counter(counts).most_common()
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(f"{name} {count}" for name, count in listed[:SHOWN]) + more
