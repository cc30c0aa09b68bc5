"""`openshape report WORKDIR`: writes the HTML report of a run again."""

from __future__ import annotations

import argparse

from openshape_jax.cli.arguments import add_data_dir


def add_parser(verbs: argparse._SubParsersAction) -> None:
    """Adds the verb."""
    p = verbs.add_parser(
        "report", help="write the HTML report of a run", description="Writes WORKDIR/report/index.html."
    )
    p.add_argument("workdir", metavar="WORKDIR", help="run directory of a training run")
    add_data_dir(p)
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Writes the report and prints its path.

    Raises:
      ValueError: WORKDIR is no run directory.
    """
    from openshape_jax.evals import report

    print(f"report: {report.write(args.workdir, args.data_dir)}")
    return 0
