"""`openshape data build NAME [--data_dir DIR] [--fallback NAME]`: builds a data set once."""

from __future__ import annotations

import argparse
import errno
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

STALE_SECONDS = (
    3600.0  # a half-built folder that nothing has written to for so long belongs to no running build
)


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
        "--fallback", metavar="NAME", help="build this instead if no source of NAME can be reached"
    )
    build.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Builds the data set, or its fallback, and prints where it lies; the exit status.

    Raises:
      ValueError: an unknown name. SourceNotFound: nothing to build from, and no fallback.
      OSError: the disk is full. In every case no half-built set is left.
    """
    import tfds_builders

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
    except KeyboardInterrupt:
        print(
            "\ninterrupted: nothing was kept of the build. The same command starts it again.", file=sys.stderr
        )
        return 130
    return 0


def build(name: str, data_dir: str | Path = "") -> Path:
    """The folder of the data set, built now unless it is there already; prints a summary.

    Raises:
      ValueError: an unknown name. SourceNotFound: no raw files can be had. OSError: the disk is full.
    """
    import tfds_builders
    from openshape_jax.data import sources

    root = sources.data_root(data_dir)
    base, _, config = name.partition("/")
    builder_class = tfds_builders.builder_class(base)
    if config and config not in builder_class.builder_configs:
        raise ValueError(
            f"{base} has no config {config!r}; it has {', '.join(builder_class.builder_configs)}."
        )
    builder = builder_class(config=config or None, data_dir=str(root), file_format="array_record")
    folder = Path(builder.data_dir)
    if (folder / "dataset_info.json").is_file():
        print(f"{name} is already built.")
    else:
        _remove_stale(folder.parent)
        _prepare(builder)
    _summary(builder, folder)
    return folder


def _prepare(builder: Any) -> None:
    try:
        builder.download_and_prepare()
    except OSError:
        raise
    except Exception as error:  # the ArrayRecord writer reports a full disk in words only
        if "no space left" in str(error).lower() or "RESOURCE_EXHAUSTED" in str(error):
            raise OSError(errno.ENOSPC, "No space left on device", str(builder.data_dir)) from error
        raise


def _remove_stale(folder: Path) -> None:
    """Deletes what a build that was killed outright left behind (TFDS calls it `incomplete.*`)."""
    for left in folder.glob("incomplete.*"):
        newest = max((p.stat().st_mtime for p in [left, *left.rglob("*")]), default=0.0)
        if time.time() - newest > STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


def _summary(builder: Any, folder: Path) -> None:
    splits = ", ".join(f"{split} {info.num_examples}" for split, info in builder.info.splits.items())
    size = sum(p.stat().st_size for p in folder.iterdir() if p.is_file())
    print(f"  shapes: {splits} ({size / 1e6:.0f} MB)\n  folder: {folder}")
    rejects = folder / "rejects.jsonl"
    if rejects.is_file():
        lines = [json.loads(line) for line in rejects.read_text(encoding="utf-8").splitlines()]
        print(f"  skipped: {len(lines)} unusable models, listed in {rejects}")
        for line in lines[:5]:
            print(f"    {line['uid']}: {line['error']}")
