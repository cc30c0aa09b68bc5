"""The figures of the report, as inline SVG."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence

import numpy as np

BLUE, ORANGE, GREY = "#2563eb", "#ea580c", "#94a3b8"


def _svg(figure) -> str:
    import matplotlib.pyplot as plt

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight")
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none",
         "font.family": "sans-serif", "axes.edgecolor": "#64748b"}
    )  # fmt: skip
    return plt


def curves(lines: Sequence[dict[str, float]]) -> str:
    """Loss over steps, and the top-1 of every evaluation, side by side; "" without any line."""
    losses = [(x["step"], x["train/loss"]) for x in lines if "train/loss" in x]
    names = sorted({k for x in lines for k in x if k.startswith("eval/") and k.endswith("/top1")})
    if not losses:
        return ""
    plt = _pyplot()
    figure, axes = plt.subplots(1, 2 if names else 1, figsize=(11 if names else 6, 3.6), squeeze=False)
    step, value = np.array(losses).T
    axes[0, 0].plot(step, value, color=GREY, lw=0.8, label="per log line")
    if len(value) > 10:
        width = max(len(value) // 20, 3)
        smooth = np.convolve(value, np.ones(width) / width, "valid")
        axes[0, 0].plot(step[width - 1 :], smooth, color=BLUE, lw=2, label="moving mean")
    axes[0, 0].set(xlabel="step", ylabel="contrastive loss", title="Training loss")
    axes[0, 0].legend(frameon=False)
    for name, colour in zip(names, (BLUE, ORANGE, "#059669", "#7c3aed"), strict=False):
        step, value = np.array([(x["step"], 100 * x[name]) for x in lines if name in x]).T
        axes[0, 1].plot(step, value, "o-", color=colour, label=name.split("/")[1], ms=4)
    if names:
        axes[0, 1].set(xlabel="step", ylabel="top-1 (%)", title="Zero-shot accuracy", ylim=(0, 100))
        axes[0, 1].legend(frameon=False)
    return _svg(figure)


def confusion(label: np.ndarray, guess: np.ndarray, names: Sequence[str], most: int = 28) -> str:
    """Row-normalised confusion among the most frequent true classes; the last column is "other"."""
    frequent = np.argsort(-np.bincount(label, minlength=len(names)), kind="stable")[:most]
    frequent = [c for c in frequent if (label == c).any()]
    place = {c: i for i, c in enumerate(frequent)}
    n = len(frequent)
    table = np.zeros((n, n + 1))
    for true, found in zip(label, guess, strict=True):
        if true in place:
            table[place[true], place.get(found, n)] += 1
    plt = _pyplot()
    size = 0.32 * n + 2.2
    figure, axis = plt.subplots(figsize=(size + 0.3, size))
    axis.imshow(table / np.maximum(table.sum(1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    for i, j in zip(*np.nonzero(table), strict=True):
        dark = table[i, j] / table[i].sum() > 0.55
        axis.text(
            j,
            i,
            str(int(table[i, j])),
            ha="center",
            va="center",
            fontsize=9,
            color="white" if dark else "#0f172a",
        )
    words = [str(names[c]) for c in frequent]
    axis.set_xticks(
        range(n + 1), [*words, "other"], rotation=60, ha="right", rotation_mode="anchor", fontsize=10
    )
    axis.set_yticks(
        range(n), [f"{w} ({int(t)})" for w, t in zip(words, table.sum(1), strict=True)], fontsize=10
    )
    axis.set(xlabel="predicted", ylabel="true (number of shapes)")
    axis.spines[:].set_visible(False)
    return _svg(figure)


def flatten(embedding: np.ndarray) -> tuple[np.ndarray, str]:
    """((n, 2) positions in [0, 1], name of the method): t-SNE where scikit-learn is installed, else PCA."""
    centred = embedding - embedding.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:30]
    points, method = centred @ axes[:2].T, "PCA"
    if len(embedding) >= 12:
        try:
            from sklearn.manifold import TSNE
        except ImportError:
            pass
        else:
            perplexity = min(15.0, (len(embedding) - 1) / 3)
            tsne = TSNE(2, perplexity=perplexity, init="pca", random_state=0, metric="cosine")
            points, method = tsne.fit_transform(embedding), "t-SNE (scikit-learn)"
    low, high = points.min(0), points.max(0)
    return (points - low) / np.maximum(high - low, 1e-9), method


def embedding_map(points: np.ndarray, labels: Sequence[str], titles: Sequence[str], most: int = 18) -> str:
    """An SVG map: a dot a shape, coloured and named for the most frequent classes; titles on hover."""
    width, height, edge = 1000, 640, 50
    x = edge + points[:, 0] * (width - 2 * edge)
    y = edge + (1 - points[:, 1]) * (height - 2 * edge)
    names, counts = np.unique(np.asarray(labels), return_counts=True)
    common = list(names[np.argsort(-counts, kind="stable")][:most])
    colour = {
        c: f"hsl({int(360 * i / max(len(common), 1))},65%,{42 + 12 * (i % 2)}%)" for i, c in enumerate(common)
    }
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="map of the embedding space">']
    for a, b, label, title in zip(x, y, labels, titles, strict=True):
        parts.append(
            f'<circle cx="{a:.1f}" cy="{b:.1f}" r="6" fill="{colour.get(label, "#cbd5e1")}" '
            f'stroke="white"><title>{html.escape(title)}</title></circle>'
        )
    taken: list[tuple[float, float]] = []
    for name in common:
        mine = np.flatnonzero(np.asarray(labels) == name)
        a, b = float(np.median(x[mine])), float(np.median(y[mine])) - 10
        while any(abs(a - p) < 90 and abs(b - q) < 17 for p, q in taken):
            b += 17
        taken.append((a, b))
        parts.append(
            f'<text x="{a:.0f}" y="{b:.0f}" text-anchor="middle" font-size="15" font-weight="600" '
            f'fill="{colour[name]}" stroke="white" stroke-width="3.5" paint-order="stroke">{html.escape(name)}</text>'
        )
    return "".join([*parts, "</svg>"])
