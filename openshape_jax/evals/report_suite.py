"""The report's sections on probes, retrieval and robustness, as HTML; of one model, or of several side by side."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from openshape_jax.evals import report_figures as figures
from openshape_jax.evals import retrieval
from openshape_jax.evals.intervals import Mean
from openshape_jax.evals.report_figures import Point

esc = html.escape
Results = Mapping[str, Mapping[str, Any]]  # by data set: the sections that `suite.run` makes


def sections(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(title, content) of each part of an evaluation that was made, in the order of the page."""
    data = result["datasets"]
    made = [("Probes", _probes(data)), ("Retrieval", _retrieval(data)), ("Robustness", _robustness(data))]
    when = (
        f'<p class="soft">Measured on {esc(result["date"])} at step {int(result["step"]):,} of '
        f"<code>{esc(result['checkpoint'])}</code>.</p>"
    )
    return [(title, content + when) for title, content in made if content]


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: int = 1) -> str:
    """An HTML table that scrolls on narrow screens; columns from `numbers` on are set as numbers.

    Args:
      head, rows: HTML of the cells.
    """

    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=n' if i >= numbers else ''}>{cell}</{tag}>" for i, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{cells(head, "th")}</tr></thead><tbody>{body}</tbody></table></div>'


def by_level(head: str, series: Mapping[str, Sequence[Point]]) -> str:
    """A table in per cent: a row for each level, a column for each of `series`."""
    labels = list(dict.fromkeys(point.label for points in series.values() for point in points))
    columns = [{p.label: p.mean.text() for p in points} for points in series.values()]
    rows = [[esc(label), *(column.get(label, "-") for column in columns)] for label in labels]
    return table([esc(head), *(f"<code>{esc(name)}</code>, %" for name in series)], rows)


def _left_out(name: str, what: str, section: Mapping[str, Any]) -> str:
    return f'<p class="missing">{esc(name)}: {what} left out: {esc(section["left_out"])}</p>'


def _probes(data: Results) -> str:
    few = {name: s["few_shot"] for name, s in data.items() if "few_shot" in s}
    near = {name: s["knn"] for name, s in data.items() if "knn" in s}
    if not few and not near:
        return ""
    parts = [
        "<p>The encoder stays as it is; a small classifier learns from its embeddings. No words are involved: "
        "these numbers tell how well classes lie apart in the embedding.</p>"
    ]
    curves = {
        name: [Point(n, Mean(r["mean"], r["half_width"])) for n, r in s["shots"].items()]
        for name, s in few.items()
        if "shots" in s
    }
    parts += [_left_out(name, "few-shot", s) for name, s in few.items() if "left_out" in s]
    if curves:
        notes = "".join(
            f"<li><code>{esc(name)}</code>: {esc(s['splits'])}; {esc(s['classifier'])}; {s['classes']:,} classes; "
            f"± half the {esc(s['interval'])} of shots</li>"
            for name, s in few.items()
            if "shots" in s
        )
        svg = figures.levels("Few-shot accuracy", "labelled shapes of a class", curves)
        parts.append(
            f'<h3>Few shots <small>linear probe, top-1</small></h3><div class="pair-of-figures"><figure>{svg}</figure>'
            f'<div>{by_level("shots a class", curves)}<ul class="soft">{notes}</ul></div></div>'
        )
    if near:
        ks = list(dict.fromkeys(k for s in near.values() for k in s["neighbours"]))
        rows = [
            [f"<code>{esc(n)}</code>", *(f"{100 * s['neighbours'][k]:.1f} %" for k in ks)]
            for n, s in near.items()
        ]
        notes = "".join(
            f"<li><code>{esc(n)}</code>: {esc(s['splits'])}; each neighbour votes with {esc(s['vote'])}</li>"
            for n, s in near.items()
        )
        parts.append(
            f"<h3>Nearest neighbours <small>top-1</small></h3>{table(['data set', *(f'k = {esc(k)}' for k in ks)], rows)}"
            f'<ul class="soft">{notes}</ul>'
        )
    return "".join(parts)


