"""The sections of the report's page, as HTML. Every string that comes from data is escaped."""

from __future__ import annotations

import base64
import html
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from openshape_jax.evals import intervals, report_about, report_shell, report_suite, summary
from openshape_jax.evals import report_figures as figures
from openshape_jax.evals.report import Choice, Credits, Embedded, Result, Shapes

MOST_ON_MAP = 1500  # shapes
MOST_QUERIES = 2000  # shapes of the retrieval summary
esc = html.escape


def page(
    *,
    name: str,
    config: Mapping[str, Any],
    lines: Sequence[Mapping[str, float]],
    results: Sequence[Result],
    main: Result | None,
    choice: Choice | None,
    shapes: Shapes,
    credits: Credits,
    evaluated: Mapping[str, Any] | None = None,
) -> str:
    """The whole HTML page; `main` and `choice` are the evaluation that the pictures are of, if there is one.

    Args:
      evaluated: what `suite.run` gave; without `lines` it is all that there is to tell.
    """
    if main and choice and main.embedded:
        e = main.embedded
        pictured = [
            ("Gallery", _gallery(e, choice, shapes)),
            ("Confusions", _confusions(main, results)),
            ("Map", _map(e, shapes)),
            ("Search", _search(e, choice, shapes)),
        ]
    else:
        gone = "No evaluation has been written yet; let the run finish, or start its command again."
        if results:
            gone = (
                "The embeddings of the evaluation are missing: start the run's command again to write them."
            )
        pictured = [(title, _missing(gone)) for title in ("Gallery", "Confusions", "Map", "Search")]
    trained = evaluated is None or bool(lines)
    sections = [
        ("Results", _results(results, lines, config)),
        *([("Training", _training(lines, results, config))] if trained else []),
        *(report_suite.sections(evaluated) if evaluated else []),
        *pictured,
        ("Configuration", report_about.configuration(config)),
        ("Attribution", report_about.attribution(credits)),
    ]
    when = time.strftime("%d %B %Y", time.localtime(lines[-1]["time"])) if lines else "not trained yet"
    if evaluated and not lines:
        when = f"<code>{esc(evaluated['checkpoint'])}</code>, step {evaluated['step']:,} · {esc(evaluated['date'])}"
    data = main.dataset if main else "no data set"
    if evaluated:
        data = ", ".join(evaluated["datasets"])
    kinds = {summary.kind(r.dataset, config, r.values.get("split", "test")) for r in results if r.values}
    held_out = "Whether training had seen the shapes is said beside each result."
    if trained and kinds <= {summary.HELD_OUT, summary.ZERO_SHOT}:
        held_out = "Accuracies and pictures are of shapes that were kept out of training."
    about = (
        "A neural network that places coloured 3D point clouds in the same space as words. A shape is recognised, or "
        f"found, by comparing its position with that of a name. {held_out}"
    )
    kicker = "report of a run" if trained else "evaluation of a model"
    facts = f"{when} · evaluated on {esc(data)}"
    return report_shell.page(
        name, kicker, about, facts, sections, _unfinished(config, lines) if trained else ""
    )


def _missing(text: str) -> str:
    return f'<p class="missing">{esc(text)}</p>'


def _unfinished(config: Mapping[str, Any], lines: Sequence[Mapping[str, float]]) -> str:
    last, steps = int(lines[-1]["step"]) if lines else 0, config.get("steps")
    if not isinstance(steps, int) or last >= steps:
        return ""
    return _missing(f"This run stopped at step {last:,} of {steps:,}. Start the same command again to go on.")


def _img(data: bytes, alt: str) -> str:
    code = base64.b64encode(data).decode()
    return f'<img alt="{esc(alt)}" src="data:image/png;base64,{code}">'


def _picture(shapes: Shapes, uid: str) -> str:
    if uid not in shapes.pictures:
        return '<span class="none">no points</span>'
    return _img(shapes.pictures[uid], f"Point cloud of {shapes.names[uid]}")


def _name(shapes: Shapes, uid: str) -> str:
    return shapes.names.get(uid, uid)


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.0995 or share == 0 else f"{share:.2%}"


def _results(
    results: Sequence[Result], lines: Sequence[Mapping[str, float]], config: Mapping[str, Any]
) -> str:
    panels = "".join(
        _panel(r, summary.kind(r.dataset, config, r.values.get("split", "test"))) for r in results if r.values
    )
    problems = "".join(_missing(f"{r.name}: {r.problem}") for r in results if r.problem)
    if not panels:
        panels = _missing("No evaluation has been written yet; let the run finish.")
    tiles = "".join(f'<div class="tile"><b>{b}</b><span>{s}</span></div>' for b, s in _effort(lines, config))
    return (
        "<p>Classification by words: the model has no output per class. Its answer is "
        "the class whose text vector lies nearest. <b>Top-3</b> counts an answer as right if the true class is among the "
        "three nearest; <b>mean class</b> averages over classes, so that frequent ones do not dominate. The dark "
        f'tick on each bar is what guessing would reach.</p>{problems}<div class="panels">{panels}</div>'
        f'<div class="tiles">{tiles}</div>'
    )


