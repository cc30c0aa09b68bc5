"""The evaluation suite: one pass over each data set per condition, every probe on the same embeddings."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from tqdm import tqdm

from openshape_jax.config import EvalConfig, ModelConfig
from openshape_jax.data import files, sources, vocabulary
from openshape_jax.evals import conditions, embedding, intervals, probes, retrieval
from openshape_jax.evals.conditions import Condition
from openshape_jax.evals.embedding import Embed, Embedded
from openshape_jax.evals.zero_shot import Task, ZeroShot, accuracy, projected, write
from openshape_jax.version import __version__

PARTS = ("zero_shot", "few_shot", "knn", "retrieval", "robustness")
MEASURES = ("top1", "top3", "top5", "mean_class")
TRAIN = "train"  # the split that few-shot and kNN probes learn from
FORMAT = 1  # of eval.json


class Encoder(Protocol):
    """What is evaluated: `openshape_jax.api.Model`."""

    config: ModelConfig
    metadata: dict[str, Any]
    step: int
    text_proj: dict[str, Any] | None
    image_proj: dict[str, Any] | None

    @property
    def embed_stored(self) -> Embed: ...


class Opened(NamedTuple):
    """A data set about to be evaluated."""

    evaluator: ZeroShot
    config: EvalConfig
    data_dir: str
    embed: Embed


def parts(names: Sequence[str]) -> tuple[str, ...]:
    """The parts of the suite that are asked for, in order; ("all",) asks for all.

    Raises:
      ValueError: an unknown one, or none; few_shot without scikit-learn.
    """
    wanted = PARTS if "all" in names else tuple(names)
    unknown = [name for name in wanted if name not in PARTS]
    if unknown or not wanted:
        found = f"has the part {unknown[0]!r}" if unknown else "is empty"
        raise ValueError(f"the suite {found}; its parts are {', '.join(PARTS)}, or all.")
    if "few_shot" in wanted and not find_spec("sklearn"):
        raise ValueError(
            "the part few_shot of the suite needs scikit-learn: pip install scikit-learn, or leave it out."
        )
    return tuple(name for name in PARTS if name in wanted)


def run(
    model: Encoder,
    config: EvalConfig,
    data_dir: str = "",
    checkpoint: str = "",
    mesh: Any = None,
    output: str | Path | None = None,
) -> dict[str, Any]:
    """What eval.json holds: the options, the model and, by data set, the result of each part of the suite.

    Args:
      config: datasets, split, suite, seeds, batch_size (a multiple of the devices), num_points.
      checkpoint: where the model comes from, for the reader.
      mesh: devices over which batches are split; None: one device.
      output: folder that gets eval.json, and eval/<task>.json and .npz for its report; None: nothing.

    Raises:
      DatasetMissing: not built. ValueError: see `ZeroShot` and `parts`; raised before anything is embedded.
    """
    wanted = parts(config.suite)
    if not config.datasets:
        raise ValueError("no data set is named: give --dataset NAME, or eval.datasets in the config.")

    def embed(*points: np.ndarray, **options: Any) -> Any:
        return model.embed_stored(*points, mesh=mesh, **options)

    space = str(model.metadata["text_space"])
    opened = {
        name: Opened(ZeroShot(name, config, data_dir, model.config.embed_dim, space), config, data_dir, embed)
        for name in dict.fromkeys(config.datasets)
    }
    result: dict[str, Any] = {
        "format": FORMAT,
        "version": __version__,
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "checkpoint": str(checkpoint),
        "step": model.step,
        "model": {k: v for k, v in model.metadata.items() if k != "config"},
        "trained_with": model.metadata.get("config") or {},
        "options": {
            "suite": list(wanted), "seeds": config.seeds, "split": config.split,
            "num_points": config.num_points, "gray": config.gray, "views": model.metadata["views"],
            "data_dir": data_dir,
        },
        "datasets": {},
    }  # fmt: skip
    for name, data in opened.items():
        started = time.perf_counter()
        section, tasks = _evaluate(model, data, wanted)
        section["seconds"] = round(time.perf_counter() - started, 1)
        result["datasets"][name] = section
        if output is not None:  # after every data set: what is done stays, whatever comes
            for task, emb, values in tasks:
                write(Path(output) / "eval", task, emb, values)
            _save(Path(output), result)
    return result


def _save(folder: Path, result: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    files.write(folder / "eval.json", json.dumps(result, indent=1))


def read(folder: str | Path) -> dict[str, Any]:
    """What FOLDER/eval.json holds.

    Raises:
      ValueError: there is none, it is damaged, or of a later version.
    """
    path = Path(folder) / "eval.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} has no eval.json: write it with `openshape eval --checkpoint PATH --dataset NAME "
            f"--output {folder}`."
        )
    try:
        result = json.loads(path.read_text())
        if result["format"] > FORMAT:
            raise ValueError(f"it is of format {result['format']}, this version reads {FORMAT}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): evaluate again.") from None
    return result


def _evaluate(
    model: Encoder, data: Opened, wanted: Sequence[str]
) -> tuple[dict[str, Any], list[tuple[Task, np.ndarray, dict[str, Any]]]]:
    """(the section of a data set, (task, embeddings, values) of each of its tasks)."""
    evaluator, config = data.evaluator, data.config
    draws = [
        evaluator.embed_all(data.embed, draw, with_images="retrieval" in wanted and draw == 0)
        for draw in range(config.seeds)
    ]
    first = draws[0]
    tasks = [t for t in evaluator.tasks(first.uids, first.labels, model.text_proj) if len(t.rows)]
    turns = int(model.metadata["views"])
    section: dict[str, Any] = {
        "split": config.split,
        "num_shapes": len(first.uids),
        "protocol": f"{evaluator.points_of_a_shape():,} points a shape, drawn and ordered by seed, "
        f"{'without colour' if config.gray else 'with colour as stored'}; "
        f"{turns} heading{'' if turns == 1 else 's'}; "
        f"vectors of the class names of the {tasks[0].class_vectors}",
    }
    written = []
    zero_shot = {}
    for task in tasks:
        values, details = named([d.emb[task.rows] for d in draws], task)
        zero_shot[task.name] = {**values, **details}
        written.append((task, first.emb[task.rows], values))
    section["zero_shot"] = zero_shot  # always: the other parts are read beside it
    if "few_shot" in wanted or "knn" in wanted:
        section |= _probes(data, first, wanted)
    if "retrieval" in wanted:
        section["retrieval"] = _retrieval(model, data, first, tasks[0])
    if "robustness" in wanted:
        section["robustness"] = _robustness(data, draws, tasks[0])
    return section, written


def named(draws: Sequence[np.ndarray], task: Task) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what a table of a task shows, per-class table and confusion matrix) of its embeddings in each draw.

    Args:
      draws: (n, D) unit vectors each.
    """
    scores = [emb @ task.class_emb.T for emb in draws]
    found = [accuracy(each, task.label) for each in scores]
    means = {k: intervals.mean([r[k] for r in found]) for k in MEASURES}
    values = task.describe({k: m.mean for k, m in means.items()})
    values["interval_over_shapes"] = intervals.wilson(values["top1"], len(task.label))
    if len(draws) > 1:
        values["draws"] = len(draws)
        values["half_width"] = {k: m.half for k, m in means.items()}
        values["interval"] = intervals.OVER_DRAWS.format(len(draws))
    guesses = np.stack([each.argmax(1) for each in scores])
    table = []
    for c in np.unique(task.label):
        mine = guesses[:, task.label == c]
        wrong, counts = np.unique(mine[0][mine[0] != c], return_counts=True)
        taken = {task.class_names[w]: int(counts[i]) for i, w in enumerate(wrong)}
        row = {"class": task.class_names[c], "shapes": int(mine.shape[1]), "top1": float((mine == c).mean())}
        table.append({**row, "taken_for": taken})
    pairs, counts = np.unique(np.stack([task.label, guesses[0]]), axis=1, return_counts=True)
    confusion = {
        "of": "(true class, answer, shapes) of the first draw; classes by their place in `classes`",
        "classes": task.class_names,
        "counts": [[int(a), int(b), int(n)] for (a, b), n in zip(pairs.T, counts, strict=True)],
    }
    return values, {"per_class": table, "confusion": confusion}


