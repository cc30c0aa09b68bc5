"""The check of a built data set, record by record."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from openshape_jax.data import class_features, schema, sources

SPHERE = 1 + 3**0.5 / schema.XYZ_LEVELS + 1e-6  # the unit sphere, and the rounding of three coordinates
FILLED = 0.999  # a cloud's largest norm is 1 before it is rounded
UNIT = 0.02  # a feature's length may differ from 1 by so much: float16, and normalising in float16
PROMPT_LEAST = 0.5  # a mean of unit vectors is shorter, the more so the less the prompts agree
BATCH = 64  # records read at once


@dataclass
class Found:
    """What a check found."""

    counts: dict[str, int] = field(default_factory=dict)  # records read by split
    features: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Tally:
    """Counts faults of the same kind in a split, and remembers the first."""

    def __init__(self) -> None:
        self._faults: dict[tuple[str, str], list[Any]] = {}

    def add(self, split: str, kind: str, example: str) -> None:
        """Notes one fault."""
        self._faults.setdefault((split, kind), [0, example])[0] += 1

    def lines(self, totals: dict[tuple[str, str], int]) -> list[str]:
        """One line a kind.

        Args:
          totals: what a share is taken of, by split and the kind's first word ("record", "text").
        """
        lines = []
        for (split, kind), (count, example) in self._faults.items():
            total = totals.get((split, kind.split()[0]), 0)
            share = f" of {total} ({count / total:.2%})" if total else ""
            lines.append(f"{split}: {kind}: {count}{share}; first: {example}")
        return lines


def verify(folder: str | Path) -> Found:
    """What is wrong with the data set in `folder` (.../NAME/VERSION), with a progress bar.

    Checked are: files and counts against dataset_info.json; that every record can be read and matches its
    checksum; points in the unit sphere; features finite and of length 1; labels among the metadata's
    classes; uids (no two alike, in the order of uids.SPLIT.txt); parts of "train" (subset.NAME.npy); class
    features. Where the metadata has `unit_features: False`, other lengths are a note and no problem.

    Raises:
      ValueError: the description cannot be read.
    """
    from tqdm import tqdm

    folder = Path(folder)
    info = sources.open_folder(folder).info
    found, tally, lengths = Found(), Tally(), Tally()
    metadata = dict(info.metadata or {})
    classes = {str(name) for name in metadata.get("classes", [])}
    place: dict[str, str] = {}  # uid -> where it was seen
    totals: dict[tuple[str, str], int] = {}
    with tqdm(total=info.splits.total_num_examples, unit="shape", desc="verify") as bar:
        for split, split_info in info.splits.items():
            uids = []
            for record, where in _records(split, split_info, info.features, found.problems, tally):
                bar.update()
                uids.append("" if record is None else record["uid"])
                if record is None:
                    continue
                where = f"{record['uid']!r} ({where})"
                if record["uid"] in place:
                    tally.add(split, "uid twice", f"{where} and {place[record['uid']]}")
                place.setdefault(record["uid"], where)
                for fault in _faults(record, classes):
                    tally.add(split, fault, where)
                for kind, row in _rows(record):
                    totals[split, kind] = totals.get((split, kind), 0) + 1
                    _check_row(split, kind, row, where, tally, lengths)
            found.counts[split] = len(uids)
            totals[split, "record"] = len(uids)
            found.problems += _uid_file(folder, split, uids)
    raw = metadata.get("unit_features", True) is False
    found.problems += tally.lines(totals) + ([] if raw else lengths.lines(totals))
    found.notes += lengths.lines(totals) if raw else []
    found.features = sum(count for (_, kind), count in totals.items() if kind != "record")
    found.problems += _subsets(folder, found.counts.get("train", 0))
    found.problems += _beside(folder, metadata, classes)
    return found


def _records(
    split: str, split_info: Any, features: Any, problems: list[str], tally: Tally
) -> Iterator[tuple[dict[str, Any] | None, str]]:
    """(record or None where it cannot be read, "FILE record N") of a split's files, as they lie there."""
    from array_record.python.array_record_module import ArrayRecordReader

    widths = [features[name].shape[-1] for name in ("text_features", "image_features")]
    for path, expected in zip(split_info.filepaths, split_info.shard_lengths, strict=True):
        path = Path(path)
        if not path.is_file():
            problems.append(f"{split}: the file {path.name} is missing ({expected} shapes)")
            continue
        try:
            reader = ArrayRecordReader(str(path))
            count = reader.num_records()
        except (RuntimeError, ValueError) as error:
            problems.append(f"{split}: the file {path.name} cannot be opened ({_short(error)})")
            continue
        if count != expected:
            problems.append(f"{split}: {path.name} holds {count} records, dataset_info.json says {expected}")
        for first in range(0, count, BATCH):
            indices = range(first, min(first + BATCH, count))
            for index, data in zip(indices, _read(reader, indices), strict=True):
                where = f"{path.name} record {index}"
                record = None
                try:
                    if isinstance(data, Exception):
                        raise data
                    record = schema.decode(data, *widths)
                except (RuntimeError, ValueError) as error:
                    tally.add(split, "record that cannot be read", f"{where} ({_short(error)})")
                yield record, where
        with contextlib.suppress(RuntimeError):  # it says again what is wrong with the file
            reader.close()


