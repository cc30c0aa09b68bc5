"""`openshape data list`: what can be built and what is built."""

from __future__ import annotations

import argparse
import ast
import json
from pathlib import Path
from typing import NamedTuple

from openshape_jax.cli.arguments import add_data_dir


class Built(NamedTuple):
    """A data set that is there."""

    name: str  # "primitives/tiny"
    version: str
    splits: dict[str, int]
    num_bytes: int
    folder: Path


def add_parser(actions: argparse._SubParsersAction) -> None:
    """Adds the action."""
    p = actions.add_parser("list", help="what can be built, and what is built")
    add_data_dir(p)
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints both lists."""
    import tfds_builders
    from openshape_jax.data import sources

    root = sources.data_root(args.data_dir)
    names = tfds_builders.names()
    width = max(map(len, names))
    print("can be built (openshape data build NAME):")
    for name in names:
        print(f"  {name:{width}}  {about(Path(tfds_builders.__path__[0], name))}")
    there = built(root)
    print(f"\nbuilt in {root}:" if there else f"\nbuilt in {root}: none")
    width = max((len(f"{b.name} {b.version}") for b in there), default=0)
    for b in there:
        splits = ", ".join(f"{split} {count:,}" for split, count in b.splits.items())
        print(f"  {f'{b.name} {b.version}':{width}}  {splits} ({b.num_bytes / 1e6:,.0f} MB)")
    return 0


def about(package: Path) -> str:
    """The first sentence of a builder's docstring, read without importing it."""
    tree = ast.parse((package / "__init__.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").partition(";")[0].partition("\n")[0].rstrip(".")


def built(root: Path) -> list[Built]:
    """The built data sets in `root`, by name and version; damaged descriptions count as no shapes."""
    from openshape_jax.data import sources

    found = []
    for name, folder in sources.built_folders(root):
        try:
            listed = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))["splits"]
            splits = {split["name"]: sum(map(int, split["shardLengths"])) for split in listed}
        except (ValueError, KeyError, TypeError):
            splits = {}
        size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
        found.append(Built(name, folder.name, splits, size, folder))
    return sorted(found, key=lambda b: (b.name, b.version))