def _probes(data: Opened, test: Embedded, wanted: Sequence[str]) -> dict[str, Any]:
    """{"few_shot": ..., "knn": ...}, those that are wanted; what cannot be done is {"left_out": why}."""
    config, name = data.config, data.evaluator.dataset
    split, learn = f"{TRAIN} → {config.split}", None
    if config.split != TRAIN and TRAIN in data.evaluator.info.splits:
        records, rows, _ = embedding.open_labelled(name, TRAIN, data.data_dir)
        learn = embedding.every(
            records,
            rows,
            data.embed,
            batch_size=config.batch_size,
            num_points=config.num_points,
            gray=config.gray,
            name=f"{name} {TRAIN}",
        )
    classes = {c: i for i, c in enumerate(sorted({*test.labels, *(learn.labels if learn else ())}))}

    def labelled(found: Embedded) -> probes.Labelled:
        return probes.Labelled(found.emb, np.array([classes[label] for label in found.labels]))

    known, held = labelled(learn or test), labelled(test) if learn else None
    sections: dict[str, Any] = {}
    if "few_shot" in wanted:

        def few_shot() -> dict[str, Any]:
            found = probes.few_shot(known, held)
            draws = len(next(iter(found.values())))
            how = "each seed splits {} in halves, class by class: there is no split train"
            return {
                "splits": split if learn else how.format(config.split),
                "classifier": f"logistic regression (scikit-learn, C = {probes.INVERSE_PENALTY:g}) on frozen "
                "embeddings; a class with fewer shapes gives all it has",
                "interval": intervals.OVER_DRAWS.format(draws),
                "classes": len(np.unique(known.label)),
                "shots": {str(n): intervals.described(v) for n, v in found.items()},
            }

        sections["few_shot"] = _or_why(few_shot)
    if "knn" in wanted:
        how = "each shape of {} by the others: there is no split train"
        sections["knn"] = {
            "splits": split if learn else how.format(config.split),
            "vote": f"exp(cosine / {probes.TEMPERATURE})",
            "neighbours": {str(k): v for k, v in probes.knn(known, held).items()},
        }
    return sections