def _read(reader: Any, indices: range) -> list[bytes | Exception]:
    """The bytes of some records, or the error of each that is damaged."""
    try:
        return reader.read(list(indices))
    except (RuntimeError, ValueError):
        pass
    results: list[bytes | Exception] = []
    for index in indices:
        try:
            results += reader.read([index])
        except (RuntimeError, ValueError) as error:
            results.append(error)
    return results


def _short(error: Exception) -> str:
    return str(error).split(";")[0].split("\n")[0][:160]


def _faults(record: dict[str, Any], classes: set[str]) -> Iterator[str]:
    """What is wrong with a record, its features aside; each kind starts with "record"."""
    codes, rgb = record["xyz"], record["rgb"]
    if schema.checksum(codes, rgb) != record["checksum"]:
        yield "record whose points do not match their checksum"
    if not record["uid"]:
        yield "record without a uid"
    if len(codes) == 0 or codes.shape != rgb.shape:
        yield f"record with {len(codes)} points and {len(rgb)} colours"
        return
    xyz = schema.dequantize_xyz(codes).astype(np.float64)
    largest = float(np.sqrt((xyz**2).sum(1).max()))
    if largest > SPHERE:
        yield "record whose points leave the unit sphere"
    elif largest < FILLED:
        yield "record whose points do not reach the unit sphere"
    center, scale = record["center"], record["scale"]
    if center.shape != (3,) or not np.isfinite(center).all() or not (np.isfinite(scale) and scale > 0):
        yield "record whose center or scale is no finite number (scale above 0)"
    if len(record["image_sources"]) != len(record["image_features"]):
        yield "record with another number of image features than of their sources"
    if record["label"] and classes and record["label"] not in classes:
        yield "record whose label is none of the metadata's classes"


def _rows(record: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    for text in record["texts"]:
        if text.feature is not None:
            yield "text", text.feature
        if text.prompt_feature is not None:
            yield "prompt", text.prompt_feature
    for row in record["image_features"]:
        yield "image", row


def _check_row(split: str, kind: str, row: np.ndarray, where: str, tally: Tally, lengths: Tally) -> None:
    length = float(np.linalg.norm(np.asarray(row, np.float64)))
    if not np.isfinite(length) or length == 0:
        tally.add(split, f"{kind} feature that is zero, NaN or infinite", where)
        return
    least = PROMPT_LEAST if kind == "prompt" else 1 - UNIT
    if not least <= length <= 1 + UNIT:
        name = f"{kind} feature of a length outside {least:g} to {1 + UNIT:g}"
        lengths.add(split, name, f"{where} has {length:.3g}")


# ---------------------------------------------------------------- files beside the records


def _uid_file(folder: Path, split: str, uids: list[str]) -> list[str]:
    """Whether uids.SPLIT.txt lists the records."""
    path = folder / f"uids.{split}.txt"
    listed = sources.listed_uids(path, errors="replace")
    if listed is None:
        others = sorted(p.name for p in folder.glob("uids.*.txt"))
        return [f"{split}: {path.name} is missing, though there is {others[0]}"] if others else []
    if len(listed) != len(uids):
        return [f"{split}: {path.name} lists {len(listed)} uids, but there are {len(uids)} records"]
    # A record that cannot be read is a problem of its own.
    wrong = [i for i, (a, b) in enumerate(zip(listed, uids, strict=True)) if b and a != b]
    if not wrong:
        return []
    i = wrong[0]
    return [
        f"{split}: {path.name} differs from the records in {len(wrong)} of {len(uids)} lines, first in line "
        f"{i + 1}: {listed[i]!r}, but the record is {uids[i]!r}"
    ]


def _subsets(folder: Path, count: int) -> list[str]:
    """Whether each subset.NAME.npy holds rising rows of "train"."""
    problems = []
    for path in sorted(folder.glob("subset.*.npy")):
        try:
            rows = np.load(path, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            problems.append(f"{path.name} cannot be read ({_short(error)})")
            continue
        if rows.ndim != 1 or rows.dtype.kind not in "iu":
            problems.append(
                f"{path.name} holds {rows.dtype} of shape {rows.shape}; expected whole numbers (n,)"
            )
            continue
        outside = rows[(rows < 0) | (rows >= count)]
        if len(outside):
            problems.append(
                f"{path.name}: {len(outside)} of {len(rows)} rows lie outside the {count} records of train, "
                f"first {outside[0]}"
            )
        elif (np.diff(rows) <= 0).any():
            problems.append(f"{path.name}: its rows do not rise, or one is there twice")
    return problems


def _beside(folder: Path, metadata: dict[str, Any], classes: set[str]) -> list[str]:
    """Whether the class features and the list of rejects agree with the metadata."""
    problems = []
    try:
        stored = class_features.load(folder)
    except ValueError as error:
        problems.append(str(error))
    else:
        missing = sorted(classes - set(stored.names)) if stored else []
        if missing:
            problems.append(
                f"{class_features.FILE} has no feature for {len(missing)} of {len(classes)} classes, first "
                f"{missing[0]!r}"
            )
    listed, skipped = folder / "rejects.jsonl", int(metadata.get("skipped", 0))
    lines = len(listed.read_text(encoding="utf-8").splitlines()) if listed.is_file() else 0
    if lines != skipped:
        problems.append(f"rejects.jsonl lists {lines} shapes, but the metadata counts {skipped} skipped")
    return problems
