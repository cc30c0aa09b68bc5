"""`openshape data build NAME [--data_dir DIR] [--fallback NAME]`: builds a data set once."""

from __future__ import annotations

import argparse
import sys

FALLBACK_BUILT = 3  # exit status: NAME could not be had, its fallback was built


def add_parser(verbs: argparse._SubParsersAction) -> None:
    """Adds the verb."""
    p = verbs.add_parser(
        "data", help="build data sets", description="Builds the data sets that training reads."
    )
    actions = p.add_subparsers(dest="action", required=True, metavar="ACTION")
    build = actions.add_parser(
        "build",
        help="fetch and convert a data set; does nothing where it is already built",
        description="Fetches the raw files of a data set and writes its records (ArrayRecord).",
    )
    build.add_argument(
        "name", metavar="NAME", help="e.g. sweethome3d, primitives or primitives/tiny (NAME/CONFIG)"
    )
    build.add_argument("--data_dir", default="", help="default: TFDS_DATA_DIR or ~/tensorflow_datasets")
    build.add_argument(
        "--fallback", metavar="NAME", help="build this if no source of NAME can be reached (exit status 3)"
    )
    build.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Builds the data set, or its fallback, and prints where it lies; the exit status.

    Raises:
      ValueError: an unknown name. SourceNotFound: nothing to build from, and no fallback.
      OSError: the disk is full. In every case no half-built set is left.
    """
    import tfds_builders
    from openshape_jax.data.build import build

    for name in filter(None, (args.name, args.fallback)):  # a misspelt fallback must not wait for its turn
        tfds_builders.check_name(name.partition("/")[0])
    try:
        build(args.name, args.data_dir)
    except tfds_builders.SourceNotFound as error:
        if not args.fallback:
            raise
        line = "!" * 78
        print(f"\n{line}\n{error}\n\n{args.name} is NOT built. Building {args.fallback!r} instead.\n{line}\n")
        build(args.fallback, args.data_dir)
        return FALLBACK_BUILT
    except KeyboardInterrupt:
        print(
            "\ninterrupted: nothing was kept of the build. The same command starts it again.", file=sys.stderr
        )
        return 130
    return 0
