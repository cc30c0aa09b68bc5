"""The optional CSV or JSON file that says what the shapes of a folder are: names, captions, splits."""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

ONE = ("file", "name", "class", "split", "creator", "license")  # columns of one value
MANY = ("caption", "synonym", "tag")  # "captions", "caption2" and "caption_3" are the same column
SPLITS = ("train", "test")
SHOWN = 5  # problems that a message lists
Entry = tuple[str, dict[str, list[str]]]  # ("line 7", {column: values})


class Words(NamedTuple):
    """What is said of one shape; everything may be empty."""

    name: str = ""
    kind: str = ""  # its class, as the person wrote it
    captions: tuple[str, ...] = ()
    synonyms: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    split: str = "train"
    creator: str = ""
    license: str = ""


def read(path: Path, files: Sequence[str], root: Path) -> dict[str, Words]:
    """{file: words} for those of `files` that the captions file names.

    Args:
      path: a .csv or .json file, UTF-8.
      files: paths of the shapes relative to `root`, with slashes.

    Raises:
      ValueError: another form or encoding, an unknown column, file or split, a file named twice; the
        message lists the first ones with their lines. OSError: it cannot be opened.
    """
    if path.suffix.lower() not in (".csv", ".json"):
        raise ValueError(
            f"{path}: the suffix {path.suffix!r} is not known; captions are a .csv or .json file."
        )
    text = _decode(path)
    entries = _csv(path, text) if path.suffix.lower() == ".csv" else _json(path, text)
    named = _names_of(files)
    found: dict[str, Words] = {}
    place: dict[str, str] = {}
    problems = []
    for where, values in entries:
        try:
            file = _resolve(values.get("file", []), named, root, hint=len(problems) < SHOWN)
            if file in found:
                raise ValueError(f"{file!r} stands in {place[file]} already; merge the two")
            found[file], place[file] = _words(values), where
        except ValueError as error:
            problems.append(f"{where}: {error}.")
    if problems:
        more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        count = f"{len(problems)} wrong entr{'ies' if len(problems) > 1 else 'y'}"
        listed = "".join(f"\n  {problem}" for problem in problems[:SHOWN])
        raise ValueError(f"{path} has {count}:{listed}{more}")
    return found


def _decode(path: Path) -> str:
    data = path.read_bytes()
    try:
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise UnicodeDecodeError("utf-8", data, 0, 2, "UTF-16")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path} is not UTF-8 (byte {data[error.start]:#04x} in line {line}); save it as UTF-8 "
            '(in a spreadsheet program: "CSV UTF-8").'
        ) from error


# ---------------------------------------------------------------- forms


def _csv(path: Path, text: str) -> Iterator[Entry]:
    first = text.split("\n", 1)[0]
    delimiter = next((d for d in ",;\t" if d in first), ",")
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns: list[str] | None = None
    try:
        for row in rows:
            where = f"line {rows.line_num}"
            if not any(cell.strip() for cell in row):
                continue
            if columns is None:
                columns = [_column(path, cell) for cell in row]
                _check_columns(path, columns)
                continue
            if len(row) > len(columns):
                raise ValueError(
                    f"{path}, {where}: {len(row)} values for {len(columns)} columns; put a text that has the "
                    f"separator {delimiter!r} in it between double quotes."
                )
            values: dict[str, list[str]] = {}
            for column, cell in zip(columns, row, strict=False):
                values.setdefault(column, []).extend(_cells(column, cell))
            yield where, values
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {rows.line_num}: {error}; look for a stray double quote there."
        ) from error
    if columns is None:
        raise ValueError(f"{path} is empty; its first line names the columns, e.g. file,name,class,caption.")


def _cells(column: str, cell: str) -> list[str]:
    """The values of a CSV cell; synonyms and tags are separated by semicolons."""
    return cell.split(";") if column in ("synonym", "tag") else [cell]


