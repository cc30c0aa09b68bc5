"""`openshape info FILE`: architecture, target space, axes and training data of a checkpoint."""

from __future__ import annotations

import argparse


def add_parser(verbs: argparse._SubParsersAction) -> None:
    """Adds the verb."""
    p = verbs.add_parser(
        "info", help="what a checkpoint is", description="Prints a checkpoint's metadata and size."
    )
    p.add_argument("file", metavar="FILE", help=".pt, .safetensors, folder, repository or run directory")
    p.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints a line per fact.

    Raises:
      ConversionError or CheckpointError: nothing readable there.
    """
    import json

    from openshape_jax.convert.info import describe

    facts = describe(args.file)
    if args.json:
        print(json.dumps(facts, indent=2))
        return 0
    for name, value in facts.items():
        print(f"{name + ':':<16}{value:,}" if name == "parameters" else f"{name + ':':<16}{value}")
    return 0
