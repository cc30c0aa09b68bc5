"""The HTML report of a run: one self-contained page that opens from disk."""

from __future__ import annotations

import base64
import html
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import numpy as np

from openshape_jax import metrics, render
from openshape_jax.data import schema, sources, vocabulary
from openshape_jax.evals import report_figures as figures

CARDS = 24  # shapes in the gallery
QUERIES = 6  # retrieval rows of each kind
NEIGHBOURS = 7
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")
esc = html.escape


@dataclass
class Result:
    """One evaluation: its numbers and, per shape, embedding and true class."""

    name: str
    values: dict[str, Any]
    uid: list[str]
    label: np.ndarray
    shape_emb: np.ndarray
    class_names: list[str]
    class_emb: np.ndarray

    def scores(self) -> np.ndarray:
        """(n, C) cosines."""
        return self.shape_emb @ self.class_emb.T


@dataclass
class Shapes:
    """Records of the evaluated shapes by uid, their pictures, and the data set's attribution."""

    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    attribution: list[dict[str, Any]] = field(default_factory=list)
    problem: str = ""

    def name(self, uid: str) -> str:
        """The shape's name, or its uid where the data set is gone."""
        return self.records[uid]["name"] if uid in self.records else uid

    def image(self, uid: str) -> str:
        """An <img> of the rendered cloud."""
        record = self.records.get(uid)
        if record is None:
            return '<span class="missing">no points</span>'
        xyz, rgb = schema.dequantize_xyz(record["xyz"]), np.asarray(record["rgb"]) / 255
        return _img(render.png(render.picture(xyz, rgb, 132)), f"point cloud of {record['name']}")

    def icon(self, uid: str) -> str:
        """An <img> of the catalogue's icon, "" without one."""
        data = self.records.get(uid, {}).get("icon", b"")
        return _img(data, f"catalogue icon of {self.name(uid)}") if data else ""


def write(workdir: str | Path, data_dir: str | Path = "") -> Path:
    """WORKDIR/report/index.html, written from the run directory and the evaluated data set.

    What is missing (no evaluation yet, data set gone) is said in its place on the page.

    Raises:
      ValueError: workdir is no run directory.
    """
    workdir = Path(workdir)
    if not (workdir / "config.json").exists():
        raise ValueError(f"{workdir} has no config.json; give the --workdir of a training run.")
    config = json.loads((workdir / "config.json").read_text())
    results = [_read(path) for path in sorted((workdir / "eval").glob("*.json"))]
    main = results[0] if results else None
    shapes = _shapes(main, data_dir or config["data"]["data_dir"]) if main else Shapes()
    lines = metrics.read(workdir)
    missing = '<p class="missing">No evaluation has been written yet; let the run finish.</p>'
    sections = [
        ("Results", _headline(results, lines, config) if results else missing),
        ("Training", figures.curves(lines) or '<p class="missing">metrics.jsonl has no line yet.</p>'),
        ("Gallery", _gallery(main, shapes) if main else missing),
        ("Confusions", _confusion(main) if main else missing),
        ("Map", _map(main, shapes) if main else missing),
        ("Search", _search(main, shapes) if main else missing),
        ("Configuration", _configuration(config)),
        ("Attribution", _attribution(shapes)),
    ]
    body = "".join(
        f'<section id="{title.lower()}"><h2>{title}</h2>{content}</section>' for title, content in sections
    )
    nav = "".join(f'<a href="#{title.lower()}">{title}</a>' for title, _ in sections)
    css = (resources.files("openshape_jax") / "assets" / "report.css").read_text()
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>openshape_jax: {esc(workdir.name)}</title><style>{css}</style></head><body><main>"
        f"<header><h1>{esc(workdir.name)}</h1><p>A point-cloud encoder trained by openshape_jax to share "
        "CLIP's space of words: shapes are classified and found by comparing their embedding with that of a "
        f"name. Every number is of held-out shapes.</p><nav>{nav}</nav></header>{body}</main></body></html>"
    )
    path = workdir / "report" / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(page, encoding="utf-8")
    fresh.replace(path)
    return path


def _read(path: Path) -> Result:
    values = json.loads(path.read_text())
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as file:
        texts = {k: [str(x) for x in file[k]] for k in ("uid", "class_names")}
        arrays = {k: file[k] for k in ("label", "shape_emb", "class_emb")}
    return Result(name=path.stem, values=values, **texts, **arrays)


