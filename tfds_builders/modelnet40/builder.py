"""The TFDS builder of ModelNet40 (ArrayRecord; needs no TensorFlow)."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from openshape_jax import geometry_io
from openshape_jax.data import safe_npy
from tfds_builders import evaluation

NUM_POINTS = 10_000
GREY = 100 / 255  # the colour of every shape in OpenShape's protocol
CLASSES = (
    "airplane", "bathtub", "bed", "bench", "bookshelf", "bottle", "bowl", "car", "chair", "cone", "cup",
    "curtain", "desk", "door", "dresser", "flower pot", "glass box", "guitar", "keyboard", "lamp", "laptop",
    "mantel", "monitor", "night stand", "person", "piano", "plant", "radio", "range hood", "sink", "sofa",
    "stairs", "stool", "table", "tent", "toilet", "tv stand", "vase", "wardrobe", "xbox",
)  # fmt: skip
FOLDERS = ("meta_data/modelnet40/", "modelnet40/", "")  # where a released file may lie in the source
PRINCETON = ("ModelNet40/", "")
WHERE_FROM = (
    "meta_data.zip of huggingface.co/datasets/OpenShape/openshape-training-data, or ModelNet40.zip of "
    "modelnet.cs.princeton.edu (academic use)"
)


class Mesh(NamedTuple):
    """A mesh file of Princeton's folder."""

    uid: str
    label: str
    path: str


class LoadMesh(NamedTuple):
    """Mesh -> record: points uniform in area; the seed is a function of the name."""

    origin: str  # the folder: an interrupted build of another one is not gone on with
    num_points: int = NUM_POINTS

    def __call__(self, item: Mesh) -> dict[str, Any]:
        seed = zlib.crc32(item.uid.encode())
        points = geometry_io.load_points(item.path, self.num_points, seed, up="z")
        return evaluation.record(
            Modelnet40.name, item.uid, item.label, points.xyz, np.full(points.xyz.shape, GREY)
        )


class Modelnet40(evaluation.EvaluationBuilder):
    """40 kinds of CAD models, for zero-shot evaluation; see README.md."""

    name = "modelnet40"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First release."}
    about = "ModelNet40 as coloured points: 2,468 test shapes, and with Princeton's meshes the training ones."
    homepage = "https://modelnet.cs.princeton.edu"
    license_note = "academic use"
    creator = "Princeton ModelNet"

    def _find(self) -> evaluation.Layout:
        points = evaluation.first_of(self.source, [f"{f}test_pc.npy" for f in FOLDERS])
        if points:
            return self._released(points)
        root = self._princeton_root()
        if root:
            return self._princeton(root)
        wanted = (
            "test_pc.npy and test_split.json in meta_data/modelnet40/, modelnet40/ or the folder itself",
            "ModelNet40/<class>/{train,test}/*.off, or <class>/{train,test}/*.off",
        )
        raise evaluation.not_found(self.name, self.source, wanted, WHERE_FROM)

    def _released(self, points: epath.Path) -> evaluation.Layout:
        split = points.with_name("test_split.json")
        if not split.is_file():
            raise evaluation.not_found(
                self.name, self.source, [f"{split} (it is missing beside {points.name})"], WHERE_FROM
            )
        features_file = points.with_name("cat_name_pt_feat.npy")
        features = evaluation.named_features(features_file if features_file.is_file() else None, CLASSES)
        clouds = evaluation.by_uid(list(_released_clouds(split, points)), str(split))
        loader = evaluation.LoadCloud(self.name, evaluation.origin(points, split))
        return evaluation.Layout("released", {"test": clouds}, loader, CLASSES, features)

    def _princeton_root(self) -> epath.Path | None:
        for folder in PRINCETON:
            root = evaluation.first_of(self.source, [folder])
            if root and any(root.glob("*/test/*.off")):
                return root
        return None

    def _princeton(self, root: epath.Path) -> evaluation.Layout:
        items: dict[str, dict[str, Mesh]] = {}
        for split in ("test", "train"):
            meshes = []
            for path in sorted(root.glob(f"*/{split}/*.off")):
                label = evaluation.check_label(
                    evaluation.spoken(path.parent.parent.name), CLASSES, f"{path.parent}"
                )
                meshes.append(Mesh(path.stem, label, str(path)))
            if meshes:
                items[split] = evaluation.by_uid(meshes, str(root))
        released = [f"{f}cat_name_pt_feat.npy" for f in FOLDERS]
        features = evaluation.named_features(evaluation.first_of(self.source, released), CLASSES)
        return evaluation.Layout("princeton", items, LoadMesh(str(root)), CLASSES, features)


def _released_clouds(split_file: epath.Path, points_file: epath.Path) -> Iterator[evaluation.Cloud]:
    """The shapes of OpenShape's release.

    Raises:
      ValueError: the files do not fit together, or a class is unknown.
    """
    split = evaluation.read_list(split_file)
    clouds = safe_npy.load(points_file)
    if len(split) != len(clouds):
        raise ValueError(
            f"{split_file} lists {len(split)} shapes, {points_file} holds {len(clouds)}: fetch both again."
        )
    for entry, cloud in zip(split, clouds, strict=True):
        if not isinstance(cloud, Mapping) or not {"xyz", "rgb"} <= cloud.keys():
            raise ValueError(f"{points_file}: the entry of {entry.get('name')} is no dict with xyz and rgb.")
        category = evaluation.spoken(str(entry.get("category")))
        label = evaluation.check_label(category, CLASSES, str(split_file))
        rgb = np.asarray(cloud["rgb"], np.float32) / np.float32(255)
        yield evaluation.Cloud(str(entry["name"]), label, cloud["xyz"], rgb)
