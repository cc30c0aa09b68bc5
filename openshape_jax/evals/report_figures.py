"""The figures of the report, as inline SVG."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from openshape_jax.evals.intervals import Mean

INK, SOFT, LINE = "#0f172a", "#475569", "#cbd5e1"
COLOURS = ("#2563eb", "#ea580c", "#059669", "#7c3aed")
# Twelve colours that keep a contrast of 3 with white; the marker's form changes after every four.
MAP_COLOURS = ("#2563eb", "#dc2626", "#15803d", "#7c3aed", "#c2410c", "#0e7490", "#be185d", "#4d7c0f",
               "#1e3a8a", "#92400e", "#6b21a8", "#334155")  # fmt: skip
esc = html.escape


def curves(lines: Sequence[Mapping[str, float]], chance: Mapping[str, float] | None = None) -> dict[str, str]:
    """{"loss": svg, "accuracy": svg} over steps; a figure without any line of its own is left out.

    Args:
      lines: as `metrics.read` gives them. chance: share by evaluation name, drawn as a dotted line.
    """
    figures = {}
    losses = np.array([(x["step"], x["train/loss"]) for x in lines if "train/loss" in x], np.float64)
    if len(losses):
        figure, axis = _axes()
        step, value = losses.T
        axis.plot(step, value, "o-" if len(step) < 3 else "-", color="#93c5fd", lw=1, label="every log line")
        if len(step) > 10:
            width = max(len(value) // 20, 3)
            mean = np.convolve(value, np.ones(width) / width, "valid")
            axis.plot(step[width - 1 :], mean, color=COLOURS[0], lw=2.2, label=f"mean of {width} lines")
            axis.legend(frameon=False)
        axis.set(xlabel="step", ylabel="contrastive loss", xlim=(0, max(step[-1], 1)))
        axis.set_ylim(bottom=min(0, float(np.nanmin(value))))
        figures["loss"] = _svg(figure, "Training loss over steps")
    names = sorted({k for x in lines for k in x if k.startswith("eval/") and k.endswith("/top1")}, key=len)
    if names:
        figure, axis = _axes()
        last = max(x["step"] for x in lines)
        for name, colour in zip(names, COLOURS, strict=False):
            short = name.split("/")[1]
            step, value = np.array([(x["step"], 100 * x[name]) for x in lines if name in x]).T
            axis.plot(step, value, "o-", color=colour, label=short, ms=5, lw=2)
            # The points of two sets must not carry each other's numbers.
            axis.annotate(f"{value[-1]:.0f}%", (step[-1], value[-1]), (0, 7), color=colour,
                          textcoords="offset points", ha="right", weight="bold")  # fmt: skip
            if chance and short in chance:
                axis.axhline(100 * chance[short], color=colour, ls=":", lw=1.4)
        axis.plot([], [], color=SOFT, ls=":", label="chance") if chance else None
        axis.set(xlabel="step", ylabel="top-1 accuracy (%)", xlim=(0, last * 1.03), ylim=(0, 100))
        axis.legend(frameon=False, loc="upper left")
        figures["accuracy"] = _svg(figure, "Top-1 accuracy on the evaluated shapes, over steps")
    return figures


class Point(NamedTuple):
    """A place on the x axis of `levels`, with what was measured there."""

    label: str
    mean: Mean
    clean: bool = False  # drawn hollow: nothing was changed


def levels(title: str, axis_title: str, series: Mapping[str, Sequence[Point]]) -> str:
    """An SVG of top-1 accuracies over levels that stand evenly apart, a line for each of `series`."""
    places = list(dict.fromkeys(point.label for points in series.values() for point in points))
    figure, axis = _axes()
    for i, (name, points) in enumerate(series.items()):
        # Lines stand a little aside of each other, that their intervals can be told apart.
        x = np.array([places.index(p.label) for p in points]) + 0.07 * (i - (len(series) - 1) / 2)
        y = [100 * p.mean.mean for p in points]
        colour = MAP_COLOURS[i % len(MAP_COLOURS)]
        half = [100 * (p.mean.half or 0) for p in points]
        axis.errorbar(x, y, half if any(half) else None, color=colour, lw=2, capsize=3, label=name)
        filled = ["white" if p.clean else colour for p in points]
        axis.scatter(x, y, s=34, c=filled, edgecolors=colour, linewidths=2, zorder=3)
    axis.set_xticks(range(len(places)), [_spaced(label) for label in places])
    axis.set(xlabel=axis_title, ylabel="top-1 accuracy (%)", ylim=(0, 102))
    if len(series) > 1:
        # Above the axes, where no line can run through it, each row in as much more height (inches).
        columns = max(1, min(3, int(5.2 / (0.6 + 0.09 * max(map(len, series))))))
        figure.set_figheight(figure.get_figheight() + 0.23 * -(-len(series) // columns))
        figure.legend(loc="outside upper left", frameon=False, fontsize=11, ncols=columns)
    return _svg(figure, f"{title}: top-1 accuracy against {axis_title}")


def _spaced(number: str) -> str:
    return f"{int(number):,}" if number.isdigit() else number


def _axes():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style: dict[Any, Any] = {"font.size": 13, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none",
             "font.family": "sans-serif", "axes.edgecolor": SOFT, "svg.hashsalt": "openshape_jax",
             "axes.grid": True, "grid.color": "#e2e8f0", "text.color": INK, "axes.labelcolor": SOFT,
             "xtick.color": SOFT, "ytick.color": SOFT}  # fmt: skip
    with plt.rc_context(style):
        return plt.subplots(figsize=(5.4, 3.6), layout="constrained")


def _svg(figure, title: str) -> str:
    import matplotlib.pyplot as plt

    buffer = io.StringIO()
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "openshape_jax"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{esc(title)}"', 1)


def chain(vectors: np.ndarray) -> list[int]:
    """An order in which each row is followed by the most similar one left; the first row comes first."""
    left, order = list(range(1, len(vectors))), [0]
    while left:
        order.append(left.pop(int(np.argmax(vectors[left] @ vectors[order[-1]]))))
    return order


def confusion(
    label: np.ndarray,
    guess: np.ndarray,
    names: Sequence[str],
    class_emb: np.ndarray | None = None,
    most: int = 26,
) -> str:
    """Confusion among the most frequent true classes: shades are shares of a row, numbers count shapes.

    The last column is "another class". With `class_emb` related classes stand side by side, else the most
    frequent class comes first.
    """
    counts = np.bincount(label, minlength=len(names))
    classes = [int(c) for c in np.argsort(-counts, kind="stable")[:most] if counts[c]]
    if class_emb is not None:
        classes = [classes[i] for i in chain(class_emb[classes])]
    n, cell = len(classes), 27
    longest = max(len(_short(names[c])) + len(f" ({counts[c]})") for c in classes)
    left, foot = 20 + round(7.6 * longest), 24 + round(6.4 * longest)
    width, height = left + (n + 1) * cell + 16, 8 + n * cell + foot
    parts = [
        f'<svg class="matrix" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="confusion matrix of {n} classes; the list below names the commonest mistakes">'
    ]
    for i, true in enumerate(classes):
        found = np.bincount(guess[label == true], minlength=len(names))
        rest = {names[int(c)]: int(found[c]) for c in np.flatnonzero(found) if c not in classes}
        values = [*(int(found[c]) for c in classes), sum(rest.values())]
        others = ", ".join(f"{name} {k}" for name, k in rest.items())
        y = 8 + i * cell
        parts.append(
            f'<text x="{left - 8}" y="{y + 18}" text-anchor="end">{esc(_short(names[true]))} ({counts[true]})'
            "</text>"
        )
        for j, value in enumerate(values):
            share = value / counts[true]
            seen = names[classes[j]] if j < n else f"another class: {others}"
            title = f"{names[true]} taken for {seen}" if j != i else f"{seen}, right"
            edge = "#16a34a" if i == j else "white"
            x = left + j * cell + (4 if j == n else 0)
            parts.append(
                f'<rect x="{x}" y="{y}" width="{cell - 1}" height="{cell - 1}" fill="{_blue(share)}" '
                f'stroke="{edge}">'
                + (f"<title>{esc(title)}: {value} of {counts[true]}</title></rect>" if value else "</rect>")
            )
            if value:
                ink = "white" if share > 0.5 else INK
                parts.append(
                    f'<text x="{x + 13}" y="{y + 18}" text-anchor="middle" fill="{ink}">{value}</text>'
                )
    y = 8 + n * cell + 10
    for j, word in enumerate([*(_short(names[c]) for c in classes), "another class"]):
        x = left + j * cell + 16 + (4 if j == n else 0)
        parts.append(
            f'<text x="{x}" y="{y}" text-anchor="end" transform="rotate(-55 {x} {y})">{esc(word)}</text>'
        )
    return "".join([*parts, "</svg>"])


def _short(name: str, most: int = 25) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _blue(share: float) -> str:
    low, high = np.array([241, 245, 249]), np.array([29, 78, 216])
    r, g, b = np.rint(low + (high - low) * share**0.8).astype(int)
    return f"#{r:02x}{g:02x}{b:02x}"


def flatten(embedding: np.ndarray, seed: int = 0) -> tuple[np.ndarray, str]:
    """((n, 2) positions in [0, 1], name of the method): t-SNE where scikit-learn is installed, else PCA."""
    centred = embedding - embedding.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2]
    points, method = np.zeros((len(embedding), 2)), "PCA"
    points[:, : len(axes[:2])] = centred @ axes[:2].T
    if len(embedding) >= 12 and np.ptp(points) > 0:
        try:
            from sklearn.manifold import TSNE
            from threadpoolctl import threadpool_limits  # comes with scikit-learn
        except ImportError:
            pass
        else:
            perplexity = min(15.0, (len(embedding) - 1) / 3)
            how = "exact" if len(embedding) < 500 else "barnes_hut"
            tsne = TSNE(2, perplexity=perplexity, init="pca", random_state=seed, method=how)
            # Its threads wait for each other in every round: many times slower on a busy machine.
            with threadpool_limits(1):
                points, method = tsne.fit_transform(centred @ axes[:50].T), "t-SNE"
    low, high = points.min(0), points.max(0)
    return (points - low) / np.maximum(high - low, 1e-9), method


def _marker(kind: int, x: float, y: float, colour: str, title: str = "") -> str:
    """A circle, square, triangle or diamond of about the same area."""
    r = 6.0
    look = f'fill="{colour}" stroke="white"'
    inside = f"<title>{esc(title)}</title>" if title else ""
    if kind == 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}" {look}>{inside}</circle>'
    if kind == 1:
        return f'<rect x="{x - 5.5:.1f}" y="{y - 5.5:.1f}" width="11" height="11" {look}>{inside}</rect>'
    corners = ((0, -8), (7.5, 5.5), (-7.5, 5.5)) if kind == 2 else ((0, -8), (8, 0), (0, 8), (-8, 0))
    points = " ".join(f"{x + a:.1f},{y + b:.1f}" for a, b in corners)
    return f'<polygon points="{points}" {look}>{inside}</polygon>'


def embedding_map(
    points: np.ndarray, labels: Sequence[str], titles: Sequence[str], most: int = 16
) -> tuple[str, str]:
    """(SVG map, HTML legend): a marker a shape, of its own colour and form for the most frequent classes.

    Args:
      points: (n, 2) in [0, 1]. labels: class names. titles: shown on hover.
    """
    width, height, edge = 1000, 620, 46
    x = edge + points[:, 0] * (width - 2 * edge)
    y = edge + (1 - points[:, 1]) * (height - 2 * edge)
    every = np.asarray(labels)
    names, counts = np.unique(every, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    least = 2 if counts.max() > 1 else 1  # a class with one shape has no place on the map, only a dot
    common = [(str(names[i]), int(counts[i])) for i in order[:most] if counts[i] >= least]
    look = {c: (MAP_COLOURS[i % 12], (i // 4) % 4) for i, (c, _) in enumerate(common)}
    parts = [
        f'<svg class="map" viewBox="0 0 {width} {height}" role="img" aria-label="map of {len(labels)} shapes, '
        'similar ones near each other">'
    ]
    for named in (False, True):  # grey below
        for a, b, label, title in zip(x, y, labels, titles, strict=True):
            if (label in look) == named:
                colour, kind = look.get(label, (LINE, 0))
                parts.append(_marker(kind, a, b, colour, title))
    taken: list[tuple[float, float, float, float]] = []
    for name, _ in common:
        mine = np.flatnonzero(every == name)
        spread = np.hypot(x[mine, None] - x[mine], y[mine, None] - y[mine])
        home = mine[int(np.median(spread, 1).argmin())]
        a, b = _place(_short(name), float(x[home]), float(y[home]), x, y, taken, width, height)
        parts.append(f'<text x="{a:.0f}" y="{b:.0f}" fill="{look[name][0]}">{esc(_short(name))}</text>')
    legend = "".join(
        f'<li><svg viewBox="-9 -9 18 18" aria-hidden="true">{_marker(look[name][1], 0, 0, look[name][0])}</svg>'
        f"{esc(name)} <small>{count}</small></li>"
        for name, count in common
    )
    grey = len(labels) - sum(count for _, count in common)
    if grey:
        dot = f'<svg viewBox="-9 -9 18 18" aria-hidden="true">{_marker(0, 0, 0, LINE)}</svg>'
        legend += f"<li>{dot}other classes <small>{grey}</small></li>"
    return "".join([*parts, "</svg>"]), f'<ul class="legend">{legend}</ul>'


def _place(
    text: str, x: float, y: float, xs: np.ndarray, ys: np.ndarray, taken: list, width: int, height: int
) -> tuple[float, float]:
    """The place of a label near (x, y) that covers the fewest other labels and markers."""
    w, h = 9.8 * len(text) + 6, 18.0
    best, least = (x, y), np.inf
    for distance in (12, 22, 34, 48, 64):
        for angle in np.linspace(0, 2 * np.pi, 12, endpoint=False):
            cx = np.clip(x + np.cos(angle) * (distance + w / 2), w / 2 + 2, width - w / 2 - 2)
            cy = np.clip(y + np.sin(angle) * (distance + h / 2), h, height - h)
            overlap = sum(abs(cx - p) < (w + q) / 2 and abs(cy - r) < (h + s) / 2 + 1 for p, r, q, s in taken)
            covered = int(((np.abs(xs - cx) < w / 2 + 6) & (np.abs(ys - cy) < h / 2 + 6)).sum())
            cost = 100 * overlap + 4 * covered + distance / 8
            if cost < least:
                best, least = (float(cx), float(cy)), cost
    taken.append((*best, w, h))
    return best[0], best[1] + 5  # the baseline