def _shapes(result: Result, data_dir: str | Path) -> Shapes:
    try:
        records, info = sources.open_split(result.values["dataset"], result.values["split"], data_dir)
    except (sources.DatasetMissing, ValueError) as error:
        return Shapes(problem=str(error))
    wanted = set(result.uid)
    found = (records[i] for i in range(len(records)))
    attribution = list((info.metadata or {}).get("attribution", []))
    return Shapes({r["uid"]: r for r in found if r["uid"] in wanted}, attribution)


def _img(data: bytes, alt: str) -> str:
    return f'<img alt="{esc(alt)}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'


def _headline(results: Sequence[Result], lines: Sequence[dict[str, float]], config: dict[str, Any]) -> str:
    rows = []
    for r in results:
        v = r.values
        cells = "".join(f'<td class="n">{v[k]:.1%}</td>' for k in ("top1", "top3", "top5", "mean_class"))
        rows.append(
            f'<tr><td>{esc(r.name)}</td><td class="n">{v["num_shapes"]}</td><td class="n">{v["num_classes"]}</td>'
            f'{cells}<td class="n">{1 / v["num_classes"]:.1%}</td></tr>'
        )
    steps = [x for x in lines if "train/loss" in x]
    v = results[0].values
    boxes = [(f"{v['top1']:.1%}", f"top-1 among {v['num_classes']} classes"), (f"{v['top5']:.1%}", "top-5")]
    if steps:
        # Pauses between runs of a resumed job do not count as training.
        gaps = np.diff([x["time"] for x in steps]) if len(steps) > 1 else np.zeros(1)
        minutes = float(np.minimum(gaps, 5 * np.median(gaps) + 1).sum()) / 60
        seen = steps[-1]["step"] * config["batch_size"]
        boxes += [(f"{seen:,.0f}", "shapes seen"), (f"{minutes:.1f} min", "training time")]
        boxes.append((f"{np.median([x['train/shapes_per_s'] for x in steps]):.0f}", "shapes per second"))
    numbers = "".join(f'<div class="number"><b>{b}</b><span>{s}</span></div>' for b, s in boxes)
    return (
        "<p>Zero-shot: the prediction is the class name whose text vector is nearest. Once the model chooses "
        "among the classes that occur in the held-out set, once among all 1,203 names of LVIS (only shapes "
        f'whose class is one of them count there).</p><div class="numbers">{numbers}</div><div class="scroll">'
        '<table><tr><th>label set</th><th class="n">shapes</th><th class="n">classes</th><th class="n">top-1</th>'
        '<th class="n">top-3</th><th class="n">top-5</th><th class="n">mean class</th><th class="n">chance</th></tr>'
        + "".join(rows)
        + "</table></div>"
    )


