"""`openshape convert SOURCE OUT`: between PyTorch files, safetensors, Hugging Face folders and our own."""

from __future__ import annotations

import argparse


def add_parser(verbs: argparse._SubParsersAction) -> None:
    """Adds the verb."""
    p = verbs.add_parser(
        "convert",
        help="PyTorch, safetensors and Hugging Face checkpoints to ours, and back",
        description="Converts PointBERT checkpoints; no PyTorch is needed. OUT.pt and OUT.safetensors load "
        "strictly into the PyTorch original, any other OUT is a folder that --checkpoint takes.",
    )
    p.add_argument(
        "source",
        metavar="SOURCE",
        help=".pt or .safetensors file, a folder of such, a Hugging Face repository "
        "(OpenShape/openshape-pointbert-vitg14-rgb), or a run directory",
    )
    p.add_argument("out", metavar="OUT", help="NAME.pt, NAME.safetensors or a folder")
    p.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    p.add_argument(
        "--module-prefix",
        action=argparse.BooleanOptionalAction,
        help="tensors named module.*, as in the original's files; default: as SOURCE, else yes in .pt, no in "
        ".safetensors",
    )
    given = p.add_argument_group("what SOURCE's tensors do not tell, where it is no known release")
    given.add_argument("--up", choices=("y", "z"), help="axis that points up in its training data")
    given.add_argument("--patches", type=int, help="farthest point samples")
    given.add_argument("--radius", type=float, help="of a patch, in the unit sphere")
    given.add_argument("--nsample", type=int, help="points of a patch")
    given.add_argument("--embed-dim", type=int, metavar="D", help="stop unless embeddings are this wide")
    given.add_argument(
        "--ignore", action="append", default=[], metavar="NAME", help="leave out a tensor; may be repeated"
    )
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Converts and prints what was written.

    Raises:
      ConversionError: see `convert.load.read` and `convert.save.write`. CheckpointError: no run there.
    """
    from pathlib import Path

    from openshape_jax import api
    from openshape_jax.convert import save

    save.check_target(Path(args.out), args.overwrite)  # before a long download
    options = {k: getattr(args, k) for k in ("up", "patches", "radius", "nsample", "embed_dim")}
    options = {k: v for k, v in options.items() if v is not None}
    if args.ignore:
        options["ignore"] = tuple(args.ignore)
    weights, metadata, step = api.read(args.source, **options)
    save.write(weights, metadata, step, args.out, module_prefix=args.module_prefix, overwrite=args.overwrite)
    print(f"{args.source} -> {args.out}")
    return 0
