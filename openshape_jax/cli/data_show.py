"""`openshape data show NAME [--n 12] [--out FILE]`: a picture of random records with their texts."""

from __future__ import annotations

import argparse
from pathlib import Path

from openshape_jax.cli.arguments import add_data_dir

MOST = 200  # more make a picture that few programs open


def add_parser(actions: argparse._SubParsersAction) -> None:
    """Adds the action."""
    p = actions.add_parser(
        "show",
        help="a contact sheet (PNG) of random records",
        description="Draws random records from their stored points, with uid, label and all texts below.",
    )
    p.add_argument("name", metavar="NAME", help="as for build")
    p.add_argument("--n", type=int, default=12, help=f"records (default 12, at most {MOST})")
    p.add_argument("--split", default="train", help="default: train")
    p.add_argument("--seed", type=int, default=0, help="of the choice (default 0)")
    p.add_argument("--out", default="", metavar="FILE", help="default: NAME-SPLIT.png in this folder")
    add_data_dir(p)
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Writes the picture and prints its path.

    Raises:
      DatasetMissing: not built. ValueError: no such split, a bad number, an unknown kind of picture.
    """
    import numpy as np

    from openshape_jax.data import sources
    from openshape_jax.evals.sheet import contact_sheet

    out = Path(args.out or f"{args.name.replace('/', '-')}-{args.split}.png")
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out is {args.out!r}; the picture is a .png file.")
    if not 1 <= args.n <= MOST:
        raise ValueError(f"--n is {args.n}; it must lie in 1 to {MOST}.")
    if args.seed < 0:
        raise ValueError(f"--seed is {args.seed}; it must not be negative.")
    records, _ = sources.open_split(args.name, args.split, args.data_dir)
    rng = np.random.default_rng(args.seed)
    chosen = rng.choice(len(records), min(args.n, len(records)), replace=False)
    about = f"{len(chosen)} of {len(records):,} shapes, seed {args.seed}"
    sheet = contact_sheet([records[int(i)] for i in chosen], f"{args.name}, {args.split}", about)
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out, optimize=True)
    print(out)
    return 0
