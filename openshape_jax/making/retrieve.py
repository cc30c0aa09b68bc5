"""The stage `retrieve`: texts of a bank's pictures that look like a shape's pictures.

OpenShape enriches texts so, with LAION-5B for a bank. Here the bank is the user's: (image feature, text)
pairs of the same CLIP. A shape asks with the mean of its pictures' features.
"""

from __future__ import annotations

import difflib
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from openshape_jax.making import features, rules, texts, work
from openshape_jax.making.pictures import Drawn
from openshape_jax.making.shapes import Shape

FILE = "retrieved.jsonl"
ALIKE = 0.9  # share of letters from which two texts say the same
BLOCK = 65_536  # rows of a bank that are normalised at once
QUERIES = 256  # shapes that are searched for at once
SPARE = 4  # candidates for every text that is wanted: near-duplicates fall out


class Bank(NamedTuple):
    """Pairs of an image's feature and a text."""

    features: np.ndarray  # (M, D) float16 or float32, of any length
    texts: list[str]
    path: Path

    def describe(self) -> dict[str, Any]:
        """What identifies it."""
        rows = np.linspace(0, len(self.texts) - 1, min(len(self.texts), 256)).astype(np.int64)
        sample = np.asarray(self.features[rows], np.float32).round(4).tolist()
        return {"pairs": len(self.texts), "digest": work.digest([self.texts, sample])}


def read_bank(path: Path) -> Bank:
    """The bank of a .npz file (image_features, texts), or of a folder (image_features.npy, texts.txt).

    Raises:
      ValueError: another form, or as many features as texts there are not. FileNotFoundError: nothing there.
    """
    want = (
        "a .npz with image_features (M, D) and texts (M,), or a folder with image_features.npy and texts.txt"
    )
    try:
        if path.is_dir():
            rows = np.load(path / "image_features.npy", mmap_mode="r", allow_pickle=False)
            lines = (path / "texts.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
        else:
            with np.load(path, allow_pickle=False) as file:
                rows, lines = file["image_features"], [str(text) for text in file["texts"]]
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"--bank {path}: {error.filename or path} is not there; a bank is {want}."
        ) from None
    except (KeyError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"--bank {path} cannot be read ({str(error)[:200]}); a bank is {want}.") from error
    if rows.ndim != 2 or rows.dtype.kind != "f" or len(rows) != len(lines) or not len(lines):
        raise ValueError(
            f"--bank {path} has features of shape {rows.shape} ({rows.dtype}) and {len(lines)} texts; a "
            f"bank is {want}."
        )
    return Bank(rows, lines, path)


