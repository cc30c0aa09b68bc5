"""`openshape classify FILE... --labels a,b,c --checkpoint DIR`."""

from __future__ import annotations

import argparse

from openshape_jax.cli.arguments import add_checkpoint


def add_parser(verbs: argparse._SubParsersAction) -> None:
    """Adds the verb."""
    p = verbs.add_parser(
        "classify",
        help="zero-shot classes of 3D files",
        description="Probabilities of labels for meshes and point clouds (.obj .glb .gltf .ply .stl .off "
        ".npy .npz). Meshes are sampled by area.",
    )
    p.add_argument("files", nargs="+", metavar="FILE")
    p.add_argument("--labels", required=True, help="comma-separated names, e.g. chair,table,lamp")
    add_checkpoint(p)
    p.add_argument(
        "--up", choices=("y", "z"), help="up axis of the files; default: y for obj, glb, gltf, else z"
    )
    p.add_argument("--top", type=int, default=5, help="labels printed per file (default 5)")
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints a line per file and label.

    Raises:
      ValueError: an unreadable file, an unknown label, two that are one name. CheckpointError: no model
      there.
    """
    from openshape_jax import load, runtime
    from openshape_jax.api import check_labels
    from openshape_jax.geometry_io import load_points

    labels = [label.strip() for label in args.labels.split(",") if label.strip()]
    if not labels:
        raise ValueError(f"--labels is {args.labels!r}; give comma-separated names, e.g. chair,table.")
    check_labels(labels)  # before any file is read
    runtime.prepare()
    model = load(args.checkpoint)
    clouds = []
    for file in args.files:
        points = load_points(file, num_points=model.num_points, up=args.up)
        if not points.has_color:
            print(f"{file}: no colour; grey 0.4 is used")
        clouds.append(_with_colour(points))
    for file, row in zip(args.files, model.classify(clouds, labels), strict=True):
        best = sorted(zip(row, labels, strict=True), reverse=True)[: args.top]
        print(f"{file}: " + ", ".join(f"{label} {p:.1%}" for p, label in best))
    return 0


def _with_colour(points):
    import numpy as np

    return np.concatenate([points.xyz, points.rgb], 1)
