"""Tiny versions of the raw files of the evaluation sets, as their authors release them, and built sets."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from openshape_jax.data import build, schema, sources
from tfds_builders.modelnet40.builder import CLASSES as MODELNET
from tfds_builders.scanobjectnn.builder import CLASSES as SCANOBJECTNN

POINTS = 48
MODELS = ("airplane", "night stand", "xbox")  # categories of the ModelNet40 shapes made here
LVIS = ("sofa", "Band_Aid", "teapot", "bat_(animal)")  # in no order; sorted they begin with "Band_Aid"
H5_FILES = {
    "obj_only": "main_split_nobg/{}_objectdataset.h5",
    "obj_bg": "main_split/{}_objectdataset.h5",
    "pb_t50_rs": "main_split/{}_objectdataset_augmentedrot_scale75.h5",
}


def cloud(seed: int) -> np.ndarray:
    """(POINTS, 3) float32, y-up: tall along y, no symmetry."""
    rng = np.random.default_rng(seed)
    return (rng.random((POINTS, 3)) ** 2 * [1, 3, 2] + [5, 0, -2]).astype(np.float32)


def features(names, width: int, seed: int = 0) -> dict:
    """{category: {"open_clip_text_feat": (1, width)}}, not normalised."""
    rows = np.random.default_rng(seed).normal(size=(len(names), 1, width)).astype(np.float32) * 7
    return {name: {"open_clip_text_feat": row} for name, row in zip(names, rows, strict=True)}


def save(path: Path, value) -> Path:
    """Saves as the authors do: whatever it is, pickled into a .npy."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, value, allow_pickle=True)
    return path


def objects(items) -> np.ndarray:
    """An object array (n,) of dicts."""
    out = np.empty(len(items), object)
    out[:] = items
    return out


def modelnet_released(root: Path, width: int = 1280, each: int = 2) -> Path:
    """ROOT/meta_data/modelnet40/ with `each` shapes of MODELS; returns that folder."""
    folder = root / "meta_data" / "modelnet40"
    entries = [{"name": f"{c.replace(' ', '_')}_{i:04d}", "category": c} for c in MODELS for i in range(each)]
    clouds = [{"xyz": cloud(i), "rgb": np.full((POINTS, 3), 100)} for i in range(len(entries))]
    save(folder / "test_pc.npy", objects(clouds))
    (folder / "test_split.json").write_text(json.dumps(entries))
    if width:
        save(folder / "cat_name_pt_feat.npy", features(MODELNET, width))
    return folder


def off(vertices, faces, header: str = "OFF\n") -> str:
    """The text of an OFF file; "OFF" as header gives Princeton's files whose first line runs on."""
    lines = [f"{header}{len(vertices)} {len(faces)} 0"]
    lines += [" ".join(map(str, v)) for v in vertices] + ["3 " + " ".join(map(str, f)) for f in faces]
    return "\n".join(lines) + "\n"


def modelnet_princeton(root: Path) -> Path:
    """ROOT/ModelNet40/ with one training and one test mesh of two classes, z-up."""
    corners = [(0, 0, 0), (1, 0, 0), (0, 2, 0), (0, 0, 5)]
    sides = [(0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3)]
    for category in ("airplane", "night_stand"):
        for split, number, header in (("train", 1, "OFF\n"), ("test", 2, "OFF")):
            path = root / "ModelNet40" / category / split / f"{category}_{number:04d}.off"
            path.parent.mkdir(parents=True)
            path.write_text(off(corners, sides, header))
    return root / "ModelNet40"


def lvis(root: Path, width: int = 1280, prefix: str = "/mnt/data/merged/Objaverse") -> Path:
    """ROOT/meta_data and ROOT/Objaverse/GROUP/UID.npy, two shapes a category; returns lvis.json."""
    entries = []
    for i in range(2 * len(LVIS)):
        uid, group = f"{i:032x}", f"000-{i % 2:03d}"
        path = f"{prefix}/{group}/{uid}.npy"
        entries.append({"uid": uid, "group": group, "category": LVIS[i % len(LVIS)], "data_path": path})
        rgb = np.random.default_rng(i).random((POINTS, 3)).astype(np.float32)
        shape = {"dataset": "Objaverse", "group": group, "id": uid, "xyz": cloud(i), "rgb": rgb}
        save(root / "Objaverse" / group / f"{uid}.npy", {**shape, "text": ["a thing"], "blip_caption": ""})
    path = root / "meta_data" / "split" / "lvis.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries))
    if width:
        rows = [row["open_clip_text_feat"][0] for row in features(sorted(LVIS), width).values()]
        save(root / "meta_data" / "lvis_cat_name_pt_feat.npy", np.stack(rows))
    return path


def scan_h5(root: Path, variant: str = "obj_only", train: int = 3, test: int = 2) -> Path:
    """ROOT/main_split.../{training,test}_objectdataset....h5, labels from the end of the classes."""
    for name, count, first in (("training", train, 0), ("test", test, 100)):
        path = root / H5_FILES[variant].format(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            file["data"] = np.stack([cloud(first + i) for i in range(count)])
            file["label"] = np.array([14 - i % 15 for i in range(count)], np.uint8)
            file["mask"] = np.zeros((count, POINTS))
    return root


def scan_released(root: Path, width: int = 1280, labels=(0, 4, 14), rgb: bool = False) -> Path:
    """ROOT/meta_data/scanobjectnn/ with a shape a label; returns that folder."""
    folder = root / "meta_data" / "scanobjectnn"
    stored = {"xyz": np.stack([cloud(i) for i in range(len(labels))]), "label": np.array(labels)}
    if rgb:
        stored["rgb"] = np.full(stored["xyz"].shape, 0.8)
    save(folder / "xyz_label.npy", stored)
    if width:
        save(folder / "cat_name_pt_feat.npy", features(SCANOBJECTNN, width))
    return folder


def built(name: str, source: Path, data_dir: Path) -> Path:
    """The folder of the data set, built from the raw files in `source`."""
    return build.build(name, data_dir, build.Options(source=str(source), jobs=1))


def records_of(name: str, split: str, data_dir: Path) -> tuple[dict[str, dict], Any]:
    """({uid: record} in the order they are stored, tfds DatasetInfo)."""
    records, info = sources.open_split(name, split, data_dir)
    return {records[i]["uid"]: records[i] for i in range(len(records))}, info


def points_of(record: dict) -> np.ndarray:
    """(N, 3) in the raw files' units, z-up."""
    return schema.dequantize_xyz(record["xyz"]) * record["scale"] + record["center"]
