"""`openshape data verify NAME`: checks every record of a built data set."""

from __future__ import annotations

import argparse

from openshape_jax.cli.arguments import add_data_dir


def add_parser(actions: argparse._SubParsersAction) -> None:
    """Adds the action."""
    p = actions.add_parser(
        "verify",
        help="check every record of a built data set (exit status 1 if anything is wrong)",
        description="Reads every record: counts, checksums, value ranges, features, uids, parts of splits.",
    )
    p.add_argument("name", metavar="NAME", help="as for build")
    add_data_dir(p)
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints what was checked and what is wrong; 0 if nothing is.

    Raises:
      DatasetMissing: not built. ValueError: its description is damaged.
    """
    from openshape_jax.data import sources, verify

    folder = sources.find(args.name, args.data_dir)
    found = verify.verify(folder)
    counts = ", ".join(f"{split} {count}" for split, count in found.counts.items())
    print(f"{folder}\n  shapes: {counts}; features: {found.features}")
    for note in found.notes:
        print(f"  note: {note}")
    if not found.problems:
        print("  no problem found")
        return 0
    print(f"  {len(found.problems)} problem{'s' * (len(found.problems) > 1)}:")
    for problem in found.problems:
        print(f"  - {problem}")
    print(f"  To mend it: delete the folder and run `openshape data build {args.name}` again.")
    return 1
