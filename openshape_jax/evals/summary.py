"""The small table of accuracies that a run ends with, and what they measure in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HELD_OUT = "held-out models, classes by their text vectors (true names seen in training)"
ZERO_SHOT = "zero-shot, a data set that training did not use"
SEEN = "training may have seen these shapes (data.split=train_no_lvis leaves them out)"
# The ensemble's Objaverse holds the shapes of Objaverse-LVIS, but for these splits.
WITH_LVIS = ("openshape_ensemble", "openshape_ensemble/all", "openshape_ensemble/objaverse")
WITHOUT_LVIS = ("train_no_lvis", "train_shapenet_only")


def kind(dataset: str, config: Mapping[str, Any]) -> str:
    """What accuracies on a data set are, for a run of `config`; configs of one data set share its names."""
    data = config.get("data") or {}
    trained = data.get("datasets", [])
    if _base(dataset) in map(_base, trained):
        return HELD_OUT
    splits = data.get("splits") or [data.get("split", "train")] * len(trained)
    used = [name for name, split in zip(trained, splits, strict=True) if split not in WITHOUT_LVIS]
    return SEEN if _base(dataset) == "objaverse_lvis" and set(used) & set(WITH_LVIS) else ZERO_SHOT


def _base(dataset: str) -> str:
    """The data set's name without its config; every mesh_folder/NAME is a data set of its own."""
    base = str(dataset).partition("/")[0]
    return str(dataset) if base == "mesh_folder" else base


def table(workdir: str | Path) -> str:
    """The results of WORKDIR/eval/*.json as text, and the path of the report if there is one."""
    workdir = Path(workdir)
    lines, kinds = [], {}
    for path in sorted((workdir / "eval").glob("*.json")):
        r = json.loads(path.read_text())
        cells = [f"{r[k]:7.1%}" for k in ("top1", "top3", "top5", "mean_class")]
        counts = f"{r.get('split', ''):<8}{r['num_shapes']:>8}{r['num_classes']:>9}"
        lines.append(f"{path.stem:<24}{counts}  {'  '.join(cells)}")
        kinds[r["dataset"]] = kind(r["dataset"], json.loads((workdir / "config.json").read_text()))
    if not lines:
        return f"run directory: {workdir}"
    head = f"{'evaluation':<24}{'split':<8}{'shapes':>8}{'classes':>9}    top-1    top-3    top-5  mean class"
    page = workdir / "report" / "index.html"
    tail = [f"report: {page.resolve()}"] if page.exists() else [f"run directory: {workdir}"]
    return "\n".join([head, "-" * len(head), *lines, *(f"{k}: {v}" for k, v in kinds.items()), *tail])
