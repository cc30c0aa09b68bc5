"""The TFDS builder of ScanObjectNN (ArrayRecord; needs no TensorFlow)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from openshape_jax.data import safe_npy, schema
from tfds_builders import evaluation

CLASSES = (  # in the order of the label numbers
    "bag", "bin", "box", "cabinet", "chair", "desk", "display", "door", "shelf", "table", "bed", "pillow",
    "sink", "sofa", "toilet",
)  # fmt: skip
FOLDERS = ("", "h5_files/", "scanobjectnn/", "ScanObjectNN/", "ScanObjectNN/h5_files/")
RELEASED = ("meta_data/scanobjectnn/", "scanobjectnn/", "")
FEATURES = tuple(f"{folder}cat_name_pt_feat.npy" for folder in RELEASED)
BOTH = "train_test"  # the split of the released file; TFDS keeps "all" for itself
H5_FROM = "h5_files.zip of hkust-vgd.github.io/scanobjectnn (a form asks for research use)"
RELEASED_FROM = "meta_data.zip of huggingface.co/datasets/OpenShape/openshape-training-data"


@dataclasses.dataclass
class ScanobjectnnConfig(tfds.core.BuilderConfig):
    """Which files of the official release; none: OpenShape's."""

    files: dict[str, str] = dataclasses.field(default_factory=dict)  # {split: path}


def _variant(name: str, folder: str, ending: str, description: str) -> ScanobjectnnConfig:
    files = {"train": "training", "test": "test"}
    paths = {split: f"{folder}/{begin}_objectdataset{ending}.h5" for split, begin in files.items()}
    return ScanobjectnnConfig(name=name, description=description, files=paths)


class Scanobjectnn(evaluation.EvaluationBuilder):
    """Scanned objects of 15 classes without colour, for zero-shot evaluation; see README.md."""

    name = "scanobjectnn"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First release."}
    BUILDER_CONFIGS: ClassVar = [
        _variant("obj_only", "main_split_nobg", "", "the objects alone: 581 for the test (the default)"),
        _variant("obj_bg", "main_split", "", "the objects with what stands around them: 581 for the test"),
        _variant(
            "pb_t50_rs", "main_split", "_augmentedrot_scale75",
            "moved, turned and scaled boxes with background, the hardest: 2,882 for the test",
        ),
        ScanobjectnnConfig(name="released", description="OpenShape's file: 2,890 objects, train and test"),
    ]  # fmt: skip
    about = "ScanObjectNN: objects cut from scans of rooms, 2,048 points, 15 classes, without colour."
    homepage = "https://hkust-vgd.github.io/scanobjectnn"
    license_note = "research use"
    creator = "ScanObjectNN (HKUST)"

    def _find(self) -> evaluation.Layout:
        config = self.builder_config
        assert isinstance(config, ScanobjectnnConfig)
        return self._from_h5(config) if config.files else self._from_release()

    def _features(self) -> Any:
        return evaluation.named_features(evaluation.first_of(self.source, FEATURES), CLASSES)

    def _from_h5(self, config: ScanobjectnnConfig) -> evaluation.Layout:
        found: dict[str, epath.Path] = {}
        for split, file in config.files.items():
            path = evaluation.first_of(self.source, [folder + file for folder in FOLDERS])
            if not path:
                wanted = [f"{file}, there or in {', '.join(folder for folder in FOLDERS if folder)}"]
                raise evaluation.not_found(f"{self.name}/{config.name}", self.source, wanted, H5_FROM)
            found[split] = path
        items = {}
        for split, path in found.items():
            xyz, label = _read_h5(path)
            items[split] = evaluation.by_uid(list(_clouds(xyz, label, None, path, split)), str(path))
        loader = evaluation.LoadCloud(self.name, evaluation.origin(*found.values()))
        return evaluation.Layout("h5", items, loader, CLASSES, self._features())

    def _from_release(self) -> evaluation.Layout:
        wanted = [f"{folder}xyz_label.npy" for folder in RELEASED]
        path = evaluation.first_of(self.source, wanted)
        if not path:
            raise evaluation.not_found(
                f"{self.name}/released", self.source, [", ".join(wanted)], RELEASED_FROM
            )
        stored = safe_npy.load(path)
        if not isinstance(stored, Mapping) or not {"xyz", "label"} <= stored.keys():
            raise ValueError(f"{path}: it is no dict with xyz and label.")
        clouds = list(_clouds(stored["xyz"], stored["label"], stored.get("rgb"), path, BOTH))
        loader = evaluation.LoadCloud(self.name, evaluation.origin(path))
        items = {BOTH: evaluation.by_uid(clouds, str(path))}
        return evaluation.Layout("released", items, loader, CLASSES, self._features())


def _read_h5(path: epath.Path) -> tuple[np.ndarray, np.ndarray]:
    """(points (n, N, 3), labels (n,)) of an official file.

    Raises:
      ValueError: it is damaged, or misses one of them.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return np.asarray(file["data"])[..., :3], np.asarray(file["label"]).reshape(-1)
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}): it must hold data (n, 2048, 3) and label (n,); fetch it again."
        ) from error


def _clouds(xyz: Any, labels: Any, rgb: Any, path: epath.Path, split: str) -> Iterator[evaluation.Cloud]:
    """The shapes of one file, numbered.

    Args:
      xyz: n clouds (N, 3), an array or a sequence.
      labels: (n,) or (n, 1) numbers of classes.
      rgb: n times (N, 3) colours, or None.

    Raises:
      ValueError: another number of labels than of shapes, a label out of range, bad colours.
    """
    labels = np.asarray(labels).reshape(-1)
    if len(xyz) != len(labels) or (rgb is not None and len(rgb) != len(xyz)):
        raise ValueError(f"{path} holds {len(xyz)} shapes but {len(labels)} labels: fetch it again.")
    for number, label in enumerate(labels):
        name = evaluation.class_of(label, CLASSES, f"{path}, shape {number}")
        colour = None if rgb is None else schema.unit_colors(np.asarray(rgb[number]))
        yield evaluation.Cloud(f"{split}-{number:05d}", name, np.asarray(xyz[number]), colour)
