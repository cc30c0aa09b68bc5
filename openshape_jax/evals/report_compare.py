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
    facts: dict[str, list[str]] = {}
    for r in results.values():
        m = r["model"]
        told = {
            "checkpoint": r["checkpoint"],
            "step": f"{r['step']:,}",
            "encoder": f"{m['model']['name']}, {m['model']['depth']} blocks of width {m['model']['dim']}",
            "space": m["text_space"],
            "trained on": ", ".join(m.get("trained_on") or []) or "not said",
            "evaluated": r["date"],
        }
        for what, value in told.items():
            facts.setdefault(what, []).append(esc(str(value)))
    warning = "".join(
        f'<p class="missing">Not evaluated alike: {esc(line)}</p>' for line in differences(results)
    )
    return warning + _side_by_side(results, [("", list(facts.items()))])


def _numbers(results: Results) -> str:
    columns = [summary.measures(r) for r in results.values()]
    robust = {
        f"{kind['title']}: {kind['axis']}"
        for r in results.values()
        for section in r["datasets"].values()
        for kind in section.get("robustness", {}).get("kinds", {}).values()
    }  # told by the charts, which have their numbers with them
    content = []
    for dataset in dict.fromkeys(dataset for found in columns for dataset, *_ in found):
        groups: dict[str, list[tuple[str, list[str]]]] = {}
        for key in dict.fromkeys(key for found in columns for key in found if key[0] == dataset):
            _, part, measure = key
            if part in robust:
                continue
            shares = [found[key].mean for found in columns if key in found]
            best = max(shares) if len(shares) > 1 and shares.count(max(shares)) == 1 else None
            cells = [esc(found[key].text()) if key in found else "-" for found in columns]
            cells = [
                f"<b>{cell}</b>" if key in found and found[key].mean == best else cell
                for cell, found in zip(cells, columns, strict=True)
            ]
            groups.setdefault(part, []).append((measure, cells))
        content.append(f"<h3><code>{esc(dataset)}</code></h3>{_side_by_side(results, list(groups.items()))}")
    return f"<p>In per cent.</p>{''.join(content)}"


def _side_by_side(results: Results, groups: Sequence[tuple[str, Sequence[tuple[str, Sequence[str]]]]]) -> str:
    """One table with a column of the same width for each model, whose first column stays where it scrolls.

    Args:
      groups: (heading, lines): of (what, a cell of HTML for each model).
    """
    bodies = []
    for heading, lines in groups:
        rows = (
            [f"<tr><th colspan={1 + len(results)}><span>{esc(heading)}</span></th></tr>"] if heading else []
        )
        for what, cells in lines:
            rows.append(
                f"<tr><td>{esc(what)}</td>{''.join(f'<td class=n>{cell}</td>' for cell in cells)}</tr>"
            )
        bodies.append(f"<tbody>{''.join(rows)}</tbody>")
    head = "".join(f"<th class=n>{esc(name)}</th>" for name in results)
    return (
        f'<div class="scroll beside"><table style="min-width: {10 + 7 * len(results)}rem">'
        f"<thead><tr><th class=what></th>{head}</tr></thead>{''.join(bodies)}</table></div>"
    )


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
