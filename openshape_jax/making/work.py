"""The work folder: results written whole, kept item by item, and a record of what made them.

| in the folder | |
|---|---|
| source.json | where the shapes come from |
| STAGE.json | of a stage: its settings, the version and date, what it counted |
| usage.json | requests, tokens and costs of all runs |
| render/ captions.jsonl filter.jsonl retrieved.jsonl features/ | results |

Every result carries a key: a digest of the settings and of the input that it was made of. It is made again
where that differs, and only there.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from openshape_jax.data import files
from openshape_jax.version import __version__


def digest(value: Any) -> str:
    """A hexadecimal digest of what JSON can hold."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return files.digest(text)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON for people to read, as `files.write` does."""
    files.write(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file of ours, None where there is none.

    Raises:
      ValueError: it is damaged; names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, and start that stage again.") from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file, [] where there is none; a last line that was cut off is left out.

    Raises:
      ValueError: another line is damaged; names it.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):  # no line break behind it: the process was killed while it wrote
                break
            raise ValueError(
                f"{path}, line {number} is damaged ({error}): delete that line, and start the stage again."
            ) from error
    return found


def write_lines(path: Path, values: Iterable[Mapping[str, Any]]) -> None:
    """Writes a JSONL file, as `files.write` does."""
    files.write(path, "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values))


class Journal:
    """A JSONL file that grows by one result at a time, each on the disk before the next; a context manager.

    Attributes:
      kept: the results that are there, by their `key`.
    """

    def __init__(self, path: Path):
        self.path = path
        self.kept = {value["key"]: value for value in read_lines(path)}
        if path.exists():  # without a line that was cut off, which the next would be glued to
            write_lines(path, self.kept.values())
        self._file = path.open("ab")

    def add(self, value: Mapping[str, Any]) -> None:
        """Appends a result with its "key"."""
        self._file.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.kept[value["key"]] = dict(value)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()


@contextlib.contextmanager
def locked(work: Path, stage: str) -> Iterator[None]:
    """Holds a stage of the folder, which is made where it is not there, for this process.

    Raises:
      OSError: another process works on that stage.
    """
    work.mkdir(parents=True, exist_ok=True)
    with (work / f".{stage}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError(
                errno.EBUSY,
                f"another `openshape targets {stage}` is at work; wait for it or stop it",
                str(work),
            ) from error
        yield


def start(work: Path, stage: str, settings: Mapping[str, Any]) -> None:
    """Notes what is going to make a stage's results, and says where earlier ones were made otherwise."""
    path = work / f"{stage}.json"
    old = read_json(path)
    before = (old or {}).get("settings", {})
    now = json.loads(json.dumps(settings))  # as it will be read
    changed = sorted(k for k in {*before, *now} if before.get(k) != now.get(k))
    if old and changed:
        print(f"{stage}: {', '.join(changed)} changed since {path} was written: results are made again.")
    if not old or changed:
        write_json(path, {"stage": stage, "complete": False, **_made_by(settings)})


def finish(work: Path, stage: str, settings: Mapping[str, Any], counts: Mapping[str, Any]) -> None:
    """Notes that a stage is complete, with what it counted."""
    path = work / f"{stage}.json"
    record = {"stage": stage, "complete": True, **_made_by(settings), "counts": dict(counts)}
    old = read_json(path) or {}
    if {**old, "made": ""} != {**json.loads(json.dumps(record)), "made": ""}:
        write_json(path, record)


def _made_by(settings: Mapping[str, Any]) -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"made": now, "openshape_jax": __version__, "settings": dict(settings)}


def add_usage(folder: Path, stage: str, model: str, usage: Mapping[str, float]) -> None:
    """Adds what a run asked a model to FOLDER/usage.json: requests, tokens and USD of all runs by stage."""
    path = folder / "usage.json"
    every = read_json(path) or {}
    total = every.setdefault(stage, {}).setdefault(model, {})
    for name, number in usage.items():
        total[name] = round(total.get(name, 0) + number, 6)
    write_json(path, every)


def completed(folder: Path, stage: str) -> dict[str, Any] | None:
    """The record of a stage that may be left out; None where it was.

    Raises:
      FileNotFoundError: it was begun and has not come to its end.
    """
    record = read_json(folder / f"{stage}.json")
    if record and not record["complete"]:
        raise FileNotFoundError(
            f"{folder}: {stage} was interrupted: run `openshape targets {stage}` to its end, or delete "
            f"{folder / f'{stage}.json'} to go on without."
        )
    return record


def check_current(stage: str, keys: Mapping[str, str], there: Collection[str]) -> None:
    """Returns if a stage has a result for every shape as it is now.

    Args:
      keys: of the results that there should be, by uid. there: keys of those that there are.

    Raises:
      ValueError: it has not; says which shape it is and what to run.
    """
    stale = [uid for uid, key in keys.items() if key not in there]
    if stale:
        raise ValueError(
            f"{len(stale)} shapes are new or changed since {stage} ran, first {stale[0]!r}: run `openshape "
            f"targets {stage}` again."
        )


def need(path: Path, stage: str) -> Path:
    """The path of what another stage left.

    Raises:
      FileNotFoundError: it is not there; says which command makes it.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is not there: run `openshape targets {stage} --work {path.parent}` first."
        )
    return path
