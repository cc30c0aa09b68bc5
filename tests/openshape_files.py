"""Small data in the layout of OpenShape's release (meta_data/ and pickled .npy dicts)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

FINAL = "objaverse-processed/merged_for_training_final"
WIDTH = 1280
# (data set, group, id); ShapeNet uses an id in two groups, 3D-FUTURE's files lie in no group's folder.
SHAPES = [
    *(("Objaverse", f"000-00{i // 4}", f"{i:032x}") for i in range(6)),
    ("ShapeNet", "02801938", "a1"), ("ShapeNet", "02801938", "a2"), ("ShapeNet", "03001627", "a1"),
    ("ABO", "0", "B07"), ("ABO", "1", "B08"),
    *(("3D-FUTURE", "", f"9439-{i}") for i in range(3)),
]  # fmt: skip
LVIS = {f"{0:032x}": "armchair", f"{1:032x}": "monitor_(computer_equipment) computer_monitor"}
FLAGS = {f"{i:032x}": {"name": "x", "flag": "YN"[i % 2]} for i in range(5)}  # the sixth was not asked for


def uid(shape: tuple[str, str, str]) -> str:
    return "/".join(filter(None, shape))


UIDS = [uid(shape) for shape in SHAPES]


def vector(rng: np.random.Generator, width: int, row: bool) -> np.ndarray:
    """A unit vector (width,) or, as the release has many of them, (1, width)."""
    v = rng.normal(size=width).astype(np.float32)
    v /= np.linalg.norm(v)
    return v[None] if row else v


def content(
    shape: tuple[str, str, str], num_points: int = 50, width: int = WIDTH, renders: int = 12, texts: int = 2
) -> dict[str, Any]:
    """What a released file of the shape holds; a function of its arguments."""
    dataset, group, name = shape
    rng = np.random.default_rng([*map(ord, uid(shape))])
    of_objaverse = dataset == "Objaverse"

    def features() -> dict[str, np.ndarray]:
        return {key: vector(rng, width, of_objaverse) for key in ("original", "prompt_avg")}

    return {
        "dataset": dataset,
        "group": group,
        "id": name,
        "xyz": rng.normal(size=(num_points, 3)).astype(np.float32) * [0.2, 0.9, 0.4],
        "rgb": rng.random((num_points, 3)).astype(np.float32),
        "image_feat": np.stack([vector(rng, width, False) for _ in range(renders)]),
        **({"thumbnail_feat": vector(rng, width, True)} if of_objaverse else {}),
        "text": [f"{name} as its maker calls it", f"{name} by tags"][:texts],
        "text_feat": [features() for _ in range(texts)],
        "blip_caption": f"a drawing of {name}",
        "blip_caption_feat": features(),
        "msft_caption": f"a photo of {name}, jalapeño",
        "msft_caption_feat": features(),
        "retrieval_text": [f"{name} on sale"],
        "retrieval_text_feat": [{"original": vector(rng, width, of_objaverse)}],
    }


def path_of(root: Path, shape: tuple[str, str, str]) -> Path:
    return root / FINAL / f"{uid(shape)}.npy"


def entry(shape: tuple[str, str, str]) -> dict[str, str]:
    """The shape's line in a split file."""
    dataset, group, name = shape
    return {
        "dataset": dataset,
        "group": group,
        "id": name,
        "data_path": f"/mnt/data/{FINAL}/{uid(shape)}.npy",
    }


def write_splits(root: Path, splits: dict[str, list[tuple[str, str, str]]]) -> None:
    """meta_data/split/NAME.json of each."""
    for name, shapes in splits.items():
        path = root / "meta_data" / "split" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([entry(s) for s in shapes]))


def write(
    root: Path,
    datasets: tuple[str, ...] = ("Objaverse", "ShapeNet", "ABO", "3D-FUTURE"),
    change: Callable[[str, dict[str, Any]], Any] = lambda uid, data: data,
) -> Path:
    """The meta data of all shapes and the files of some data sets; `change` alters what a file holds.

    Returns `root`.
    """
    write_splits(
        root,
        {
            "train_all": SHAPES,
            "train_no_lvis": [s for s in SHAPES if s[2] not in LVIS],
            "ablation/train_shapenet_only": [s for s in SHAPES if s[0] == "ShapeNet"],
        },
    )
    lvis = [entry(s) | {"category": LVIS[s[2]]} for s in SHAPES if s[2] in LVIS]
    (root / "meta_data" / "split" / "lvis.json").write_text(json.dumps(lvis))
    (root / "meta_data" / "gpt4_filtering.json").write_text(json.dumps(FLAGS))
    for shape in SHAPES:
        if shape[0] in datasets:
            path = path_of(root, shape)
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, change(uid(shape), content(shape)), allow_pickle=True)
    return root
