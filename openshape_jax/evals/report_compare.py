"""Evaluations side by side: a table for the terminal and a page of the report's look."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openshape_jax.evals import report, report_shell, report_suite, suite, summary

esc = html.escape
Results = Mapping[str, Mapping[str, Any]]  # by name: what eval.json holds


def write(folders: Sequence[str | Path], output: Path) -> tuple[str, Path]:
    """(the table as text, OUTPUT/report/index.html) of the evaluations in some folders.

    Args:
      folders: of `openshape eval --output`, or run directories that were evaluated; two or more.

    Raises:
      ValueError: fewer than two, one twice, or one without a readable eval.json.
    """
    if len(folders) < 2:
        raise ValueError(f"--compare has {len(folders)} folder; name two or more.")
    results = {name: suite.read(folder) for name, folder in _named(folders).items()}
    text = "\n".join([summary.suite_table(results), *(f"differs: {line}" for line in differences(results))])
    return text, report.save(page(results), output / "report" / "index.html")


def _named(folders: Sequence[str | Path]) -> dict[str, Path]:
    """{the shortest end of its path that no other has: folder}."""
    paths = [Path(folder).resolve() for folder in folders]
    double = [path for i, path in enumerate(paths) if path in paths[:i]]
    if double:
        raise ValueError(f"--compare names {double[0]} twice.")
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return dict(zip(names, paths, strict=True))


def differences(results: Results) -> list[str]:
    """In words, what makes the numbers of two evaluations not quite comparable."""
    lines = []
    for key in ("split", "num_points", "views", "gray", "seeds"):
        values = {name: r["options"][key] for name, r in results.items()}
        if len(set(values.values())) > 1:
            lines.append(f"{key}: " + ", ".join(f"{name} {value}" for name, value in values.items()))
    for dataset in dict.fromkeys(name for r in results.values() for name in r["datasets"]):
        counts = {
            n: r["datasets"][dataset]["num_shapes"] for n, r in results.items() if dataset in r["datasets"]
        }
        if len(set(counts.values())) > 1:
            lines.append(
                f"shapes of {dataset}: " + ", ".join(f"{n} {count:,}" for n, count in counts.items())
            )
    return lines


def page(results: Results) -> str:
    """The HTML page."""
    sections = [("Models", _models(results)), ("Numbers", _numbers(results))]
    if charts := _charts(results):
        sections.append(("Robustness", charts))
    sections.append(("Notes", _notes(results)))
    about = (
        "The same measurements of several models, side by side. The best of a line is bold where it is the only one; "
        "± is half of a 95 % interval."
    )
    return report_shell.page(
        " · ".join(results), "comparison of models", about, f"{len(results)} models", sections
    )


def _models(results: Results) -> str:
    rows = []
    for name, r in results.items():
        m = r["model"]
        encoder = f"{m['model']['name']}, {m['model']['depth']} blocks of width {m['model']['dim']}"
        trained = ", ".join(m.get("trained_on") or []) or "not said"
        told = (name, r["checkpoint"], f"{r['step']:,}", encoder, m["text_space"], trained, r["date"])
        rows.append([f"<b>{esc(told[0])}</b>", *(esc(str(x)) for x in told[1:])])
    head = ["model", "checkpoint", "step", "encoder", "space", "trained on", "evaluated"]
    differ = differences(results)
    warning = "".join(f'<p class="missing">Not evaluated alike: {esc(line)}</p>' for line in differ)
    return warning + report_suite.table(head, rows, len(head))


def _numbers(results: Results) -> str:
    columns = {name: summary.measures(r) for name, r in results.items()}
    groups: dict[tuple[str, str], list[str]] = {}
    for found in columns.values():
        for dataset, part, measure in found:
            listed = groups.setdefault((dataset, part), [])
            if measure not in listed:
                listed.append(measure)
    parts, last = [], ""
    datasets = list(dict.fromkeys(dataset for dataset, _ in groups))
    for (dataset, part), listed in sorted(groups.items(), key=lambda item: datasets.index(item[0][0])):
        if dataset != last:
            parts.append(f"<h3><code>{esc(dataset)}</code></h3>")
            last = dataset
        rows = []
        for measure in listed:
            key = (dataset, part, measure)
            shares = [found[key].mean for found in columns.values() if key in found]
            best = max(shares) if len(shares) > 1 and shares.count(max(shares)) == 1 else None
            cells = []
            for found in columns.values():
                cell = esc(found[key].text()) if key in found else "-"
                cells.append(f"<b>{cell}</b>" if key in found and found[key].mean == best else cell)
            rows.append([esc(measure), *cells])
        table = report_suite.table([esc(part), *map(esc, columns)], rows)
        # Robustness is told by its charts; its numbers are at hand.
        folded = part.partition(":")[2]
        parts.append(f"<details><summary>{esc(part)}</summary>{table}</details>" if folded else table)
    return f"<p>In per cent.</p>{''.join(parts)}"


def _charts(results: Results) -> str:
    parts = []
    for dataset in dict.fromkeys(name for r in results.values() for name in r["datasets"]):
        series = {
            name: r["datasets"][dataset]["robustness"]["kinds"]
            for name, r in results.items()
            if "robustness" in r["datasets"].get(dataset, {})
        }
        if series:
            parts.append(f"<h3><code>{esc(dataset)}</code></h3>{report_suite.robustness_charts(series)}")
    return "".join(parts)


def _notes(results: Results) -> str:
    parts = []
    for name, r in results.items():
        lines = [
            f"{dataset}: {line}"
            for dataset, section in r["datasets"].items()
            for line in summary.notes(section)
        ]
        parts.append(f"<h3>{esc(name)}</h3><ul>{''.join(f'<li>{esc(line)}</li>' for line in lines)}</ul>")
    return "".join(parts)
