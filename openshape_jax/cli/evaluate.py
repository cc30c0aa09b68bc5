"""`openshape evaluate --checkpoint PATH --dataset NAME | --npz FILE`: accuracy of naming shapes by words."""

from __future__ import annotations

import argparse
from typing import Any

from openshape_jax.cli.arguments import add_checkpoint, add_data_dir


def add_parser(verbs: argparse._SubParsersAction) -> None:
    """Adds the verb."""
    p = verbs.add_parser(
        "evaluate",
        help="accuracy on a built data set or on labelled clouds",
        description="Classifies shapes by the nearest class name: those of a data set that `openshape data "
        "build` has built, or those of FILE, which holds xyz (n, N, 3), label (n,) and classes (C,), "
        "optionally rgb (n, N, 3).",
    )
    add_checkpoint(p)
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("--dataset", metavar="NAME", help="e.g. modelnet40 or scanobjectnn/obj_only")
    what.add_argument("--npz", metavar="FILE")
    p.add_argument("--split", default="test", help="of the data set (default test)")
    add_data_dir(p)
    p.add_argument("--batch_size", type=int, default=32, help="shapes embedded at once (default 32)")
    p.add_argument("--up", choices=("y", "z"), default="z", help="up axis of FILE's clouds (default z)")
    p.add_argument("--output", metavar="JSON", help="also write the result there")
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints top-1, top-3, top-5 and mean-class accuracy, for a file also the accuracy of every class.

    Raises:
      ValueError: the file misses an array or shapes do not fit; an unknown class name; the data set's class
        vectors have another width than the model's embeddings. DatasetMissing: it is not built.
    """
    import json
    from pathlib import Path

    from openshape_jax import load, runtime

    data = None if args.dataset else read_npz(args.npz)  # a bad file stops before the model is read
    runtime.prepare()
    model = load(args.checkpoint)
    if data:
        result = on_file(model, *data, up=args.up)
    else:
        result = on_dataset(model, args.dataset, args.split, args.data_dir, args.batch_size)
    print(json.dumps(result))
    if args.output:
        Path(args.output).write_text(json.dumps(result, indent=2))
    return 0


def on_dataset(model: Any, dataset: str, split: str, data_dir: str, batch_size: int) -> dict[str, Any]:
    """{task: {"top1", ..., "split", "num_shapes", ...}}: as a training writes it at its end."""
    from openshape_jax.config import EvalConfig
    from openshape_jax.evals.zero_shot import ZeroShot

    if batch_size < 1:
        raise ValueError(f"--batch_size is {batch_size}; it must be at least 1.")
    config = EvalConfig(split=split, batch_size=batch_size, num_points=model.num_points)
    space = model.metadata["text_space"]
    evaluator = ZeroShot(dataset, config, data_dir, model.config.embed_dim, space)
    results = {
        task.name: task.describe(values)
        for task, values, _ in evaluator.results(model.embed_stored, model.text_proj)
    }
    for name, r in results.items():
        shares = ", ".join(f"{k} {r[k]:.1%}" for k in ("top1", "top3", "top5", "mean_class"))
        print(
            f"{name}, split {r['split']}, {r['num_shapes']:,} shapes, {r['num_classes']:,} classes: {shares}"
        )
    return results


def read_npz(path: str) -> tuple[Any, Any, list[str]]:
    """(xyz or xyz rgb (n, N, 3|6), label (n,), classes) of a labelled file.

    Raises:
      ValueError: it misses an array, or they do not fit together.
    """
    import numpy as np

    try:
        file = np.load(path, allow_pickle=False)
    except ValueError:
        file = None
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise ValueError(f"{path} is no .npz archive; it must hold the arrays xyz, label and classes.")
    with file:
        missing = [k for k in ("xyz", "label", "classes") if k not in file]
        if missing:
            raise ValueError(f"{path} has no array {missing[0]!r}; it has {', '.join(file)}.")
        xyz, label = file["xyz"].astype(np.float32), file["label"].astype(np.int64)
        classes = [str(c) for c in file["classes"]]
        if "rgb" in file:
            xyz = np.concatenate([xyz, file["rgb"].astype(np.float32)], -1)
    if len(xyz) != len(label) or label.min() < 0 or label.max() >= len(classes):
        raise ValueError(
            f"{path}: {len(xyz)} clouds, {len(label)} labels from {label.min()} to {label.max()}, "
            f"{len(classes)} classes do not fit together."
        )
    return xyz, label, classes


def on_file(model: Any, points: Any, label: Any, classes: list[str], up: str) -> dict[str, Any]:
    """{"top1", "top3", "top5", "mean_class", ...}; prints the accuracy of every class.

    Raises:
      UnknownLabel: a class name that the vocabulary does not know.
    """
    import numpy as np

    from openshape_jax.evals.zero_shot import accuracy

    scores = model.scores(model.embed(points, up=up), classes)
    best = scores.argmax(1)
    for c in np.unique(label):
        chosen = np.bincount(best[label == c], minlength=len(classes))
        wrong = [f"{classes[k]} {chosen[k]}" for k in np.argsort(-chosen)[:4] if k != c and chosen[k]]
        print(
            f"{classes[c]:<20}{chosen[c] / chosen.sum():7.1%} of {chosen.sum():<5} also: {', '.join(wrong)}"
        )
    return {**accuracy(scores, label), "num_classes": len(classes), "num_shapes": len(label)}
