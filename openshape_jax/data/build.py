"""Building a data set once, with its TFDS builder."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openshape_jax.data import files, sources

STALE_SECONDS = 3600.0  # a half-built folder untouched for so long belongs to no running build


@dataclass(frozen=True)
class Options:
    """How to build; the sets that are made from raw files of the person's own look at them."""

    source: str = ""  # folder of the raw files
    captions: str = ""  # CSV or JSON of names, captions and classes, beside a folder of meshes
    up: str = ""  # the axis that points up in the raw files, "y" or "z"; "": as their form has it
    class_from: str = ""  # "folder": the class of a shape without one is its folder's name
    jobs: int = 0  # processes; 0: one for each core
    max_reject_fraction: float = 0.01  # share of unusable shapes above which the build fails
    runner: Any = None  # see tfds_builders.sharded.ShardedBuilder


def build(name: str, data_dir: str | Path = "", options: Options | None = None) -> Path:
    """The folder of the data set, built now unless it is there already; prints a summary.

    Raises:
      ValueError: an unknown name, an option that this data set does not use, or too many unusable shapes.
      SourceNotFound: no raw files can be had. OSError: the disk is full.
    """
    import tfds_builders

    options = options or Options()
    base, _, config = name.partition("/")
    builder_class = tfds_builders.builder_class(base)
    _check_used(base, builder_class, options)
    with _without_warning():
        builder = builder_class(
            config=_config(builder_class, config, options.source),
            data_dir=str(sources.data_root(data_dir)),
            file_format="array_record",
        )
    for field in dataclasses.fields(Options):
        if hasattr(builder, field.name):
            setattr(builder, field.name, getattr(options, field.name))
    folder = Path(builder.data_dir)
    if (folder / "dataset_info.json").is_file():
        print(f"{name} is already built." + _unread(builder_class, folder, options))
    else:
        _remove_stale(folder.parent)
        with files.full_disk_told(folder):
            builder.download_and_prepare()
    _summary(builder, folder)
    return folder


@contextlib.contextmanager
def _without_warning() -> Iterator[None]:
    """Without TFDS's warning that a config is none of the class's own: here that is meant."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _config(builder_class: Any, name: str, source: str) -> Any:
    """The config called `name`: one of the builder's, or made on the fly where it takes any name or has the
    raw files say what the records are like."""
    if hasattr(builder_class, "config_of_source"):
        return builder_class.config_of_source(name, source)
    if not name or name in builder_class.builder_configs:
        return name or None
    if hasattr(builder_class, "own_config"):
        return builder_class.own_config(name)
    known = ", ".join(builder_class.builder_configs) or "none"
    raise ValueError(f"{builder_class.name} has no config {name!r}; it has {known}.")


def _check_used(name: str, builder_class: Any, options: Options) -> None:
    given = [f.name for f in dataclasses.fields(Options) if getattr(options, f.name) != f.default]
    unused = [option for option in given if not hasattr(builder_class, option)]
    if unused:
        flags = ", ".join("--" + option.replace("_", "-") for option in unused)
        raise ValueError(f"{name} does not use {flags}: leave out what it does not use.")


def _unread(builder_class: Any, folder: Path, options: Options) -> str:
    """What to say of raw files that are given for a set that is there."""
    if not options.source:
        return ""
    other = f", or build {builder_class.name}/ANOTHER_NAME" if hasattr(builder_class, "own_config") else ""
    return f"\n  --source was not read again: delete {folder} for that{other}."


def finished_shards(name: str, data_dir: str | Path = "") -> list[Path] | None:
    """What an interrupted build of a sharded data set left to go on with; None if `name` keeps nothing."""
    import tfds_builders
    from tfds_builders.sharded import ShardedBuilder

    base, _, config = name.partition("/")
    builder_class = tfds_builders.builder_class(base)
    if not issubclass(builder_class, ShardedBuilder):
        return None
    config = config or next(iter(builder_class.builder_configs), "")  # TFDS's default is the first
    return sorted((sources.data_root(data_dir) / base / config).glob("partial.*/*.json"))


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


def build_synthetic(names: Iterable[str], data_dir: str | Path = "") -> None:
    """Builds those of the data sets that are made offline in seconds ("primitives...") and are not there."""
    for name in dict.fromkeys(names):
        if name.partition("/")[0] != "primitives":
            continue
        try:
            sources.find(name, data_dir)
        except sources.DatasetMissing:
            print(f"making the synthetic data set {name} (offline, some seconds)", flush=True)
            build(name, data_dir)