def _retrieval(data: Results) -> str:
    parts = []
    for name, section in data.items():
        found = section.get("retrieval")
        if not found:
            continue
        columns, missing = {}, []
        for query in ("text → shape", "shape → shape", "image → shape"):
            r = found[query]
            if "left_out" in r:
                missing.append(_left_out(name, query, r))
            elif "same class" in r:
                columns |= {"image → that shape": r, "image → its class": r["same class"]}
            else:
                columns[query] = r
        rows = [
            [f"{what}", *(f"{100 * r[key]:.1f} %" for r in columns.values())]
            for what, key in (*((f"recall@{k}", f"recall@{k}") for k in retrieval.AT), ("mAP", "mAP"),
                              ("recall@1 by chance", "chance@1"))
        ]  # fmt: skip
        rows.append(["queries", *(f"{r['queries']:,}" for r in columns.values())])
        head = ["", *map(esc, columns)]
        parts.append(
            f"<h3><code>{esc(name)}</code> <small>{section['num_shapes']:,} shapes of the split "
            f"{esc(section['split'])}</small></h3>{table(head, rows)}{''.join(missing)}"
            f"{_two_shapes(found['two shapes → shape'])}"
        )
    if not parts:
        return ""
    return (
        f"<p>Searching the evaluated shapes by a class name, a shape or a picture. {esc(retrieval.MEANING)} A match "
        f"is a shape of the class that is asked for, never the query itself.</p>{''.join(parts)}"
    )


def _two_shapes(found: Mapping[str, Any]) -> str:
    same, mixed = found.get("same class"), found.get("two classes")
    if not same and not mixed:
        return ""
    some = same or mixed or {}
    gain = next((k for k in next(iter((mixed or {}).values()), {}) if k.startswith("gain@")), "")
    rows = []
    for name in some:
        cells = [esc(name)]
        if same:
            cells += [f"{100 * same[name][k]:.1f} %" for k in ("recall@1", "mAP")]
        if mixed:
            cells.append(f"{100 * mixed[name][gain]:.1f} %")
        rows.append(cells)
    told = "; ".join(f"{name}: {formula}" for name, formula in found["formulas"].items())
    head = ["score"]
    head += ["same class: recall@1", "same class: mAP"] if same else []
    head += [f"two classes: {gain}"] if mixed else []
    return (
        "<h4>Two shapes → the shapes closest to both</h4>"
        f"{table(head, rows)}"
        f'<p class="soft">A shape x is ranked by its cosines with the queries a and b. {esc(told)}; a alone: cos(x, a). '
        "Two shapes of a class ask for its others, beside the same search with one of them. Two of different classes ask "
        "for what lies between; how well that is met is judged by the class names' text vectors, which took no part in "
        "the search: 0 % is chance, 100 % the best choice there is.</p>"
    )


def _robustness(data: Results) -> str:
    found = {name: s["robustness"] for name, s in data.items() if "robustness" in s}
    if not found:
        return ""
    draws = ", ".join(f"{name}: {r['draws']}" for name, r in found.items())
    return (
        "<p>The same shapes, made harder: each chart is the top-1 accuracy among the data set's classes against one "
        "kind of damage, from mild to severe; the hollow marker is the unchanged shape. Every change is a function "
        f"of the shape and the seed. Draws of points and damage: {esc(draws)}"
        + (", ± 95 % t interval as bars" if any(r["draws"] > 1 for r in found.values()) else "")
        + ".</p>"
        + robustness_charts({name: r["kinds"] for name, r in found.items()})
    )


def robustness_charts(series: Mapping[str, Mapping[str, Any]]) -> str:
    """One chart a kind of damage with a line for each of `series`, {name: kinds}, and its numbers below."""
    kinds = list(dict.fromkeys(kind for found in series.values() for kind in found))
    charts = []
    for kind in kinds:
        having = {name: found[kind] for name, found in series.items() if kind in found}
        some = next(iter(having.values()))
        lines = {
            name: [
                Point(f"{x['level']:g}", Mean(x["top1"]["mean"], x["top1"]["half_width"]), x["clean"])
                for x in r["levels"]
            ]
            for name, r in having.items()
        }
        note = "" if some["normalized"] else (
            "<figcaption>The model's own normalisation would undo this; here the encoder is given the cloud as it is."
            "</figcaption>"
        )  # fmt: skip
        charts.append(
            f"<figure><h3>{esc(some['title'])}</h3>{figures.levels(some['title'], some['axis'], lines)}{note}"
            f"<details><summary>Numbers</summary>{by_level(some['axis'], lines)}</details></figure>"
        )
    return f'<div class="pair-of-figures">{"".join(charts)}</div>'
