"""The TFDS builder of Objaverse-LVIS (ArrayRecord; needs no TensorFlow)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from openshape_jax.data import class_features, safe_npy, schema
from tfds_builders import evaluation

SPLITS = ("meta_data/split/lvis.json", "split/lvis.json", "lvis.json")
FEATURES = ("meta_data/lvis_cat_name_pt_feat.npy", "lvis_cat_name_pt_feat.npy")
WHERE_FROM = (
    "meta_data.zip and Objaverse/000-*.tar.gz of huggingface.co/datasets/OpenShape/openshape-training-data, "
    "unpacked into one folder"
)
PROBES = 20  # data files that are looked for before the build starts


class Entry(NamedTuple):
    """One shape of lvis.json."""

    uid: str
    label: str
    group: str
    path: str


class LoadEntry(NamedTuple):
    """Entry -> record: xyz turned to z-up, rgb as it is."""

    origin: str  # lvis.json and its size: an interrupted build of another one is not gone on with

    def __call__(self, item: Entry) -> dict[str, Any]:
        stored = safe_npy.load(item.path)
        if not isinstance(stored, Mapping) or not {"xyz", "rgb"} <= stored.keys():
            raise ValueError(f"{item.path}: it is no dict with xyz and rgb.")
        xyz = schema.to_z_up(np.asarray(stored["xyz"]))
        rgb = schema.unit_colors(np.asarray(stored["rgb"]))
        return evaluation.record(ObjaverseLvis.name, item.uid, item.label, xyz, rgb, group=item.group)


class ObjaverseLvis(evaluation.EvaluationBuilder):
    """46,205 coloured models of 1,156 LVIS categories, for zero-shot evaluation; see README.md."""

    name = "objaverse_lvis"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First release."}
    about = "The 46,205 models of Objaverse that are sorted into 1,156 LVIS categories, as coloured points."
    homepage = "https://objaverse.allenai.org"
    license_note = "ODC-By; every model has a Creative Commons licence of its own"
    creator = "Objaverse and its artists"

    def _find(self) -> evaluation.Layout:
        split = evaluation.first_of(self.source, SPLITS)
        if not split:
            raise evaluation.not_found(self.name, self.source, [", ".join(SPLITS)], WHERE_FROM)
        entries = self._with_paths(list(_entries(split)), split)
        classes = sorted({entry.label for entry in entries})  # the order of the features' rows
        features = None
        file = evaluation.first_of(self.source, FEATURES)
        if file:
            rows = np.asarray(safe_npy.load(file))
            features = class_features.of_rows(classes, rows, str(file))
        items = {"test": evaluation.by_uid(entries, str(split))}
        loader = LoadEntry(evaluation.origin(split))
        return evaluation.Layout("released", items, loader, classes, features)

    def _with_paths(self, entries: list[Entry], split: epath.Path) -> list[Entry]:
        """The entries with paths inside the source.

        The authors' data_path is one of their own disk, /mnt/data/.../Objaverse/000-000/UID.npy: as much of
        its end is taken as leads to a file for one of the first shapes.

        Raises:
          SourceNotFound: none of them leads to a file.
        """
        source = epath.Path(self.source).expanduser()
        probes = entries[:: max(len(entries) // PROBES, 1)]
        for depth in range(max((len(PurePosixPath(e.path).parts) for e in probes), default=0), 0, -1):
            tails = [PurePosixPath(*PurePosixPath(e.path).parts[-depth:]) for e in probes]
            if any((source / tail).is_file() for tail in tails):
                ends = (PurePosixPath(*PurePosixPath(e.path).parts[-depth:]) for e in entries)
                return [e._replace(path=str(source / end)) for e, end in zip(entries, ends, strict=True)]
        wanted = [f"{e.path} or the end of it (of {split.name})" for e in probes[:2]]
        raise evaluation.not_found(self.name, self.source, wanted, WHERE_FROM)


def _entries(split: epath.Path) -> Iterator[Entry]:
    """The shapes of lvis.json, with their paths as it gives them.

    Raises:
      ValueError: an entry without uid, group or category.
    """
    for number, entry in enumerate(evaluation.read_list(split)):
        uid, group = entry.get("uid") or entry.get("id"), entry.get("group")
        if not uid or not group or not entry.get("category"):
            raise ValueError(f"{split}: entry {number} has no uid (or id), group or category: {entry}.")
        # Without its root, which would lead out of the source.
        path = str(entry.get("data_path") or f"Objaverse/{group}/{uid}.npy").lstrip("/")
        if ".." in PurePosixPath(path).parts:
            raise ValueError(f"{split}: entry {number} has the data_path {path!r}, which leaves its folder.")
        yield Entry(str(uid), str(entry["category"]), str(group), path)
