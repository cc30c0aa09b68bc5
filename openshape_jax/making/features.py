"""The features of the stage `embed`: pictures and texts as a CLIP's unit vectors.

| in FOLDER/features | |
|---|---|
| images/UID.npz | (V, D) of a shape's pictures |
| parts/NUMBER.npz | texts, some dozens each: what an interruption costs at most |
| texts.json, original.npy, prompt_avg.npy | all targets in one order; zeros where there is no average |
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from openshape_jax.data import files, targets
from openshape_jax.evals.prompts import ULIP
from openshape_jax.making import pictures, work
from openshape_jax.making.pictures import Drawn

if TYPE_CHECKING:
    from openshape_jax.clip import Clip

PART = 64  # texts of a part: with their prompts 4,160 that are encoded
GROUP = 16  # shapes whose pictures are encoded together, so that batches are full


def describe(clip: Clip) -> dict[str, Any]:
    """What identifies a CLIP: its space, width, type of products, and a digest of its weights."""
    config = clip.config
    return {
        "text_space": config.name,
        "width": config.embed_dim,
        "dtype": config.dtype,
        "weights": files.digest_of_arrays(clip._params),
    }


def place_of(folder: Path, item: Drawn) -> Path:
    """The file of a shape's image features."""
    return folder / "features" / "images" / f"{item.folder.name}.npz"


def key_of(item: Drawn, about: Mapping[str, Any]) -> str:
    """The key of a shape's image features."""
    return work.digest([item.key, dict(about), pictures.BACKGROUND])


def read_images(path: Path, key: str) -> np.ndarray | None:
    """(V, D) float16 features of a shape; None where there are none of these pictures by this CLIP."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return file["features"] if str(file["key"]) == key else None
    except FileNotFoundError:
        return None
    except Exception as error:  # a damaged archive fails in many ways
        raise ValueError(f"{path} is damaged ({error}): delete it, and start the stage again.") from error


def images(folder: Path, shown: Sequence[Drawn], clip: Clip, about: Mapping[str, Any]) -> int:
    """Embeds the pictures that are not embedded yet; the number of shapes that were done before.

    Args:
      about: `describe` of the CLIP.

    Raises:
      FloatingPointError: a feature is NaN or infinite.
    """
    (folder / "features" / "images").mkdir(parents=True, exist_ok=True)
    todo = [item for item in shown if read_images(place_of(folder, item), key_of(item, about)) is None]
    done = len(shown) - len(todo)
    with tqdm(total=len(shown), initial=done, unit="shape", desc="embed images") as bar:
        for first in range(0, len(todo), GROUP):
            group = todo[first : first + GROUP]
            counts = [len(item.paths()) for item in group]
            every = (image for item in group for image in item.images())
            rows = iter(_finite(clip.encode_images(every), group[0].shape.uid))
            for item, count in zip(group, counts, strict=True):
                mine = np.stack([next(rows) for _ in range(count)]).astype(np.float16)
                save = functools.partial(np.savez, key=key_of(item, about), features=mine)
                files.write(place_of(folder, item), save)
                bar.update()
    return done


def _finite(rows: np.ndarray, what: str) -> np.ndarray:
    if not np.isfinite(rows).all():
        raise FloatingPointError(f"a feature from {what!r} on is NaN or infinite: this CLIP is broken.")
    return rows


class Wanted(NamedTuple):
    """A text to embed."""

    text: str
    prompts: bool  # also averaged over the prompt templates


def wants(text: str, source: str) -> Wanted:
    """How a text of a source is embedded: whole sentences of other people's pictures get no templates."""
    return Wanted(text, source not in targets.BARE)


def texts(folder: Path, wanted: Sequence[Wanted], clip: Clip, about: Mapping[str, Any]) -> int:
    """Embeds the texts that are not embedded yet, and writes the table of all; how many were done before.

    Args:
      wanted: distinct.
      about: `describe` of the CLIP.
    """
    parts = folder / "features" / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    made_by = work.digest([dict(about), list(ULIP)])
    kept = dict(_read_parts(parts, made_by))
    todo = [want for want in wanted if want not in kept]
    number = 1 + max((int(path.stem) for path in parts.glob("*.npz")), default=-1)
    with tqdm(total=len(wanted), initial=len(wanted) - len(todo), unit="text", desc="embed texts") as bar:
        for first in range(0, len(todo), PART):
            part = todo[first : first + PART]
            bare = _finite(clip.encode_text([want.text for want in part]), part[0].text)
            average = np.zeros_like(bare)
            rows = [i for i, want in enumerate(part) if want.prompts]
            if rows:
                average[rows] = clip.prompt_average([part[i].text for i in rows], ULIP)
            both = np.stack([bare, _finite(average, part[0].text)], 1).astype(np.float16)
            save = functools.partial(
                np.savez,
                key=made_by,
                texts=np.array([want.text for want in part]),
                prompts=np.array([want.prompts for want in part]),
                features=both,
            )
            files.write(parts / f"{number:06d}.npz", save)
            number += 1
            kept |= dict(zip(part, both, strict=True))
            bar.update(len(part))
    width = int(about["width"])
    table = np.array([kept[want] for want in wanted], np.float16).reshape(-1, 2, width)
    files.write(folder / "features" / "original.npy", lambda file: np.save(file, table[:, 0]))
    files.write(folder / "features" / "prompt_avg.npy", lambda file: np.save(file, table[:, 1]))
    work.write_json(folder / "features" / "texts.json", [list(want) for want in wanted])
    return len(wanted) - len(todo)


def _read_parts(parts: Path, made_by: str) -> Iterator[tuple[Wanted, np.ndarray]]:
    """(text, its (2, D) features) of all parts by this CLIP; parts by another are deleted."""
    for path in sorted(parts.glob("*.npz")):
        with np.load(path, allow_pickle=False) as file:
            if str(file["key"]) == made_by:
                found = zip(file["texts"], file["prompts"], file["features"], strict=True)
                yield from ((Wanted(str(text), bool(prompts)), row) for text, prompts, row in found)
                continue
        path.unlink()


class Table:
    """The text features of a work folder, read where they are needed."""

    def __init__(self, folder: Path):
        place = folder / "features"
        self._row = {Wanted(*entry): i for i, entry in enumerate(work.read_json(place / "texts.json"))}
        self._bare, self._average = (
            np.load(place / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in ("original", "prompt_avg")
        )

    def find(self, want: Wanted) -> tuple[np.ndarray, np.ndarray | None]:
        """((D,) of the bare words, (D,) averaged over prompts or None).

        Raises:
          KeyError: it was not embedded.
        """
        row = self._row[want]
        return np.asarray(self._bare[row]), np.asarray(self._average[row]) if want.prompts else None


def remove_others(folder: Path, shown: Sequence[Drawn]) -> None:
    """Takes away image features of shapes that are no more."""
    names = {place_of(folder, item).name for item in shown}
    for path in (folder / "features" / "images").glob("*"):
        if path.name not in names:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