def _gallery(result: Result, shapes: Shapes) -> str:
    scores = result.scores()
    best = np.argsort(-scores, axis=1)[:, :3]
    right = best[:, 0] == result.label
    rng = np.random.default_rng(0)
    wrong_share = min(CARDS // 2, int((~right).sum()))
    chosen = [
        *rng.permutation(np.flatnonzero(right))[: CARDS - wrong_share],
        *rng.permutation(np.flatnonzero(~right))[:wrong_share],
    ]
    cards = []
    for i in chosen:
        uid, true = result.uid[i], int(result.label[i])
        bars = "".join(
            f'<div class="bar{" true" if c == true else ""}"><span>{esc(result.class_names[c])}</span>'
            f'<i style="width:{max(float(scores[i, c]), 0) * 100:.0f}%"></i><span>{scores[i, c]:.2f}</span></div>'
            for c in best[i]
        )
        icon = shapes.icon(uid)
        icon = f"<figure>{icon}<figcaption>catalogue icon</figcaption></figure>" if icon else ""
        mark = "right" if right[i] else "wrong"
        cards.append(
            f'<div class="card {mark}"><div class="pair"><figure>{shapes.image(uid)}<figcaption>its point cloud'
            f"</figcaption></figure>{icon}</div><h4>{'✓' if right[i] else '✗'} {esc(shapes.name(uid))}"
            f" <small>(class: {esc(result.class_names[true])})</small></h4>{bars}</div>"
        )
    problem = f'<p class="missing">{esc(shapes.problem)}</p>' if shapes.problem else ""
    return (
        "<p>Held-out shapes drawn at random, right answers first, then up to as many wrong ones. Bars are the "
        "cosine between the shape's embedding and the name's text vector; the true class is green.</p>"
        f'{problem}<div class="cards">{"".join(cards)}</div>'
    )


def _confusion(result: Result) -> str:
    guess = result.scores().argmax(1)
    picture = figures.confusion(result.label, guess, result.class_names)
    return (
        "<p>Each row is a true class, each column what was predicted; numbers count shapes, shades are shares of "
        f'the row. The most frequent classes are shown.</p><div class="scroll">{picture}</div>'
    )


def _map(result: Result, shapes: Shapes) -> str:
    points, method = figures.flatten(result.shape_emb)
    labels = [result.class_names[c] for c in result.label]
    titles = [f"{shapes.name(u)} ({label})" for u, label in zip(result.uid, labels, strict=True)]
    return (
        f"<p>Held-out shapes in two dimensions by {method}: near means alike. Colours and names are the most "
        "frequent classes; other shapes are grey. Point at a dot to read its name.</p>"
        + figures.embedding_map(points, labels, titles)
    )


def _search(result: Result, shapes: Shapes) -> str:
    words = vocabulary.load()
    counts = np.bincount(result.label, minlength=len(result.class_names))
    queries = [result.class_names[c] for c in np.argsort(-counts, kind="stable")[:QUERIES]]
    rows = ["<h3>Words → shapes</h3>"]
    for query in queries:
        order = np.argsort(-(result.shape_emb @ words.encode([query])[0]))[:NEIGHBOURS]
        rows.append(_row(f"“{esc(query)}”", [result.uid[i] for i in order], shapes))
    rows.append("<h3>Shape → shapes</h3>")
    for i in np.random.default_rng(1).permutation(len(result.uid))[:QUERIES]:
        similar = result.shape_emb @ result.shape_emb[i]
        order = [j for j in np.argsort(-similar) if j != i][: NEIGHBOURS - 1]
        rows.append(_row("like the first", [result.uid[i], *(result.uid[j] for j in order)], shapes))
    return (
        "<p>Nearest neighbours among the held-out shapes, best first: for a name, and for a shape (the first "
        "picture of the row).</p>" + "".join(rows)
    )


def _row(query: str, uids: Sequence[str], shapes: Shapes) -> str:
    cells = "".join(
        f"<figure>{shapes.image(uid)}<figcaption>{esc(shapes.name(uid))}</figcaption></figure>"
        for uid in uids
    )
    return f'<div class="row"><div class="query">{query}</div>{cells}</div>'


def _configuration(config: dict[str, Any]) -> str:
    def flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
        pairs = []
        for key, value in values.items():
            pairs += flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
        return pairs

    rows = "".join(f"<tr><td>{esc(k)}</td><td>{esc(str(v))}</td></tr>" for k, v in flat(config))
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    machine = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {_processor()}"
    return (
        f"<p>{esc(versions)}.<br>{esc(machine)}.</p><details><summary>All {len(flat(config))} fields of the config"
        f"</summary><table>{rows}</table></details>"
    )


def _processor() -> str:
    import jax

    devices = jax.devices()
    return f"{len(devices)} {devices[0].device_kind} device{'s' if len(devices) > 1 else ''}"


def _attribution(shapes: Shapes) -> str:
    if not shapes.attribution:
        return '<p class="missing">The data set names no creators, or is no longer there.</p>'
    entries = sorted(shapes.attribution, key=lambda a: -a["count"])
    rows = "".join(
        f"<tr><td>{esc(str(a['creator']))}</td><td>{esc(str(a['license']))}</td><td>{esc(str(a.get('library', '')))}</td>"
        f'<td class="n">{a["count"]}</td></tr>'
        for a in entries
    )
    return (
        "<p>The evaluated data set's models are the work of the people below, under the licences named. Text "
        "vectors: CLIP ViT-B/32 by OpenAI, computed for Detic (Apache-2.0).</p><details><summary>"
        f"{len(entries)} creators and licences</summary><table><tr><th>creator</th><th>licence</th><th>library</th>"
        f'<th class="n">models</th></tr>{rows}</table></details>'
    )
