"""Zero-shot classification: the class whose text vector is nearest in cosine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openshape_jax.config import EvalConfig
from openshape_jax.data import sources, vocabulary
from openshape_jax.data.pipeline import draw_points

# (xyz (B, N, 3) uint16, rgb (B, N, 3) uint8) -> (B, D) unit vectors
Embed = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Task:
    """A labelled set of shapes and the classes to tell apart."""

    name: str
    dataset: str
    split: str
    rows: np.ndarray  # (n,) indices into the embedded shapes
    label: np.ndarray  # (n,) index of the true class
    class_names: list[str]
    class_emb: np.ndarray  # (C, D) unit vectors


def accuracy(scores: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """top1, top3, top5 and mean_class (mean over the classes present of the top-1 share) in 0..1.

    Args:
      scores: (n, C), larger is more likely; a tie counts against the true class.
      label: (n,) true classes.

    Raises:
      ValueError: no shape at all. FloatingPointError: a score is NaN or infinite.
    """
    if len(label) == 0:
        raise ValueError("no labelled shape to evaluate on.")
    if bad := int((~np.isfinite(scores)).any(1).sum()):
        raise FloatingPointError(
            f"{bad} of {len(scores)} shapes have NaN or infinite scores: the model is broken."
        )
    true = scores[np.arange(len(label)), label]
    # Ties count as misses: a constant output must not score.
    rank = (scores >= true[:, None]).sum(1) - 1
    hit = rank == 0
    per_class = [hit[label == c].mean() for c in np.unique(label)]
    return {
        "top1": float(hit.mean()),
        "top3": float((rank < 3).mean()),
        "top5": float((rank < 5).mean()),
        "mean_class": float(np.mean(per_class)),
    }


class ZeroShot:
    """Evaluates on the test split of one data set over (a) its classes and (b) all LVIS names."""

    def __init__(self, dataset: str, config: EvalConfig, data_dir: str = ""):
        records, _ = sources.open_split(dataset, config.split, data_dir)
        self._batch = config.batch_size
        names, self.uids, xyz, rgb = [], [], [], []
        for index in range(len(records)):
            record = records[index]
            if not record["label"]:
                continue
            points = draw_points(record, config.num_points, np.random.default_rng(index))
            names.append(record["label"])
            self.uids.append(record["uid"])
            xyz.append(points["xyz"])
            rgb.append(points["rgb"])
        if not names:
            raise ValueError(f"data set {dataset!r} has no labelled shape in its split {config.split!r}.")
        self._xyz, self._rgb = np.stack(xyz), np.stack(rgb)
        words = vocabulary.load()
        base = dataset.replace("/", "_")
        self.tasks = [
            self._task(base, dataset, config.split, names, sorted(set(names)), words),
            self._task(f"{base}_lvis", dataset, config.split, names, words.names_of("lvis"), words),
        ]

    @staticmethod
    def _task(
        name: str, dataset: str, split: str, labels: Sequence[str], classes: list[str], words: Any
    ) -> Task:
        index = {c: i for i, c in enumerate(classes)}
        rows = np.array([i for i, label in enumerate(labels) if label in index], np.int64)
        label = np.array([index[labels[int(i)]] for i in rows], np.int64)
        return Task(name, dataset, split, rows, label, classes, words.encode(classes))

    def embed_all(self, embed: Embed) -> np.ndarray:
        """(n, D) embeddings of every labelled shape; the last batch is padded to the common size."""
        out = []
        for first in range(0, len(self._xyz), self._batch):
            xyz, rgb = self._xyz[first : first + self._batch], self._rgb[first : first + self._batch]
            fill = self._batch - len(xyz)
            pad = ((0, fill), (0, 0), (0, 0))
            emb = embed(np.pad(xyz, pad, "edge"), np.pad(rgb, pad, "edge"))
            out.append(np.asarray(emb)[: len(xyz)])
        return np.concatenate(out)

    def run(self, embed: Embed, workdir: Path | None = None) -> Iterator[tuple[str, float]]:
        """Yields ("eval/<task>/<measure>", value); writes WORKDIR/eval/<task>.json and .npz if asked."""
        emb = self.embed_all(embed)
        for task in self.tasks:
            if not len(task.rows):
                continue
            mine = emb[task.rows]
            result = accuracy(mine @ task.class_emb.T, task.label)
            yield from ((f"eval/{task.name}/{k}", v) for k, v in result.items())
            if workdir is not None:
                self._write(workdir / "eval", task, mine, result)

    def _write(self, folder: Path, task: Task, emb: np.ndarray, result: dict[str, float]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        counts = {"num_classes": len(task.class_names), "num_shapes": len(task.rows)}
        described = {**result, **counts, "dataset": task.dataset, "split": task.split}
        (folder / f"{task.name}.json").write_text(json.dumps(described, indent=2))
        np.savez_compressed(
            folder / f"{task.name}.npz",
            uid=np.array([self.uids[i] for i in task.rows]),
            label=task.label,
            shape_emb=emb.astype(np.float32),
            class_names=np.array(task.class_names),
            class_emb=task.class_emb.astype(np.float32),
        )
