"""What the builders of the evaluation sets share: finding files, class names and features, the record."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from openshape_jax.data import class_features, files, safe_npy, schema
from openshape_jax.data.class_features import ClassFeatures
from tfds_builders import SourceNotFound
from tfds_builders.sharded import Loader, ShardedBuilder

TEXT_DIM = 1280  # of the released features; the records themselves hold no text feature


class Layout(NamedTuple):
    """One form of a data set's raw files, as far as it could be read."""

    name: str  # "released", "princeton", "h5"
    items: Mapping[str, Mapping[str, Any]]  # {split: {uid: item}}
    loader: Loader
    classes: Sequence[str]
    features: ClassFeatures | None  # of exactly these classes


class Cloud(NamedTuple):
    """An item whose points are in memory."""

    uid: str
    label: str
    xyz: np.ndarray  # (N, 3), y-up as the released files have it
    rgb: np.ndarray | None  # (N, 3) in [0, 1]; None: the data set has no colour


class LoadCloud(NamedTuple):
    """Cloud -> record."""

    dataset: str
    origin: str  # files and their sizes: an interrupted build of other files is not gone on with

    def __call__(self, item: Cloud) -> dict[str, Any]:
        return record(self.dataset, item.uid, item.label, schema.to_z_up(np.asarray(item.xyz)), item.rgb)


def record(
    dataset: str, uid: str, label: str, xyz: np.ndarray, rgb: np.ndarray | None, **meta: str
) -> dict[str, Any]:
    """The record of a shape whose only text is its class name; z-up xyz (N, 3), rgb in [0, 1] or None."""
    if xyz.ndim != 2 or xyz.shape[1] != 3:
        raise ValueError(f"xyz has shape {xyz.shape}; expected (N, 3).")
    return schema.encode(
        uid=uid,
        dataset=dataset,
        xyz=xyz,
        rgb=np.full(xyz.shape, schema.GRAY) if rgb is None else rgb,
        texts=[schema.Text(spoken(label), "class")],
        text_dim=TEXT_DIM,
        image_dim=TEXT_DIM,
        meta={"name": uid, "label": label, **meta},
    )


def spoken(name: str) -> str:
    """A class name in words: "night_stand" -> "night stand"."""
    return " ".join(name.replace("_", " ").split())


def first_of(source: str, candidates: Sequence[str]) -> epath.Path | None:
    """The first of some paths inside the folder `source` that is there; None where no folder was given."""
    if not source:
        return None
    paths = [epath.Path(source).expanduser() / candidate for candidate in candidates]
    return next((path for path in paths if path.exists()), None)


def not_found(name: str, source: str, wanted: Sequence[str], where_from: str) -> SourceNotFound:
    """The error that says which files were looked for, in which folder, and where they come from."""
    listed = "".join(f"\n  looked for: {line}" for line in wanted)
    return SourceNotFound(
        f"the raw files of {name!r} are not there.\n"
        f"  looked in:  {source or '(no folder was given)'}{listed}\n"
        f"  get them:   {where_from}\n"
        f"  then:       openshape data build {name} --source FOLDER"
    )


def read_list(path: epath.Path) -> list[dict[str, Any]]:
    """The list of dicts that a released JSON file holds.

    Raises:
      ValueError: it is damaged or holds something else.
    """
    found = files.parse_json(files.read_bytes(path), path)
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise ValueError(f"{path} is no list of entries, one a shape: fetch it again.")
    return found


def origin(*paths: epath.Path) -> str:
    """The paths of files with their sizes."""
    return ", ".join(f"{path} {path.stat().length}" for path in paths)


def named_features(path: epath.Path | None, classes: Sequence[str]) -> ClassFeatures | None:
    """The features of `classes` in a released {category: {"open_clip_text_feat": (1, D)}}; None without file.

    Raises:
      ValueError: a class without a feature, or another form.
    """
    if path is None:
        return None
    table = safe_npy.load(path)
    if not isinstance(table, Mapping):
        raise ValueError(f"{path} holds {type(table).__name__}; expected a dict from category to features.")
    known = {spoken(str(category)): entry for category, entry in table.items()}
    missing = [name for name in classes if spoken(name) not in known]
    if missing:
        raise ValueError(
            f"{path} has no feature for {len(missing)} of {len(classes)} classes ({', '.join(missing[:5])}): "
            "fetch the file again, or move it away to build without class features."
        )
    rows = []
    for name in classes:
        entry = known[spoken(name)]
        if not isinstance(entry, Mapping) or "open_clip_text_feat" not in entry:
            raise ValueError(f"{path}: the entry of {name!r} has no 'open_clip_text_feat'.")
        rows.append(entry["open_clip_text_feat"])
    return class_features.of_rows(classes, rows, str(path))


class EvaluationBuilder(ShardedBuilder, skip_registration=True):
    """A builder whose subclass finds a `Layout` in the folder `source`."""

    about = ""  # one line, for the description
    license_note = ""
    homepage = ""
    creator = ""  # as the report's attribution says it
    _layout: Layout

    @abc.abstractmethod
    def _find(self) -> Layout:
        """The raw files in `source`.

        Raises:
          SourceNotFound: they are not there. ValueError: they are not what they should be.
        """

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.about,
            features=schema.features(text_dim=TEXT_DIM, image_dim=TEXT_DIM),
            homepage=self.homepage,
            license=self.license_note,
            metadata=tfds.core.MetadataDict(up="z", classes=[]),
        )

    def _items(self, dl_manager: Any) -> Mapping[str, Mapping[str, Any]]:
        del dl_manager  # nothing is fetched
        self._layout = self._find()
        assert self.info.metadata is not None
        count = sum(len(items) for items in self._layout.items.values())
        credit = {"creator": self.creator, "license": self.license_note, "library": self.name, "count": count}
        self.info.metadata.update(
            classes=list(self._layout.classes),
            layout=self._layout.name,
            class_feature_width=self._layout.features.width if self._layout.features else 0,
            attribution=[credit],
        )
        return self._layout.items

    def _loader(self) -> Callable[[Any], dict[str, Any]]:
        return self._layout.loader

    def _finish(self, folder: Path) -> None:
        if self._layout.features:
            class_features.save(folder, self._layout.features)


def by_uid(clouds: Sequence[Any], where: str) -> dict[str, Any]:
    """{uid: item}.

    Raises:
      ValueError: a uid twice.
    """
    found: dict[str, Any] = {}
    for cloud in clouds:
        if cloud.uid in found:
            raise ValueError(f"{where} names the shape {cloud.uid!r} twice.")
        found[cloud.uid] = cloud
    return found


def check_label(label: str, classes: Sequence[str], where: str) -> str:
    """`label` itself.

    Raises:
      ValueError: it is none of the classes.
    """
    if label not in classes:
        raise ValueError(f"{where}: the class {label!r} is none of the {len(classes)}: {', '.join(classes)}.")
    return label


def class_of(index: Any, classes: Sequence[str], where: str) -> str:
    """The class of a number.

    Raises:
      ValueError: it is out of range.
    """
    if not 0 <= int(index) < len(classes):
        raise ValueError(
            f"{where}: the label {int(index)} is out of range; there are {len(classes)} classes, 0 to "
            f"{len(classes) - 1}."
        )
    return classes[int(index)]