def index_of(bank: Bank, width: int) -> Any:
    """A FAISS index of exact inner products of the bank's unit rows.

    Raises:
      ValueError: features of another width, a zero or NaN row, or FAISS is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise ValueError(
            "retrieval needs FAISS, which is not installed here: pip install 'openshape_jax[targets]' "
            f"({error})."
        ) from error
    if bank.features.shape[1] != width:
        raise ValueError(
            f"--bank {bank.path} has features of width {bank.features.shape[1]}, the CLIP's have {width}: "
            "make the bank and the features with one CLIP."
        )
    index = faiss.IndexFlatIP(width)
    for first in range(0, len(bank.texts), BLOCK):
        rows = np.asarray(bank.features[first : first + BLOCK], np.float32)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        bad = np.flatnonzero(~(np.isfinite(lengths[:, 0]) & (lengths[:, 0] > 0)))
        if len(bad):
            raise ValueError(
                f"--bank {bank.path}: the feature in row {first + bad[0]} is zero, NaN or infinite."
            )
        index.add(np.ascontiguousarray(rows / lengths))
    return index


def alike(text: str, others: Sequence[str]) -> bool:
    """Whether one of `others` says nearly the same."""
    clean = _plain(text)
    for other in map(_plain, others):
        matcher = difflib.SequenceMatcher(None, clean, other, autojunk=False)
        if clean == other or (matcher.real_quick_ratio() >= ALIKE and matcher.quick_ratio() >= ALIKE
                              and matcher.ratio() >= ALIKE):  # fmt: skip
            return True
    return False


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def pick(
    found: Sequence[tuple[str, float]], own: Sequence[str], count: int, least: float
) -> list[tuple[str, float]]:
    """At most `count` of (text, cosine), the nearest first.

    Left out are those below `least`, near-duplicates of a shape's own texts and of each other, and what
    `rules.judge` turns down.
    """
    kept: list[tuple[str, float]] = []
    for text, cosine in found:
        text = " ".join(text.split())
        if len(kept) == count or cosine < least:
            break
        if text and not rules.judge(text) and not alike(text, [*own, *(t for t, _ in kept)]):
            kept.append((text, cosine))
    return kept


def retrieve(
    folder: Path,
    every: Sequence[Shape],
    shown: Sequence[Drawn],
    about: Mapping[str, Any],
    bank: Bank,
    count: int = 5,
    least: float = 0.5,
) -> None:
    """Writes FOLDER/retrieved.jsonl: {"uid", "texts": [[text, cosine], ...]} of every shape with pictures.

    Args:
      shown: shapes whose pictures are embedded (`features.images`).
      about: `features.describe` of the CLIP.
      count: texts of a shape, at most. least: cosine.

    Raises:
      ValueError: the bank does not fit the features, or FAISS is not installed.
    """
    own = _own(folder, every)
    settings = {
        "bank": bank.describe(),
        "k": count,
        "min_similarity": least,
        "clip": dict(about),
        "rules": rules.VERSION,
    }
    with work.locked(folder, "retrieve"):
        work.start(folder, "retrieve", settings)
        keys = {key_of(item, settings, own): item for item in shown}
        index = index_of(bank, int(about["width"]))
        with work.Journal(folder / FILE) as journal:
            todo = {key: item for key, item in keys.items() if key not in journal.kept}
            done = len(keys) - len(todo)
            with tqdm(total=len(keys), initial=done, unit="shape", desc="retrieve") as bar:
                for key, near in _nearest(folder, todo, about, bank, index, SPARE * count + 16):
                    uid = todo[key].shape.uid
                    picked = [[text, round(c, 4)] for text, c in pick(near, own[uid], count, least)]
                    journal.add({"key": key, "uid": uid, "texts": picked})
                    bar.update()
            kept = [journal.kept[key] for key in keys]
        work.write_lines(folder / FILE, kept)
        total = sum(len(line["texts"]) for line in kept)
        without = sum(not line["texts"] for line in kept)
        work.finish(
            folder,
            "retrieve",
            settings,
            {"shapes": len(kept), "texts": total, "without": without, "bank": str(bank.path)},
        )
    print(f"retrieve: {total} texts for {len(kept)} shapes in {folder / FILE} ({done} were there)")
    if without:
        print(
            f"  {without} shapes got none: nothing in the bank is near enough (--min-similarity {least:g}) "
            "and says something new of them"
        )


def _nearest(
    folder: Path, todo: Mapping[str, Drawn], about: Mapping[str, Any], bank: Bank, index: Any, count: int
) -> Iterator[tuple[str, list[tuple[str, float]]]]:
    """(key, (text, cosine) of the `count` nearest pictures of the bank, the nearest first) of each shape."""
    keys = list(todo)
    for first in range(0, len(keys), QUERIES):
        part = keys[first : first + QUERIES]
        queries = np.stack([_query(folder, todo[key], about) for key in part])
        cosines, rows = index.search(queries, min(count, len(bank.texts)))
        for key, near, places in zip(part, cosines, rows, strict=True):
            yield key, [(bank.texts[row], float(c)) for c, row in zip(near, places, strict=True)]


def _own(folder: Path, every: Sequence[Shape]) -> dict[str, list[str]]:
    """{uid: what is said of it besides}."""
    return {uid: [said.text for said, _ in chosen] for uid, chosen in texts.chosen(folder, every).items()}


def key_of(item: Drawn, settings: Mapping[str, Any], own: Mapping[str, list[str]]) -> str:
    """The key of a shape's retrieved texts."""
    return work.digest([features.key_of(item, settings["clip"]), dict(settings), own[item.shape.uid]])


def check(folder: Path, every: Sequence[Shape], shown: Sequence[Drawn]) -> None:
    """Returns if the retrieved texts, where there are any, fit the pictures and texts that there are.

    Raises:
      ValueError: they are not; says what to do. FileNotFoundError: retrieval was interrupted.
    """
    if record := work.completed(folder, "retrieve"):
        own, there = _own(folder, every), {line["key"] for line in work.read_lines(folder / FILE)}
        keys = {item.shape.uid: key_of(item, record["settings"], own) for item in shown}
        work.check_current("retrieve", keys, there)


def _query(folder: Path, item: Drawn, about: Mapping[str, Any]) -> np.ndarray:
    rows = features.read_images(features.place_of(folder, item), features.key_of(item, about))
    assert rows is not None, "retrieve is called after features.images"
    mean = rows.astype(np.float32).mean(0)
    return mean / np.sqrt(np.square(mean).sum() + 1e-12)


def read(folder: Path) -> dict[str, list[str]]:
    """{uid: retrieved texts}; {} where the stage has not run.

    Raises:
      FileNotFoundError: it was interrupted.
    """
    if work.completed(folder, "retrieve") is None:
        return {}
    return {line["uid"]: [text for text, _ in line["texts"]] for line in work.read_lines(folder / FILE)}
