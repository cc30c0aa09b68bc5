"""The small table of accuracies that a run ends with, and what they measure in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openshape_jax.evals.intervals import Mean

HELD_OUT = "held-out models, classes by their text vectors (true names seen in training)"
TRAINED = "the split that training used: tells what was memorised, not what holds for other shapes"
ZERO_SHOT = "zero-shot, a data set that training did not use"
SEEN = "training may have seen these shapes (data.split=train_no_lvis leaves them out)"
# The ensemble's Objaverse holds the shapes of Objaverse-LVIS, but for these splits.
WITH_LVIS = ("openshape_ensemble", "openshape_ensemble/all", "openshape_ensemble/objaverse")
WITHOUT_LVIS = ("train_no_lvis", "train_shapenet_only")


def kind(dataset: str, config: Mapping[str, Any], split: str = "test") -> str:
    """What accuracies on a data set's split are, for a run of `config`; a set's configs share its names."""
    data = config.get("data") or {}
    trained = data.get("datasets", [])
    splits = data.get("splits") or [data.get("split", "train")] * len(trained)
    same = [used for name, used in zip(trained, splits, strict=True) if _base(name) == _base(dataset)]
    if same:
        return TRAINED if split.partition("[")[0] in [used.partition("[")[0] for used in same] else HELD_OUT
    used = [name for name, split in zip(trained, splits, strict=True) if split not in WITHOUT_LVIS]
    return SEEN if _base(dataset) == "objaverse_lvis" and set(used) & set(WITH_LVIS) else ZERO_SHOT


def _base(dataset: str) -> str:
    """The data set's name without its config; every mesh_folder/NAME or targets/NAME is one of its own."""
    base = str(dataset).partition("/")[0]
    return str(dataset) if base in ("mesh_folder", "targets") else base


def table(workdir: str | Path) -> str:
    """The results of WORKDIR/eval/*.json as text, and the path of the report if there is one."""
    workdir = Path(workdir)
    lines, kinds = [], {}
    for path in sorted((workdir / "eval").glob("*.json")):
        r = json.loads(path.read_text())
        cells = [f"{r[k]:7.1%}" for k in ("top1", "top3", "top5", "mean_class")]
        counts = f"{r.get('split', ''):<8}{r['num_shapes']:>8}{r['num_classes']:>9}"
        lines.append(f"{path.stem:<24}{counts}  {'  '.join(cells)}")
        config = json.loads((workdir / "config.json").read_text())
        kinds[r["dataset"]] = kind(r["dataset"], config, r.get("split", "test"))
    if not lines:
        return f"run directory: {workdir}"
    head = f"{'evaluation':<24}{'split':<8}{'shapes':>8}{'classes':>9}    top-1    top-3    top-5  mean class"
    page = workdir / "report" / "index.html"
    tail = [f"report: {page.resolve()}"] if page.exists() else [f"run directory: {workdir}"]
    return "\n".join([head, "-" * len(head), *lines, *(f"{k}: {v}" for k, v in kinds.items()), *tail])


TITLES = {"top1": "top-1", "top3": "top-3", "top5": "top-5", "mean_class": "mean class"}
Key = tuple[str, str, str]  # data set, part of the suite, measure


def measures(result: Mapping[str, Any]) -> dict[Key, Mean]:
    """Every number of an evaluation (`suite.run`) as a share with its interval, in the order to show them."""
    found: dict[Key, Mean] = {}
    for name, section in result["datasets"].items():
        for task, r in section["zero_shot"].items():
            part = "zero-shot" + (", names of LVIS" if task != name.replace("/", "_") else "")
            half = r.get("half_width", {})
            found |= {(name, part, t): Mean(r[k], half.get(k)) for k, t in TITLES.items()}
        for shots, r in section.get("few_shot", {}).get("shots", {}).items():
            what = f"{shots} shot{'s' if shots != '1' else ''} a class"
            found[name, "few-shot", what] = Mean(r["mean"], r["half_width"])
        for k, share in section.get("knn", {}).get("neighbours", {}).items():
            found[name, "kNN", f"k = {k}"] = Mean(share, None)
        for query, r in section.get("retrieval", {}).items():
            if isinstance(r, Mapping):
                found |= {(name, query, k): Mean(v, None) for k, v in _retrieved(r).items()}
        for r in section.get("robustness", {}).get("kinds", {}).values():
            for level in r["levels"]:
                what = f"{level['level']:g}" + (" (unchanged)" if level["clean"] else "")
                found[name, f"{r['title']}: {r['axis']}", what] = Mean(
                    level["top1"]["mean"], level["top1"]["half_width"]
                )
    return found


def _retrieved(r: Mapping[str, Any]) -> dict[str, float]:
    """{measure: share} of one kind of query, those of its variants named after them."""
    shown = {k: v for k, v in r.items() if k == "mAP" or k.startswith(("recall@", "gain@"))}
    for variant in r:
        if isinstance(r[variant], Mapping) and variant != "formulas":
            shown |= {f"{variant}, {k}": v for k, v in _retrieved(r[variant]).items()}
    return shown


def notes(section: Mapping[str, Any]) -> list[str]:
    """What a reader of a data set's numbers must know: protocol, splits, intervals, what was left out."""
    lines = [f"split {section['split']}, {section['num_shapes']:,} shapes; {section['protocol']}"]
    first = next(iter(section["zero_shot"].values()))
    if "interval" in first:
        lines.append(f"zero-shot and robustness: ± is half the {first['interval']} of points")
    if few := section.get("few_shot"):
        how = f"; {few['classifier']}; ± is half the {few['interval']} of shots" if "shots" in few else ""
        lines.append(f"few-shot: {few['splits']}{how}" if how else f"few-shot left out: {few['left_out']}")
    if near := section.get("knn"):
        lines.append(f"kNN: {near['splits']}; vote {near['vote']}")
    for query, r in section.get("retrieval", {}).items():
        if isinstance(r, Mapping) and "left_out" in r:
            lines.append(f"{query} left out: {r['left_out']}")
        elif query == "two shapes → shape":
            formulas = "; ".join(f"{k}: {v}" for k, v in r["formulas"].items())
            lines.append(f"{query}: ranked by {formulas}")
        elif query == "measures":
            lines.append(f"retrieval: {r}")
    return lines


def suite_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The numbers of one evaluation, or of several side by side, in per cent, as text."""
    columns = {name: measures(result) for name, result in results.items()}
    keys = list(dict.fromkeys(key for found in columns.values() for key in found))
    parts = list(dict.fromkeys(key[:2] for key in keys))
    keys.sort(key=lambda key: parts.index(key[:2]))  # together where runs have different parts
    width = max([len(name) for name in columns] + [12])
    wide = max([len(key[2]) for key in keys] + [20]) + 4
    lines, heading = [], ("", "")
    if any(columns):  # a single evaluation needs no name
        lines.append(" " * wide + "".join(f"{name:>{width + 2}}" for name in columns))
    for key in keys:
        if key[:2] != heading:
            heading = key[:2]
            lines.append(f"{heading[0]}, {heading[1]}")
        cells = (found[key].text() if key in found else "-" for found in columns.values())
        lines.append(f"    {key[2]:<{wide - 4}}" + "".join(f"{cell:>{width + 2}}" for cell in cells))
    return "\n".join(lines)
