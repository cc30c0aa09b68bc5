"""The small table of zero-shot accuracies that a run ends with."""

from __future__ import annotations

import json
from pathlib import Path


def table(workdir: str | Path) -> str:
    """The results of WORKDIR/eval/*.json as text, and the path of the report if there is one."""
    workdir = Path(workdir)
    lines = []
    for path in sorted((workdir / "eval").glob("*.json")):
        r = json.loads(path.read_text())
        cells = [f"{r[k]:7.1%}" for k in ("top1", "top3", "top5", "mean_class")]
        lines.append(f"{path.stem:<24}{r['num_shapes']:>8}{r['num_classes']:>9}  {'  '.join(cells)}")
    if not lines:
        return f"run directory: {workdir}"
    head = f"{'zero-shot':<24}{'shapes':>8}{'classes':>9}    top-1    top-3    top-5  mean class"
    page = workdir / "report" / "index.html"
    tail = [f"report: {page.resolve()}"] if page.exists() else [f"run directory: {workdir}"]
    return "\n".join([head, "-" * len(head), *lines, *tail])