def _json(path: Path, text: str) -> Iterator[Entry]:
    try:
        loaded = json.loads(text, object_pairs_hook=_no_twins)
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}.") from error
    if isinstance(loaded, dict):
        loaded = [{"file": file, **rest} if isinstance(rest, dict) else rest for file, rest in loaded.items()]
    if not isinstance(loaded, list) or not all(isinstance(entry, dict) for entry in loaded):
        raise ValueError(
            f'{path}: expected a list of objects like {{"file": "chair.glb", "captions": ["a red chair"]}}, '
            "or one object that has them by file."
        )
    for number, entry in enumerate(loaded, 1):
        values: dict[str, list[str]] = {}
        for key, value in entry.items():
            many = value if isinstance(value, list) else [] if value is None else [value]
            if not all(isinstance(item, str) for item in many):
                raise ValueError(
                    f"{path}, entry {number}: {key!r} is {value!r}; it must be a string or a list of strings."
                )
            values.setdefault(_column(path, key), []).extend(many)
        yield f"entry {number}", values


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    twin = next((key for key in keys if keys.count(key) > 1), None) if len(set(keys)) < len(keys) else None
    if twin is not None:
        raise ValueError(f"the key {twin!r} stands there twice")
    return dict(pairs)


def _column(path: Path, name: str) -> str:
    """The column that a heading means.

    Raises:
      ValueError: none; the message lists those there are.
    """
    clean = name.strip().lower()
    many = re.fullmatch(rf"({'|'.join(MANY)})s?[ _-]?\d*", clean)
    if many:
        return many[1]
    if clean in ONE:
        return clean
    known = [*ONE, *(column + "s" for column in MANY)]
    near = difflib.get_close_matches(clean, known, 1)
    raise ValueError(
        f"{path}: unknown column {name!r}"
        + (f" (did you mean {near[0]!r}?)" if near else "")
        + f"; known are {', '.join(known)}. Rename it or take it out."
    )


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    twice = next((column for column in ONE if columns.count(column) > 1), None)
    if twice:
        raise ValueError(f"{path}: the column {twice!r} stands there twice; take one out.")
    if "file" not in columns:
        raise ValueError(
            f"{path} has no column 'file' (it has {', '.join(columns)}); it holds each shape's path in the "
            "folder."
        )


# ---------------------------------------------------------------- meaning


def _words(values: Mapping[str, Iterable[str]]) -> Words:
    clean = {c: [" ".join(v.split()) for v in vs if v.strip()] for c, vs in values.items()}
    several = next((column for column in ONE if len(clean.get(column, [])) > 1), None)
    if several:
        raise ValueError(f"{several!r} has {len(clean[several])} values; it takes one")
    one = {column: (clean.get(column) or [""])[0] for column in ONE}
    split = one["split"].lower() or "train"
    if split not in SPLITS:
        raise ValueError(f"the split is {one['split']!r}; it must be train or test")
    caption, synonym, tag = (tuple(dict.fromkeys(clean.get(column, []))) for column in MANY)
    return Words(one["name"], one["class"], caption, synonym, tag, split, one["creator"], one["license"])


def _key(file: str) -> str:
    """One spelling of a path: slashes, composed accents (macOS stores them apart), no leading ./"""
    return unicodedata.normalize("NFC", file.strip().replace("\\", "/").removeprefix("./"))


def _names_of(files: Sequence[str]) -> list[dict[str, list[str]]]:
    """What a file may be called, most exact first: path, path without suffix, file name, stem."""
    tables: list[dict[str, list[str]]] = [{}, {}, {}, {}]
    for file in files:
        path = PurePosixPath(_key(file))
        for table, name in zip(tables, (path, path.with_suffix(""), path.name, path.stem), strict=True):
            table.setdefault(str(name), []).append(file)
    return tables


def _resolve(cells: Sequence[str], tables: Sequence[Mapping[str, list[str]]], root: Path, hint: bool) -> str:
    wanted = _key(cells[0]) if cells else ""
    if not wanted:
        raise ValueError("the column 'file' is empty")
    for table in tables:
        files = table.get(wanted, [])
        if len(files) == 1:
            return files[0]
        if files:
            raise ValueError(f"{wanted!r} may be {' or '.join(sorted(files)[:3])}; give the path")
    # Looking for what is near takes long in a big folder.
    names = [name for table in tables for name in table] if hint else []
    near = difflib.get_close_matches(wanted, names, 1)
    raise ValueError(f"{wanted!r} is no shape in {root}" + (f" (near: {near[0]!r})" if near else ""))
