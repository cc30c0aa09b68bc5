"""What a work folder holds in the end: the content of the data set that is built from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from openshape_jax.making import captions, features, pictures, retrieve, shapes, texts, work
from openshape_jax.making.features import Wanted
from openshape_jax.making.pictures import Drawn
from openshape_jax.making.shapes import Shape, Source

STAGES = ("render", "caption", "filter", "retrieve", "embed")


class Ready(NamedTuple):
    """All that was made for the shapes that have pictures."""

    source: Source
    shown: list[Drawn]
    texts: dict[str, tuple[tuple[str, str, bool], ...]]  # uid -> (text, source, whether it is a target)
    about: Mapping[str, Any]  # the CLIP: `features.describe`
    digest: str  # changes with anything that goes into the data set


def texts_of(folder: Path, every: Sequence[Shape], shown: Sequence[Drawn]) -> dict[str, Any]:
    """{uid: ((text, source, whether it is a target), ...)}: own words, captions, then retrieved texts.

    Raises:
      FileNotFoundError, ValueError: a stage was interrupted or is out of date; says which to run.
    """
    captions.check(folder, shown)
    retrieve.check(folder, every, shown)
    chosen, found = texts.chosen(folder, every), retrieve.read(folder)
    return {
        uid: (
            *((said.text, said.source, is_target) for said, is_target in chosen[uid]),
            *((text, "retrieval", True) for text in found.get(uid, [])),
        )
        for uid in (item.shape.uid for item in shown)
    }


def wanted(made: Mapping[str, Sequence[tuple[str, str, bool]]], every: Sequence[Shape]) -> list[Wanted]:
    """The distinct texts to embed, sorted: all targets, and the classes."""
    found = {
        features.wants(text, source)
        for said in made.values()
        for text, source, is_target in said
        if is_target
    }
    found |= {features.wants(shape.label, "class") for shape in every if shape.label}
    return sorted(found)


def digest_of(shown: Sequence[Drawn], made: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """A digest of all that goes into the data set."""
    rows = [[i.shape.uid, i.shape.split, i.shape.stamp, i.shape.label, i.shape.meta, i.key] for i in shown]
    return work.digest([rows, made, dict(about)])


def clip_of(folder: Path) -> dict[str, Any]:
    """The CLIP whose features the folder holds.

    Raises:
      FileNotFoundError: `openshape targets embed` has not run to its end.
    """
    record = work.read_json(work.need(folder.expanduser() / "embed.json", "embed"))
    if not record["complete"]:
        raise FileNotFoundError(f"{folder}: embed was interrupted: run `openshape targets embed` to its end.")
    return record["settings"]["clip"]


def read(folder: Path) -> Ready:
    """The content.

    Raises:
      FileNotFoundError, ValueError: a stage is missing, interrupted or out of date; says which to run.
    """
    about = clip_of(folder)
    source = shapes.open_source(folder, None)
    every = shapes.read(source)
    shown = pictures.drawn(folder, every)
    made = texts_of(folder, every, shown)
    return Ready(source, shown, made, about, digest_of(shown, made, about))
