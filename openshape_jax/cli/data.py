"""`openshape data build|verify|show|list`: the data sets that training and evaluation read."""

from __future__ import annotations

import argparse

from openshape_jax.cli import data_build, data_list, data_show, data_verify


def add_parser(verbs: argparse._SubParsersAction) -> None:
    """Adds the verb with its actions."""
    p = verbs.add_parser(
        "data",
        help="build, check and look at data sets",
        description="Builds, checks and shows the data sets that training reads.",
    )
    actions = p.add_subparsers(dest="action", required=True, metavar="ACTION")
    for action in (data_build, data_verify, data_show, data_list):
        action.add_parser(actions)
