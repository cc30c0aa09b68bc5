"""Zero-shot classification: the class whose text vector is nearest in cosine."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openshape_jax.config import EvalConfig
from openshape_jax.data import class_features, sources, vocabulary
from openshape_jax.evals import embedding
from openshape_jax.evals.conditions import Condition
from openshape_jax.evals.embedding import Embed, Embedded


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
        self.dataset, self._config = dataset, config
        self._records, self._rows, self.info = embedding.open_labelled(dataset, config.split, data_dir)
        self._stored = class_features.load(sources.find(dataset, data_dir))
        self._centred = text_space == vocabulary.TEXT_SPACE
        classes = [str(name) for name in dict(self.info.metadata or {}).get("classes", [])]
        if self._stored is not None:
            _check_classes(dataset, classes, self._stored.names)
        if self._stored is None or self._stored.width != embed_dim:
            width = None if self._stored is None else self._stored.width
            _check_vocabulary(dataset, classes, width, embed_dim, text_space)
            self._stored = None
        if self._stored is not None:
            _check_space(dataset, sources.text_space([dataset], data_dir), text_space)

    def points_of_a_shape(self) -> int:
        """Points that are embedded of the first shape: no more than it has."""
        record = self._records[int(self._rows[0])]
        return min(sources.num_points_of(record), self._config.num_points)

    def embed_all(
        self,
        embed: Embed,
        draw: int = 0,
        condition: Condition | None = None,
        with_images: bool = False,
    ) -> Embedded:
        """Every labelled shape; see `embedding.every`."""
        return embedding.every(
            self._records,
            self._rows,
            embed,
            batch_size=self._config.batch_size,
            num_points=self._config.num_points,
            draw=draw,
            condition=condition,
            gray=self._config.gray,
            with_images=with_images,
            name=self.dataset,
        )

    def tasks(
        self, uids: Sequence[str], labels: Sequence[str], text_proj: Mapping[str, Any] | None = None
    ) -> list[Task]:
        """The tasks on all labelled shapes; one of a class that a task does not have is left out of it.

        Args:
          text_proj: the model's linear map of text targets, which class vectors pass too; None: it has none.

        Raises:
          ValueError: the stored class features lack a class.
        """
        base = self.dataset.replace("/", "_")

        def task(
            name: str, mine: Sequence[str], classes: list[str], vectors: np.ndarray, origin: str
        ) -> Task:
            index = {c: i for i, c in enumerate(classes)}
            rows = np.array([i for i, label in enumerate(mine) if label in index], np.int64)
            label = np.array([index[mine[int(i)]] for i in rows], np.int64)
            chosen = [uids[int(i)] for i in rows]
            split = self._config.split
            vectors = vectors if text_proj is None else projected(vectors, text_proj)
            return Task(name, self.dataset, split, origin, rows, chosen, label, classes, vectors)

        if self._stored is not None:
            strange = set(labels) - set(self._stored.names)
            if strange:
                raise ValueError(
                    f"data set {self.dataset!r} has shapes of the class {min(strange)!r}, for which its "
                    f"{class_features.FILE} has no vector; its {len(self._stored.names)} classes are "
                    f"{', '.join(self._stored.names[:5])}, ...: build it again."
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
        found = self.embed_all(embed)
        for task in self.tasks(found.uids, found.labels, text_proj):
            if len(task.rows):
                mine = found.emb[task.rows]
                yield task, accuracy(mine @ task.class_emb.T, task.label), mine

    def run(
        self, embed: Embed, workdir: Path | None = None, text_proj: Mapping[str, Any] | None = None
    ) -> Iterator[tuple[str, float]]:
        """Yields ("eval/<task>/<measure>", value); writes WORKDIR/eval/<task>.json and .npz if asked."""
        for task, result, emb in self.results(embed, text_proj):
            yield from ((f"eval/{task.name}/{k}", v) for k, v in result.items())
            if workdir is not None:
                write(workdir / "eval", task, emb, task.describe(result))


def _check_space(dataset: str, theirs: str, ours: str) -> None:
    """Returns if the class vectors of a data set lie in a model's space, or one of both does not say.

    Vectors of two CLIPs of one width would give accuracies that mean nothing.

    Raises:
      ValueError: they do not; names both spaces.
    """
    if theirs != ours and "unknown" not in (theirs, ours):
        raise ValueError(
            f"the classes of {dataset!r} are vectors of {theirs!r}, but the model embeds into "
            f"{ours!r}: take a model and a data set of one CLIP."
        )


def _check_classes(dataset: str, classes: Sequence[str], vectors: Sequence[str]) -> None:
    """Returns if the list of classes of a data set is that of its class vectors, or it has none.

    Raises:
      ValueError: they differ; names what one of them lacks.
    """
    if not classes or set(classes) == set(vectors):
        return
    without, unused = sorted(set(classes) - set(vectors)), sorted(set(vectors) - set(classes))
    raise ValueError(
        f"data set {dataset!r} lists {len(classes)} classes, but its {class_features.FILE} has the vectors "
        f"of {len(vectors)} others"
        + (f"; without a vector: {', '.join(without[:5])}" if without else "")
        + (f"; vectors of no class: {', '.join(unused[:5])}" if unused else "")
        + ". Build it again from a list and features that belong together."
    )


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
            f"data set {dataset!r} cannot be evaluated with embeddings of width {embed_dim} (of the model's "
            f"CLIP, {text_space}): {has}, and the vocabulary's vectors ({vocabulary.RAW_TEXT_SPACE}) have "
            f"{width}. Take a model of width {wanted} (model.embed_dim), or build "
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


def write(folder: Path, task: Task, emb: np.ndarray, values: Mapping[str, Any]) -> None:
    """Writes FOLDER/<task>.json with `values` and FOLDER/<task>.npz with the embeddings."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{task.name}.json").write_text(json.dumps(values, indent=2))
    np.savez_compressed(
        folder / f"{task.name}.npz",
        uid=np.array(task.uids),
        label=task.label,
        shape_emb=emb.astype(np.float32),
        class_names=np.array(task.class_names),
        class_emb=task.class_emb.astype(np.float32),
    )