def _or_why(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `measure` gives, or {"left_out": why} where the data set cannot be measured so."""
    try:
        return measure()
    except ValueError as error:
        return {"left_out": str(error)}


def _retrieval(model: Encoder, data: Opened, found: Embedded, task: Task) -> dict[str, Any]:
    emb, label = found.emb[task.rows], task.label
    return {
        "measures": retrieval.MEANING,
        "text → shape": retrieval.words(task.class_emb, emb, label),
        "shape → shape": _or_why(lambda: retrieval.shapes(emb, label)),
        "image → shape": _or_why(
            lambda: retrieval.images(_image_queries(model, data, found)[task.rows], emb, label)
        ),
        "two shapes → shape": retrieval.two_shapes(emb, label, task.class_emb),
    }


def _image_queries(model: Encoder, data: Opened, found: Embedded) -> np.ndarray:
    """(n, D) unit vectors of the shapes' first images as the model was trained to match them.

    Raises:
      ValueError: there are none, or they are of another CLIP.
    """
    assert found.images is not None
    images, name = found.images, data.evaluator.dataset
    if not np.isfinite(images).all(1).any():
        raise ValueError(f"the records of {name!r} have no image features.")
    theirs = sources.text_space([name], data.data_dir)
    ours, width = str(model.metadata["text_space"]), model.config.embed_dim
    # Centring is of texts alone: images of both spaces are CLIP's own.
    raw = {vocabulary.TEXT_SPACE: vocabulary.RAW_TEXT_SPACE}
    if images.shape[1] != width or raw.get(theirs, theirs) not in ("unknown", raw.get(ours, ours)):
        raise ValueError(
            f"the image features of {name!r} have width {images.shape[1]} (CLIP: {theirs}), the model embeds "
            f"to width {width} (CLIP: {ours})."
        )
    if model.image_proj is not None:
        images = projected(images, model.image_proj)
    return images / np.linalg.norm(images, axis=1, keepdims=True)


def _robustness(data: Opened, draws: Sequence[Embedded], task: Task) -> dict[str, Any]:
    """{kind: {"title", "axis", "levels": [{"level", "top1", "mean_class", ...}]}} of the first task."""
    most = data.evaluator.points_of_a_shape()
    todo = [Condition(kind, level) for kind in conditions.KINDS for level in conditions.levels(kind, most)]
    result: dict[str, Any] = {}
    name = data.evaluator.dataset
    for condition in tqdm(todo, desc=f"{name}: robustness", unit="condition", leave=False):
        if condition.clean:
            embs = [found.emb for found in draws]
        else:
            embs = [data.evaluator.embed_all(data.embed, d, condition).emb for d in range(len(draws))]
        found = [accuracy(emb[task.rows] @ task.class_emb.T, task.label) for emb in embs]
        kind = conditions.KINDS[condition.kind]
        section = result.setdefault(
            condition.kind,
            {"title": kind.title, "axis": kind.axis, "normalized": kind.normalized, "levels": []},
        )
        level = condition.level
        if condition.kind == "points" and condition.clean:
            level = most
        means = {k: intervals.described([r[k] for r in found]) for k in ("top1", "mean_class")}
        section["levels"].append({"level": level, "clean": condition.clean, **means})
    return {"task": task.name, "draws": len(draws), "kinds": result}
