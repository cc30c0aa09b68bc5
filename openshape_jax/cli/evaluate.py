"""`openshape evaluate --checkpoint DIR --npz FILE`: zero-shot accuracy on a labelled npz file."""

from __future__ import annotations

import argparse


def add_parser(verbs: argparse._SubParsersAction) -> None:
    """Adds the verb."""
    p = verbs.add_parser(
        "evaluate",
        help="zero-shot accuracy on labelled clouds",
        description="FILE holds xyz (n, N, 3), label (n,) and classes (C,), optionally rgb (n, N, 3).",
    )
    p.add_argument(
        "--checkpoint",
        required=True,
        metavar="PATH",
        help="run directory, converted model, .pt or .safetensors",
    )
    p.add_argument("--npz", required=True, metavar="FILE")
    p.add_argument("--up", choices=("y", "z"), default="z", help="up axis of the file's clouds (default z)")
    p.add_argument("--output", metavar="JSON", help="also write the result there")
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints top-1, top-3, top-5, mean-class and the accuracy of every class.

    Raises:
      ValueError: the file misses an array or shapes do not fit; an unknown class name.
    """
    import json
    from pathlib import Path

    import numpy as np

    from openshape_jax import load, runtime
    from openshape_jax.evals.zero_shot import accuracy

    try:
        file = np.load(args.npz, allow_pickle=False)
    except ValueError:
        file = None
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise ValueError(f"{args.npz} is no .npz archive; it must hold the arrays xyz, label and classes.")
    with file:
        missing = [k for k in ("xyz", "label", "classes") if k not in file]
        if missing:
            raise ValueError(f"{args.npz} has no array {missing[0]!r}; it has {', '.join(file)}.")
        xyz, label = file["xyz"].astype(np.float32), file["label"].astype(np.int64)
        classes = [str(c) for c in file["classes"]]
        if "rgb" in file:
            xyz = np.concatenate([xyz, file["rgb"].astype(np.float32)], -1)
    if len(xyz) != len(label) or label.min() < 0 or label.max() >= len(classes):
        raise ValueError(
            f"{args.npz}: {len(xyz)} clouds, {len(label)} labels from {label.min()} to {label.max()}, "
            f"{len(classes)} classes do not fit together."
        )
    runtime.prepare()
    model = load(args.checkpoint)
    scores = model.scores(model.embed(xyz, up=args.up), classes)
    result = {**accuracy(scores, label), "num_classes": len(classes), "num_shapes": len(label)}
    best = scores.argmax(1)
    for c in np.unique(label):
        chosen = np.bincount(best[label == c], minlength=len(classes))
        wrong = [f"{classes[k]} {chosen[k]}" for k in np.argsort(-chosen)[:4] if k != c and chosen[k]]
        print(
            f"{classes[c]:<20}{chosen[c] / chosen.sum():7.1%} of {chosen.sum():<5} also: {', '.join(wrong)}"
        )
    print(json.dumps(result))
    if args.output:
        Path(args.output).write_text(json.dumps(result, indent=2))
    return 0