def _panel(result: Result, kind: str) -> str:
    v = result.values
    shapes, classes = int(v.get("num_shapes", 0)), max(int(v.get("num_classes", 1)), 1)
    rows = []
    for key, title, tries in (("top1", "Top-1", 1), ("top3", "Top-3", 3), ("top5", "Top-5", 5),
                              ("mean_class", "Mean class", 1)):  # fmt: skip
        if key not in v:
            rows.append(f"<tr><th scope=row>{title}</th><td colspan=3>not measured</td></tr>")
            continue
        share, chance = float(v[key]), min(tries / classes, 1)
        half = (v.get("half_width") or {}).get(key)
        spread = f" <small>± {100 * half:.1f}</small>" if half is not None else ""
        rows.append(
            f'<tr><th scope=row>{title}</th><td class="n"><b>{share:.1%}</b>{spread}</td><td class="track"><div>'
            f'<i style="width:{100 * share:.1f}%"></i><u style="left:{100 * chance:.2f}%"></u></div></td>'
            f'<td class="n soft">chance {_percent(chance)}</td></tr>'
        )
    note = ""
    if "top1" in v and shapes:
        low, high = intervals.wilson(float(v["top1"]), shapes)
        note = (
            f"With {shapes} shapes the top-1 is known to lie between {low:.0%} and {high:.0%} (95% interval)."
        )
        if result.embedded is not None:
            most = Counter(result.embedded.label.tolist()).most_common(1)[0][1] / shapes
            note += f" Always answering the most frequent class would reach {most:.1%}."
    if "interval" in v:
        note += f" Means over draws of points, ± half the {esc(str(v['interval']))}."
    title, hint = f"The {classes:,} classes present", "every class that one of them has"
    if result.over_lvis:
        title, hint = f"All {classes:,} names of LVIS", "only shapes whose class is an LVIS name count"
    elif v.get("class_vectors") == "data set":
        title, hint = f"The {classes:,} classes of the data set", "their text vectors are the data set's own"
    split = f" of the split <code>{esc(str(v['split']))}</code>" if "split" in v else ""
    return (
        f'<div class="panel"><h3>{title}</h3><p class="soft"><code>{esc(result.name)}</code> · {shapes:,} shapes{split} · '
        f'{kind} · {hint}</p><table class="bars">{"".join(rows)}</table><p class="soft">{note}</p></div>'
    )


