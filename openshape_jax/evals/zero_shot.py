"""Zero-shot classification: the class whose text vector is nearest in cosine."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from openshape_jax.config import EvalConfig
from openshape_jax.data import class_features, sources, vocabulary
from openshape_jax.data.pipeline import points_to_embed

# (xyz (B, N, 3) uint16, rgb (B, N, 3) uint8, count (B,)) -> (B, D) unit vectors, of NumPy or on the device;
# points after the first `count` of a cloud repeat them in order
Embed = Callable[[np.ndarray, np.ndarray, np.ndarray], Any]
LONG = 5000  # shapes from which an evaluation shows a progress bar


@dataclass(frozen=True)
class Task:
    """A labelled set of shapes and the classes to tell apart."""

    name: str
    dataset: str
    split: str
    class_vectors: str  # where they come from: "data set" or "vocabulary"
    rows: np.ndarray  # (n,) indices into the labelled shapes
    uids: list[str]  # n
    label: np.ndarray  # (n,) index of the true class
    class_names: list[str]
    class_emb: np.ndarray  # (C, D) unit vectors

    def describe(self, result: dict[str, float]) -> dict[str, Any]:
        """`result` with all that a reader of it must know."""
        counts = {"num_classes": len(self.class_names), "num_shapes": len(self.rows)}
        origin = {"dataset": self.dataset, "split": self.split, "class_vectors": self.class_vectors}
        return {**result, **counts, **origin}


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


def projected(vectors: np.ndarray, projection: Mapping[str, Any]) -> np.ndarray:
    """(n, D) unit vectors: a linear map {"kernel" (D, D), "bias" (D,)} of `vectors`, scaled to length 1."""
    mapped = vectors @ np.asarray(projection["kernel"]) + np.asarray(projection["bias"])
    return mapped / np.linalg.norm(mapped, axis=-1, keepdims=True)


class ZeroShot:
    """Evaluates on one split of a data set over (a) its classes and (b) all LVIS names.

    The vectors of (a) are those stored with the data set where their width is the model's; then there is no
    (b). Otherwise they are the vocabulary's, and the classes are those that the split has.
    """

    def __init__(
        self,
        dataset: str,
        config: EvalConfig,
        data_dir: str = "",
        embed_dim: int = 512,
        text_space: str = vocabulary.TEXT_SPACE,
    ):
        """Opens the split. A small one is read once, to find damage before a training; no points are kept.

        Args:
          embed_dim: D, the width of the model's embeddings.
          text_space: of the model, as its metadata says it; the vocabulary knows two.

        Raises:
          DatasetMissing: not built. ValueError: no such split, no labelled shape, or no vectors of its
            classes that fit the model.
        """
        self._dataset, self._config = dataset, config
        self._records, info = sources.open_split(dataset, config.split, data_dir)
        self._stored = class_features.load(sources.find(dataset, data_dir))
        self._centred = text_space == vocabulary.TEXT_SPACE
        if self._stored is None or self._stored.width != embed_dim:
            classes = [str(name) for name in dict(info.metadata or {}).get("classes", [])]
            width = None if self._stored is None else self._stored.width
            _check_vocabulary(dataset, classes, width, embed_dim, text_space)
            self._stored = None
        total = len(self._records)
        if total == 0:
            raise ValueError(
                f"the split {config.split!r} of data set {dataset!r} is empty: take another of its splits "
                f"({', '.join(info.splits)}), or build it again from sources that have shapes."
            )
        labelled = (bool(self._records[index]["label"]) for index in range(total))
        if not any(list(labelled) if total < LONG else labelled):
            raise ValueError(f"data set {dataset!r} has no labelled shape in its split {config.split!r}.")

    def embed_all(self, embed: Embed) -> tuple[list[str], list[str], np.ndarray]:
        """(uids, labels, (n, D) embeddings) of every labelled shape.

        Points are read batch by batch, the next while the device works on the last; the last batch is
        padded to the common size.
        """
        size = self._config.batch_size
        shapes = self._labelled()
        uids, labels, out, waiting = [], [], [], []
        while part := list(itertools.islice(shapes, size)):
            uids += [uid for uid, _, _ in part]
            labels += [label for _, label, _ in part]
            part += [part[-1]] * (size - (full := len(part)))
            batch = (np.stack([points[key] for _, _, points in part]) for key in ("xyz", "rgb", "count"))
            waiting.append((embed(*batch), full))
            if len(waiting) > 1:
                emb, count = waiting.pop(0)
                out.append(np.asarray(emb)[:count])
        return uids, labels, np.concatenate([*out, *(np.asarray(emb)[:count] for emb, count in waiting)])

    def _labelled(self) -> Iterator[tuple[str, str, dict[str, np.ndarray]]]:
        """(uid, label, drawn points) of each shape that has a label."""
        total = len(self._records)
        for index in tqdm(range(total), desc=self._dataset, unit="shape", disable=total < LONG, leave=False):
            record = self._records[index]
            if record["label"]:
                points = points_to_embed(record, index, self._config.num_points)
                yield record["uid"], record["label"], points

    def tasks(
        self, uids: Sequence[str], labels: Sequence[str], text_proj: Mapping[str, Any] | None = None
    ) -> list[Task]:
        """The tasks on all labelled shapes; one of a class that a task does not have is left out of it.

        Args:
          text_proj: the model's linear map of text targets, which class vectors pass too; None: it has none.

        Raises:
          ValueError: the stored class features lack a class.
        """
        base = self._dataset.replace("/", "_")

        def task(
            name: str, mine: Sequence[str], classes: list[str], vectors: np.ndarray, origin: str
        ) -> Task:
            index = {c: i for i, c in enumerate(classes)}
            rows = np.array([i for i, label in enumerate(mine) if label in index], np.int64)
            label = np.array([index[mine[int(i)]] for i in rows], np.int64)
            chosen = [uids[int(i)] for i in rows]
            split = self._config.split
            vectors = vectors if text_proj is None else projected(vectors, text_proj)
            return Task(name, self._dataset, split, origin, rows, chosen, label, classes, vectors)

        if self._stored is not None:
            strange = set(labels) - set(self._stored.names)
            if strange:
                raise ValueError(
                    f"data set {self._dataset!r} has shapes of the class {min(strange)!r}, for which its "
                    f"{class_features.FILE} has no vector: build it again."
                )
            return [task(base, labels, self._stored.names, self._stored.features, "data set")]
        words = vocabulary.load()
        present, lvis = sorted(set(labels)), words.names_of("lvis")
        found = [words.find(label) for label in labels]
        canonical = ["" if index is None else words.names[index] for index in found]
        return [
            task(base, labels, present, words.encode(present, self._centred), "vocabulary"),
            task(f"{base}_lvis", canonical, lvis, words.encode(lvis, self._centred), "vocabulary"),
        ]

    def results(
        self, embed: Embed, text_proj: Mapping[str, Any] | None = None
    ) -> Iterator[tuple[Task, dict[str, float], np.ndarray]]:
        """(task, its accuracies, (n, D) embeddings of its shapes) of each task that has a shape.

        Args:
          text_proj: the model's linear map of text targets, which class vectors pass too; None: it has none.
        """
        uids, labels, emb = self.embed_all(embed)
        for task in self.tasks(uids, labels, text_proj):
            if len(task.rows):
                mine = emb[task.rows]
                yield task, accuracy(mine @ task.class_emb.T, task.label), mine

    def run(
        self, embed: Embed, workdir: Path | None = None, text_proj: Mapping[str, Any] | None = None
    ) -> Iterator[tuple[str, float]]:
        """Yields ("eval/<task>/<measure>", value); writes WORKDIR/eval/<task>.json and .npz if asked."""
        for task, result, emb in self.results(embed, text_proj):
            yield from ((f"eval/{task.name}/{k}", v) for k, v in result.items())
            if workdir is not None:
                _write(workdir / "eval", task, emb, result)


def _check_vocabulary(
    dataset: str, classes: list[str], stored: int | None, embed_dim: int, text_space: str
) -> None:
    """Returns if the vocabulary has vectors of the classes in the model's space.

    Args:
      stored: width of the class features that the data set has, None where it has none.

    Raises:
      ValueError: says which widths there are and which is needed, or which classes are unknown.
    """
    words = vocabulary.load()
    width = words.features.shape[1]
    has = f"its {class_features.FILE} has width {stored}" if stored else "it has no class features"
    if embed_dim != width:
        wanted = f"{stored} or {width}" if stored else str(width)
        raise ValueError(
            f"data set {dataset!r} cannot be evaluated with embeddings of width {embed_dim}: {has}, and the "
            f"vocabulary's vectors have {width}. Take a model of width {wanted} (model.embed_dim), or build "
            f"the data set with class features of width {embed_dim}."
        )
    if text_space not in (vocabulary.TEXT_SPACE, vocabulary.RAW_TEXT_SPACE):
        raise ValueError(
            f"data set {dataset!r}: {has}, and the model embeds into {text_space!r}, not into the "
            f"vocabulary's {vocabulary.RAW_TEXT_SPACE}: there are no vectors of the classes that fit it."
        )
    unknown = []
    for name in classes:
        try:
            words.lookup(name)
        except vocabulary.UnknownLabel:
            unknown.append(name)
    if unknown:
        raise ValueError(
            f"data set {dataset!r}: {has}, the model's embeddings have {embed_dim}, and the vocabulary does "
            f"not know {len(unknown)} of its {len(classes)} classes ({', '.join(unknown[:5])}). "
            + (f"Take a model of width {stored}." if stored else "Build it with class features.")
        )


def _write(folder: Path, task: Task, emb: np.ndarray, result: dict[str, float]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{task.name}.json").write_text(json.dumps(task.describe(result), indent=2))
    np.savez_compressed(
        folder / f"{task.name}.npz",
        uid=np.array(task.uids),
        label=task.label,
        shape_emb=emb.astype(np.float32),
        class_names=np.array(task.class_names),
        class_emb=task.class_emb.astype(np.float32),
    )
