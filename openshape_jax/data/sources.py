"""Opening built data sets: found by name, read as ArrayRecord, small ones kept in memory."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from openshape_jax.data import files, schema


class DatasetMissing(FileNotFoundError):
    """A data set that has not been built; the message says where it was looked for and what builds it."""


class Records(Protocol):
    """Random access to records, as `schema.decode` gives them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


def data_root(data_dir: str | Path = "") -> Path:
    """The folder that holds the data sets: `data_dir`, else TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Raises:
      ValueError: it is a URL.
    """
    root = str(data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"))
    if "://" in root:
        raise ValueError(
            f"the folder of the data sets is the URL {root!r}; records are read and written as files: mount "
            "the bucket (gcsfuse) and give the mount's path."
        )
    return Path(root).expanduser()


def versions(names: Sequence[str], data_dir: str | Path = "") -> dict[str, str]:
    """The newest built version of each data set, by name; those that are not built are left out."""
    found = {}
    for name in names:
        with contextlib.suppress(DatasetMissing):
            found[name] = find(name, data_dir).name
    return found


def find(name: str, data_dir: str | Path = "") -> Path:
    """The newest built version's folder of the data set `name` (or "name/config").

    Raises:
      DatasetMissing: it is not there.
    """
    root = data_root(data_dir) / name
    folders = [root]
    # TFDS puts a data set that has configs one folder deeper, and notes which of them is the default.
    with contextlib.suppress(FileNotFoundError):
        noted = json.loads((root / ".config" / "metadata.json").read_text())
        folders.append(root / noted["default_config_name"])
    described = [p.parent for folder in folders for p in folder.glob("*/dataset_info.json")]
    versions = list(filter(_is_whole, described))
    if not versions:
        base = name.partition("/")[0]
        there = {built for built, _ in built_folders(data_root(data_dir))}
        near = ", ".join(difflib.get_close_matches(name, sorted(there), 3, 0.6))
        raise DatasetMissing(
            f"data set {name!r} is not built.\n"
            f"  looked in: {root}\n"
            + (f"  like it:   {near}\n" if near else "")
            + f"  build it:  openshape data build {name}"
            + (f" --data_dir {data_dir}" if data_dir else "")
            + "\n"
            "  elsewhere: --config.data.data_dir=DIR or the environment variable TFDS_DATA_DIR\n"
            "  meanwhile: add :smoke to --config=FILE for a one-minute run on synthetic shapes"
            + ("" if base == "primitives" else " (openshape data build primitives)")
        )
    return max(versions, key=lambda p: tuple(int(n) for n in p.name.split(".") if n.isdigit()))


def built_folders(root: Path) -> Iterator[tuple[str, Path]]:
    """(name, folder) of each version of each data set that is built in `root`, in no order."""
    for path in [*root.glob("*/*/dataset_info.json"), *root.glob("*/*/*/dataset_info.json")]:
        if _is_whole(path.parent):
            yield path.parent.parent.relative_to(root).as_posix(), path.parent


def _is_whole(folder: Path) -> bool:
    return not folder.name.startswith("incomplete")  # TFDS's name of half-built ones


def text_space(names: Sequence[str], data_dir: str | Path = "") -> str:
    """The CLIP space of the features of some data sets, as their metadata say it; "unknown" if none does.

    Raises:
      DatasetMissing: not built. ValueError: the spaces differ, or a damaged description.
    """
    spaces: dict[str, str] = {}
    for name in names:
        path = find(name, data_dir) / "metadata.json"
        try:
            described = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except ValueError as error:
            raise ValueError(
                f"{path} is damaged ({error}): delete its folder and run `openshape data build {name}` again."
            ) from error
        if described.get("text_space"):
            spaces.setdefault(str(described["text_space"]), name)
    if len(spaces) > 1:
        listed = ", ".join(f"{name}: {space}" for space, name in spaces.items())
        raise ValueError(
            f"the features of data.datasets lie in different spaces ({listed}); take those of one CLIP only."
        )
    return next(iter(spaces), "unknown")


def open_folder(folder: Path, name: str = "NAME") -> Any:
    """The TFDS builder of the data set in `folder` (.../NAME/VERSION).

    Raises:
      ValueError: its description is damaged; says to build `name` again.
    """
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_from_directory(str(folder))
    except Exception as error:  # protobuf's and TFDS's own errors have no common base
        raise ValueError(
            f"{folder} cannot be opened ({type(error).__name__}: {str(error)[:200]}): delete that folder "
            f"and run `openshape data build {name}` again."
        ) from error


def open_split(name: str, split: str, data_dir: str | Path = "") -> tuple[TfdsRecords | Subset, Any]:
    """(records, tfds DatasetInfo) of one split: one that is stored, or a part of "train".

    Raises:
      DatasetMissing: not built. ValueError: no such split, or a damaged description.
    """
    folder = find(name, data_dir)
    builder = open_folder(folder, name)
    if split in builder.info.splits:
        return TfdsRecords(builder, split), builder.info
    subset = folder / f"subset.{split}.npy"
    if not subset.is_file():
        parts = [p.name.split(".")[1] for p in folder.glob("subset.*.npy")]
        raise ValueError(
            f"data set {name!r} has no split {split!r}; it has {', '.join([*builder.info.splits, *parts])}."
        )
    return Subset(TfdsRecords(builder, "train"), np.load(subset, allow_pickle=False)), builder.info


def listed_uids(path: Path, errors: str = "strict") -> list[str] | None:
    """The uids that the file uids.SPLIT.txt lists; None where there is none: only sharded builders write it.

    Args:
      errors: what to do with bytes that are no UTF-8, as `bytes.decode` takes it.
    """
    if not path.is_file():
        return None
    return path.read_text(encoding="utf-8", errors=errors).removesuffix("\n").split("\n")


def uids(records: Records) -> list[str]:
    """The uid of every record, in their order; from the data set's list of them where it has one."""
    if isinstance(records, Subset):
        every = uids(records.whole)
        return [every[int(row)] for row in records.rows]
    if isinstance(records, TfdsRecords) and (listed := listed_uids(records.uid_file)):
        if len(listed) != len(records):
            raise ValueError(
                f"{records.uid_file} lists {len(listed)} shapes but there are {len(records)}: delete that "
                "folder and run `openshape data build` again."
            )
        return listed
    return [records[i]["uid"] for i in range(len(records))]


class TfdsRecords:
    """Decoded records of a split."""

    def __init__(self, builder: Any, split: str):
        self._folder = builder.data_dir
        self.uid_file = Path(builder.data_dir) / f"uids.{split}.txt"
        self.num_bytes = builder.info.splits[split].num_bytes
        self._text_dim = builder.info.features["text_features"].shape[-1]
        self._image_dim = builder.info.features["image_features"].shape[-1]
        self._source = builder.as_data_source(split).data_source  # serialised records

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The record.

        Raises:
          ValueError: the file is cut or damaged there; says which folder to build again.
        """
        try:
            return schema.decode(self._read(index), self._text_dim, self._image_dim)
        except (RuntimeError, ValueError) as error:
            reason = str(error).split(";")[0]
            raise ValueError(
                f"record {index} of {self._folder} cannot be read ({reason}). Where the disk or the mounted "
                "bucket is well, delete that folder and run `openshape data build` again."
            ) from error

    def _read(self, index: int) -> bytes:
        """The serialised record. Read again for some seconds where that fails: a mounted bucket may be away.

        ArrayRecord reports that and a damaged file alike, by hashes of its own.
        """
        try:
            return self._source[index]
        except RuntimeError:
            return files.persistently(lambda: self._source[index], lambda e: isinstance(e, RuntimeError))


class Subset:
    """The records of another sequence at some rows."""

    def __init__(self, records: TfdsRecords | Subset, rows: np.ndarray):
        self.whole, self.rows = records, rows
        self.num_bytes = int(records.num_bytes * len(rows) / max(len(records), 1))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.whole[int(self.rows[index])]


class InMemory:
    """The records at `indices` (all if None), decoded once and kept."""

    def __init__(self, records: Records, indices: Sequence[int] | None = None):
        self._records = [records[i] for i in (range(len(records)) if indices is None else indices)]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._records[index]


def num_points_of(record: dict[str, Any]) -> int:
    """Stored points of a record."""
    return int(np.shape(record["xyz"])[0])
