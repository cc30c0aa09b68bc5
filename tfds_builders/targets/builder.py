"""The TFDS builder of a work folder of `openshape targets` (ArrayRecord; needs no TensorFlow)."""

from __future__ import annotations

import dataclasses
import functools
import io
import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from openshape_jax.data import class_features, schema, sources
from openshape_jax.geometry_io import load_points
from openshape_jax.making import features, ready, work
from openshape_jax.making.shapes import Shape, Source
from tfds_builders import SourceNotFound
from tfds_builders.mesh_folder import MeshFolder
from tfds_builders.sharded import Loader, ShardedBuilder

NUM_POINTS = 10_000
ICON_SIDE = 128  # pixels


class Item(NamedTuple):
    """A shape, its chosen texts, and where its pictures and their features lie."""

    shape: Shape
    texts: tuple[tuple[str, str, bool], ...]  # (text, source, whether it is a target)
    features: str
    key: str
    picture: str  # the first view


class Load(NamedTuple):
    """Item -> record."""

    folder: str
    source: Source
    width: int
    made: str  # digest of all that goes in: an interrupted build of something else is not gone on with

    def __call__(self, item: Item) -> dict[str, Any]:
        table = _table(self.folder, self.made)
        texts = []
        for text, source, is_target in item.texts:
            bare, prompt = table.find(features.wants(text, source)) if is_target else (None, None)
            texts.append(schema.Text(text, source, bare, prompt))
        rows = features.read_images(Path(item.features), item.key)
        if rows is None:
            raise ValueError(f"{item.features} is of other pictures: run `openshape targets embed` again.")
        flags = {source: is_target for _, source, is_target in item.texts}
        judged = {"text_flag": "Y" if flags["name"] else "N"} if "name" in flags else {}
        shape, stored = item.shape, {}
        if self.source.data:
            stored = _stored(self.source, shape)
            xyz, rgb = schema.dequantize_xyz(stored["xyz"]), stored["rgb"] / np.float32(255)
            xyz = xyz * stored["scale"] + stored["center"]
        else:
            path, seed = Path(self.source.folder, shape.uid), zlib.crc32(shape.uid.encode())
            xyz, rgb, _, _ = load_points(path, NUM_POINTS, seed, self.source.up or None)  # type: ignore[arg-type]
        record = schema.encode(
            uid=shape.uid,
            dataset=stored.get("dataset", "targets"),
            xyz=xyz,
            rgb=rgb,
            texts=texts,
            text_dim=self.width,
            image_features=rows,
            image_dim=self.width,
            icon=_icon(item.picture),
            meta={**shape.meta, "label": shape.label, **judged},
        )
        same = ("xyz", "rgb", "center", "scale", "checksum")  # points of a data set stay to the bit
        return record | {key: stored[key] for key in same if key in stored}


@functools.cache
def _table(folder: str, made: str) -> features.Table:
    del made  # another one must be read again
    return features.Table(Path(folder))


def _stored(source: Source, shape: Shape) -> dict[str, Any]:
    split, index = shape.stamp[:2]
    return _records(source.data, split, source.data_dir)[index]


@functools.cache
def _records(name: str, split: str, data_dir: str) -> Any:
    return sources.open_split(name, split, data_dir)[0]


def _icon(path: str) -> bytes:
    image, buffer = Image.open(path), io.BytesIO()
    image.thumbnail((ICON_SIDE, ICON_SIDE))
    image.save(buffer, "png", optimize=True)
    return buffer.getvalue()


@dataclasses.dataclass
class TargetsConfig(tfds.core.BuilderConfig):
    """Any name, and the width of the features, which belongs to the records' description."""

    width: int = 512


class Targets(ShardedBuilder):
    """The shapes of a work folder with what was made for them; `source` is that folder."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First release."}
    BUILDER_CONFIGS: ClassVar = [
        TargetsConfig(name="default", description="shapes with targets made from themselves")
    ]

    @classmethod
    def own_config(cls, name: str) -> TargetsConfig:
        """The config of targets/NAME. Raises ValueError for a name that is no folder name."""
        MeshFolder.own_config(name, cls.name)
        return TargetsConfig(name=name, description="shapes with targets made from themselves")

    @classmethod
    def config_of_source(cls, name: str, source: str) -> TargetsConfig:
        """The config of targets/NAME for a work folder ("" where none is given).

        Raises:
          ValueError: a name that is no folder name. FileNotFoundError: the folder has no features yet.
        """
        config = cls.own_config(name or "default")
        if source:
            config.width = int(ready.clip_of(Path(source))["width"])
        return config

    def _info(self) -> tfds.core.DatasetInfo:
        assert isinstance(self.builder_config, TargetsConfig)
        width = self.builder_config.width
        return tfds.core.DatasetInfo(
            builder=self,
            description="Shapes with pictures, captions and texts as CLIP features, made from themselves.",
            features=schema.features(text_dim=width, image_dim=width),
            license="as the shapes' own: see `license` and `creator` of the records",
            metadata=tfds.core.MetadataDict(up="z", num_points=NUM_POINTS, version=str(self.VERSION)),
        )

    def _items(self, dl_manager: Any) -> Mapping[str, Mapping[str, Item]]:
        del dl_manager  # nothing is fetched
        if not self.source:
            raise SourceNotFound("targets needs --source DIR, a work folder of `openshape targets embed`.")
        folder = Path(self.source).expanduser().resolve()
        found = ready.read(folder)
        self._ready, self._folder = found, folder
        items: dict[str, dict[str, Item]] = {}
        for item in found.shown:
            shape = item.shape
            mine = Item(
                shape,
                found.texts[shape.uid],
                str(features.place_of(folder, item)),
                features.key_of(item, found.about),
                str(item.paths()[0]),
            )
            items.setdefault(shape.split, {})[shape.uid] = mine
        credit = Counter(
            (s.meta.get("creator") or "not stated", s.meta.get("license") or "not stated")
            for s in (item.shape for item in found.shown)
        )
        assert self.info.metadata is not None
        self.info.metadata.update(
            classes=sorted({item.shape.label for item in found.shown} - {""}),
            text_space=found.about["text_space"],
            clip=dict(found.about),
            made=found.digest,
            work=str(folder),
            stages={
                stage: _told(folder, stage) for stage in ready.STAGES if (folder / f"{stage}.json").is_file()
            },
            attribution=[
                {"creator": creator, "license": license_, "library": folder.name, "count": count}
                for (creator, license_), count in credit.items()
            ],
        )
        return dict(sorted(items.items(), reverse=True))  # train before test

    def _loader(self) -> Loader:
        about = self._ready.about
        return Load(str(self._folder), self._ready.source, int(about["width"]), self._ready.digest)

    def _finish(self, folder: Path) -> None:
        """Writes the vectors of the classes, for zero-shot evaluation in the same space."""
        assert self.info.metadata is not None
        classes = [str(name) for name in self.info.metadata["classes"]]
        if classes:
            table = features.Table(self._folder)
            rows = [table.find(features.wants(name, "class"))[1] for name in classes]
            vectors = [np.asarray(row, np.float32) for row in rows if row is not None]
            class_features.save(folder, class_features.of_rows(classes, vectors, str(self._folder)))


def _told(folder: Path, stage: str) -> dict[str, Any]:
    record = work.read_json(folder / f"{stage}.json")
    return {key: record[key] for key in ("made", "openshape_jax", "settings", "counts") if key in record}
