"""`openshape eval --checkpoint PATH --dataset NAME ... | --npz FILE`, `openshape eval --compare DIR ...`."""

from __future__ import annotations

import argparse
from typing import Any

from openshape_jax.cli.arguments import add_data_dir

EPILOG = """parts of the suite:
  zero_shot   naming shapes by the nearest class name: top-1, 3, 5, mean class, per class, confusions
  few_shot    logistic regression on 1, 2, 4, 8, 16 shapes of every class, 10 draws
  knn         the class of the nearest shapes
  retrieval   recall@k and mAP of words, images, shapes and pairs of shapes as queries
  robustness  accuracy with fewer points, noise, gaps, cuts, turns, without colour, scaled, shifted
"""


def add_parser(verbs: argparse._SubParsersAction) -> None:
    """Adds the verb."""
    p = verbs.add_parser(
        "eval",
        help="accuracy, probes, retrieval and robustness on built data sets; comparison of models",
        description="Evaluates a model on data sets that `openshape data build` has built, or on the\n"
        "labelled clouds of FILE, which holds xyz (n, N, 3), label (n,) and classes (C,), optionally\n"
        "rgb (n, N, 3); or puts evaluations side by side.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--checkpoint", metavar="PATH", help="run directory, converted model, .pt or .safetensors")
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--dataset",
        metavar="NAME",
        action="append",
        help="e.g. modelnet40; repeatable",
    )
    what.add_argument(
        "--npz",
        metavar="FILE",
        help="arrays xyz (clouds, points, 3), label (clouds,), each a place in classes, and classes (names); "
        "rgb like xyz where there is one",
    )
    what.add_argument(
        "--compare",
        metavar="DIR",
        nargs="+",
        help="folders of --output, or run directories that were evaluated",
    )
    p.add_argument("--suite", help="parts, comma-separated, or all (default zero_shot)")
    p.add_argument("--seeds", type=int, default=1, metavar="N", help="draws of points (default 1)")
    p.add_argument("--split", default="test", help="of the data sets (default test)")
    add_data_dir(p)
    p.add_argument("--batch_size", type=int, default=32, help="shapes embedded at once (default 32)")
    p.add_argument("--up", choices=("y", "z"), default="z", help="up axis of FILE's clouds (default z)")
    p.add_argument(
        "--output",
        metavar="DIR",
        help="gets eval.json and report/index.html; with --npz a JSON file; with --compare the page's folder",
    )
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the results as a table, and writes them where --output says.

    Raises:
      ValueError: arguments that do not go together; the file misses an array or its arrays do not fit; an
        unknown class name; class vectors of another width than the model's. DatasetMissing: it is not built.
    """
    from pathlib import Path

    for name in ("seeds", "batch_size"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} is {getattr(args, name)}; it must be at least 1.")
    if args.compare:
        from openshape_jax.evals import report_compare

        table, page = report_compare.write(args.compare, Path(args.output or "compare"))
        print(f"{table}\ncomparison: {page.resolve()}")
        return 0
    if not args.checkpoint:
        raise ValueError("--checkpoint is missing: give a run directory, a converted model, or a .pt file.")
    if args.npz and (args.suite not in (None, "zero_shot") or args.seeds > 1):
        raise ValueError(
            "--npz is evaluated zero-shot and once; for other parts of the suite make a data set of your "
            "files: openshape data build mesh_folder --source DIR."
        )
    return _npz(args) if args.npz else _datasets(args)


def _datasets(args: argparse.Namespace) -> int:
    from openshape_jax.config import EvalConfig
    from openshape_jax.evals import suite

    wanted = suite.parts((args.suite or "zero_shot").split(","))  # before the model is read
    from openshape_jax import evaluate, load, runtime

    runtime.prepare()
    model = load(args.checkpoint)
    config = EvalConfig(
        datasets=tuple(args.dataset),
        split=args.split,
        suite=wanted,
        seeds=args.seeds,
        batch_size=args.batch_size,
        num_points=model.num_points,
        views=int(model.metadata["views"]),
        # As the model was trained to see shapes; foreign checkpoints see colours.
        gray=bool((model.metadata.get("config") or {}).get("eval", {}).get("gray", False)),
    )
    evaluate.evaluate(model, config, args.data_dir, args.checkpoint, args.output)
    return 0


def _npz(args: argparse.Namespace) -> int:
    import json
    from pathlib import Path

    from openshape_jax import load, runtime

    data = read_npz(args.npz)  # a bad file stops before the model is read
    runtime.prepare()
    result = on_file(load(args.checkpoint), *data, up=args.up)
    print(json.dumps(result))
    if args.output:
        Path(args.output).write_text(json.dumps(result, indent=2))
    return 0


def read_npz(path: str) -> tuple[Any, Any, list[str]]:
    """(xyz or xyz rgb (n, N, 3|6), label (n,), classes) of a labelled file.

    Raises:
      ValueError: it misses an array, or they do not fit together.
    """
    import numpy as np

    arrays = _arrays(path)
    xyz, label, classes = arrays["xyz"], arrays["label"], [str(c) for c in np.atleast_1d(arrays["classes"])]
    rgb = arrays.get("rgb", np.zeros((*xyz.shape[:-1], 0)))
    same = rgb.shape[:2] == xyz.shape[:2] and rgb.shape[2:] in ((0,), (3,))
    if xyz.ndim != 3 or xyz.shape[2] != 3 or not same:
        beside = f" and rgb {rgb.shape}" if "rgb" in arrays else ""
        raise ValueError(f"{path}: xyz has shape {xyz.shape}{beside}; both must be (clouds, points, 3).")
    if label.ndim != 1 or label.dtype.kind not in "iu":
        raise ValueError(
            f"{path}: label has shape {label.shape} and type {label.dtype}; give a whole number for each "
            "cloud, its place in classes."
        )
    if len(xyz) == 0 or len(xyz) != len(label):
        raise ValueError(
            f"{path} has {len(xyz)} clouds and {len(label)} labels; give one label for each, at least one."
        )
    outside = np.flatnonzero((label < 0) | (label >= len(classes)))
    if len(outside):
        raise ValueError(
            f"{path}: the label {label[outside[0]]} of cloud {outside[0]} is outside the list of "
            f"{len(classes)} classes; labels count from 0 to {len(classes) - 1}."
        )
    return np.concatenate([xyz, rgb], -1).astype(np.float32), label.astype(np.int64), classes


def _arrays(path: str) -> dict[str, Any]:
    """{"xyz", "label", "classes", "rgb" where it has one} of a labelled file, as they are stored."""
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
            lacks, has = ", ".join(missing), ", ".join(file) or "nothing"
            raise ValueError(
                f"{path} has no array {lacks}; it has {has}. xyz, label and classes are needed: rename or "
                "add them (openshape eval --help)."
            )
        try:
            return {k: file[k] for k in ("xyz", "label", "classes", "rgb") if k in file}
        except ValueError as error:
            raise ValueError(f"{path} cannot be read ({error}); save plain arrays, no objects.") from error


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
        also = f" also: {', '.join(wrong)}" if wrong else ""
        print(f"{classes[c]:<20}{chosen[c] / chosen.sum():7.1%} of {chosen.sum():<5}{also}".rstrip())
    return {**accuracy(scores, label), "num_classes": len(classes), "num_shapes": len(label)}