def _effort(lines: Sequence[Mapping[str, float]], config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(number, what it is) of the training."""
    steps = [x for x in lines if "train/loss" in x]
    if not steps:
        return []
    batch, rates = (
        config.get("batch_size"),
        [x["train/shapes_per_s"] for x in steps if "train/shapes_per_s" in x],
    )
    gaps = np.diff([x["time"] for x in steps]) if len(steps) > 1 else np.zeros(1)
    # A pause between the parts of a resumed run is no training.
    seconds = float(np.minimum(gaps, 5 * np.median(gaps) + 60).sum())
    tiles = [(f"{int(steps[-1]['step']):,}", "steps")]
    if isinstance(batch, int):
        if rates and rates[0] > 0:
            seconds += steps[0]["step"] * batch / rates[0]  # before the first line
        tiles.append((f"{int(steps[-1]['step']) * batch:,}", "shapes seen in training, repeats included"))
    tiles.insert(
        0, (f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h", "training time")
    )
    if rates:
        tiles.append((f"{np.median(rates):,.0f}", "shapes per second"))
    return tiles


def _training(
    lines: Sequence[Mapping[str, float]], results: Sequence[Result], config: Mapping[str, Any]
) -> str:
    chance = {r.name: 1 / r.values["num_classes"] for r in results if r.values.get("num_classes")}
    drawn = figures.curves(lines, chance)
    if not drawn:
        return _missing("metrics.jsonl has no line yet.")
    captions = {
        "loss": "Contrastive loss on the training batches: how well each shape is told apart from the others' "
        "words. Lower is better; it is measured under augmentation.",
        "accuracy": "Top-1 accuracy on the evaluated shapes while the model was trained.",
    }
    figure = "".join(
        f"<figure>{svg}<figcaption>{captions[k]}</figcaption></figure>" for k, svg in drawn.items()
    )
    return f'<p>How the model learned.</p><div class="pair-of-figures">{figure}</div>'


def _gallery(e: Embedded, choice: Choice, shapes: Shapes) -> str:
    scores = e.scores()
    shown = [*choice.right, *choice.wrong]
    top = max(float(scores[shown].max()), 1e-6) if shown else 1.0
    right = int((choice.ranked[:, 0] == e.label).sum())
    parts = [
        "<p>Shapes drawn at random, as many of the failures as of the successes where there are enough. The left "
        "picture is what the model sees, 3D points with colours; the right one is the catalogue's icon, which it "
        "never sees. Bars compare the shape with the three nearest names, and with the true one where it is "
        f"further away; numbers are cosines, the longest bar is {top:.2f}.</p>",
        _missing(shapes.problem) if shapes.problem else "",
    ]
    for title, chosen, total in (
        ("Right", choice.right, right),
        ("Wrong", choice.wrong, len(e.label) - right),
    ):
        cards = "".join(_card(i, e, choice, shapes, scores[i], top) for i in chosen)
        parts.append(
            f'<h3>{title} <small>{len(chosen)} of {total}</small></h3><div class="cards">{cards}</div>'
            if chosen
            else f"<h3>{title} <small>none</small></h3>"
        )
    return "".join(parts)


def _card(i: int, e: Embedded, choice: Choice, shapes: Shapes, scores: np.ndarray, top: float) -> str:
    uid, true = e.uid[i], int(e.label[i])
    rank = int(np.flatnonzero(choice.ranked[i] == true)[0])
    rows = []
    places = [*range(min(3, len(scores))), *([rank] if rank > 2 else [])]
    for place in places:
        c = int(choice.ranked[i, place])
        kind = "true" if c == true else "best" if place == 0 else ""
        value = float(scores[c])
        rows.append(
            f'<li class="{kind}"><span>{place + 1}. {esc(e.class_names[c])}</span>'
            f'<i><b style="width:{100 * max(value, 0) / top:.0f}%"></b></i><span class="n">{value:.2f}</span></li>'
        )
    icon = shapes.icons.get(uid)
    icon = (
        _img(icon, f"Catalogue icon of {_name(shapes, uid)}") if icon else '<span class="none">no icon</span>'
    )
    mark = "right" if rank == 0 else "wrong"
    return (
        f'<article class="{mark}"><div class="two"><figure>{_picture(shapes, uid)}<figcaption>points'
        f"</figcaption></figure><figure>{icon}<figcaption>icon</figcaption></figure></div>"
        f"<h4>{_mark(rank == 0)} {esc(_name(shapes, uid))}</h4>"
        f"<p>true class: <b>{esc(e.class_names[true])}</b></p><ol>{''.join(rows)}</ol></article>"
    )


def _mark(good: bool) -> str:
    return '<span class="ok">✓</span>' if good else '<span class="no">✗</span>'


def _confusions(main: Result, results: Sequence[Result]) -> str:
    """The confusions of `main`, and folded up those of every other evaluation."""
    others = "".join(
        f"<details><summary>{esc(r.name)}: the same for its {len(r.embedded.class_names):,} classes</summary>"
        f"{_confusion(r.embedded)}</details>"
        for r in results
        if r is not main and r.embedded is not None
    )
    return (
        "<p>Each row is a true class with its number of shapes, each column an answer. The green diagonal is "
        "right; the darker a square, the larger its share of the row. Only the most frequent classes have room, "
        f"ordered so that related names stand together.</p>{_confusion(main.embedded) if main.embedded else ''}{others}"
    )


def _confusion(e: Embedded) -> str:
    guess = e.scores().argmax(1)
    matrix = figures.confusion(e.label, guess, e.class_names, e.class_emb)
    pairs = zip(e.label.tolist(), guess.tolist(), strict=True)
    mistakes = Counter(pair for pair in pairs if pair[0] != pair[1])
    listed = "".join(
        f"<li>{esc(e.class_names[a])} → {esc(e.class_names[b])} <small>{n}</small></li>"
        for (a, b), n in mistakes.most_common(16)
    )
    rows = []
    for c in np.unique(e.label):
        found = guess[e.label == c]
        wrong = Counter(e.class_names[int(g)] for g in found if g != c)
        told = ", ".join(f"{esc(k)} {n}" for k, n in wrong.most_common(4))
        rows.append(
            f'<tr><td>{esc(e.class_names[c])}</td><td class="n">{len(found)}</td>'
            f'<td class="n">{(found == c).mean():.0%}</td><td>{told}</td></tr>'
        )
    return (
        f'<figure><div class="scroll">{matrix}</div><figcaption>True classes (rows) against answers (columns). '
        "Numbers count shapes; point at a square for its names.</figcaption></figure>"
        f'<h3>Commonest mistakes <small>true → answer</small></h3><ul class="columns">{listed or "<li>none</li>"}'
        f"</ul><details><summary>All {len(rows)} classes</summary><div class=scroll><table><tr><th>class</th>"
        f'<th class="n">shapes</th><th class="n">right</th><th>taken for</th></tr>{"".join(rows)}</table></div>'
        "</details>"
    )


def _map(e: Embedded, shapes: Shapes) -> str:
    n = len(e.uid)
    rows = (
        np.arange(n) if n <= MOST_ON_MAP else np.random.default_rng(0).choice(n, MOST_ON_MAP, replace=False)
    )
    points, method = figures.flatten(e.shape_emb[rows])
    labels = [e.class_names[int(e.label[i])] for i in rows]
    titles = [f"{_name(shapes, e.uid[i])} ({label})" for i, label in zip(rows, labels, strict=True)]
    picture, legend = figures.embedding_map(points, labels, titles)
    dims = e.shape_emb.shape[1]
    what = "The method keeps neighbours together; the distance between far groups means little."
    if method == "PCA":
        what = "The method keeps the two directions of largest spread, so groups may overlap here that are apart."
    return (
        f"<p>Every evaluated shape has a position in {dims} dimensions; here they are flattened to two by "
        f"{method.replace('-', '&#8209;')}. "
        f"Shapes that the model finds alike lie together. {what}</p>"
        f'<figure><div class="scroll">{picture}</div>{legend}<figcaption>{len(rows):,} shapes; classes with '
        "more than one shape have a colour and a form. Point at a marker for its name.</figcaption></figure>"
    )


def _search(e: Embedded, choice: Choice, shapes: Shapes) -> str:
    counts = np.bincount(e.label, minlength=len(e.class_names))
    present = np.flatnonzero(counts)
    first = (e.class_emb[present] @ e.shape_emb.T).argmax(1)
    hits = int((e.label[first] == present).sum())
    mates = np.flatnonzero(counts[e.label] > 1)
    if len(mates) > MOST_QUERIES:
        mates = np.random.default_rng(0).choice(mates, MOST_QUERIES, replace=False)
    similar = e.shape_emb[mates] @ e.shape_emb.T
    similar[np.arange(len(mates)), mates] = -np.inf
    found = int((e.label[similar.argmax(1)] == e.label[mates]).sum())
    words = []
    for word, cosine, order in choice.by_word:
        c = e.class_names.index(word) if word in e.class_names else None
        hint = (
            f"{counts[c]} shape{'s' if counts[c] != 1 else ''}"
            if c is not None
            else "a wider word, no shape's label"
        )
        good = None if c is None else [e.label[i] == c for i in order]
        words.append(_row(f"“{esc(word)}”<small>{hint}</small>", order, good, cosine, e, shapes))
    like = []
    for query, cosine, order in choice.by_shape:
        label = e.class_names[int(e.label[query])]
        others = int(counts[e.label[query]]) - 1
        head = (
            f"<figure>{_picture(shapes, e.uid[query])}<figcaption>{esc(_name(shapes, e.uid[query]))}</figcaption>"
            f"</figure><small>{esc(label)}, {others} other{'s' if others != 1 else ''}</small>"
        )
        good = [e.label[i] == e.label[query] for i in order]
        like.append(_row(head, order, good, cosine, e, shapes))
    return (
        "<p>The same positions search a collection: by a word, or by a shape. The most similar evaluated shapes come "
        "first; ✓ marks those of the class that was asked for, and the number is the cosine. "
        f"For {hits} of {len(present)} class names the first shape found is of that class"
        + (
            f"; for {found} of {len(mates)} shapes the nearest other shape is of their own class"
            if len(mates)
            else ""
        )
        + f".</p><h3>Words → shapes</h3>{''.join(words)}<h3>Shape → shapes</h3>{''.join(like)}"
    )


def _row(
    head: str,
    order: Sequence[int],
    good: Sequence[bool] | None,
    cosine: np.ndarray,
    e: Embedded,
    shapes: Shapes,
) -> str:
    cells = []
    for k, i in enumerate(order):
        mark = f"{_mark(bool(good[k]))} " if good else ""
        cells.append(
            f"<figure>{_picture(shapes, e.uid[i])}<figcaption>{esc(_name(shapes, e.uid[i]))}"
            f"<span>{mark}{cosine[i]:.2f}</span></figcaption></figure>"
        )
    return f'<div class="row"><div class="query">{head}</div><div class="found">{"".join(cells)}</div></div>'
