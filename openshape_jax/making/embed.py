"""The stage `embed`: features by a CLIP, and the data set that training reads."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openshape_jax.data import build, sources
from openshape_jax.evals.prompts import ULIP
from openshape_jax.making import features, pictures, ready, work
from openshape_jax.making.shapes import Shape

if TYPE_CHECKING:
    from openshape_jax.clip import Clip


def image_pass(
    folder: Path, every: Sequence[Shape], clip: Clip, about: dict[str, Any]
) -> list[pictures.Drawn]:
    """The shapes with pictures, all of them embedded."""
    shown = pictures.drawn(folder, every)
    done = features.images(folder, shown, clip, about)
    features.remove_others(folder, shown)
    print(
        f"embed: image features of {len(shown)} shapes in {folder / 'features' / 'images'} ({done} were "
        "there)"
    )
    return shown


def embed(
    folder: Path,
    every: Sequence[Shape],
    clip: Clip,
    about: dict[str, Any],
    name: str,
    data_dir: str = "",
    jobs: int = 0,
) -> Path:
    """The folder of the data set targets/NAME, built of what the stages left and of the features made here.

    One that was built from this work folder before is replaced where anything has changed.

    Args:
      about: `features.describe` of the CLIP.
      jobs: processes that build; 0: one for each core.

    Raises:
      ValueError: no shape has pictures, or the data set there was built from another work folder.
    """
    settings = {"clip": about, "templates": list(ULIP), "background": list(pictures.BACKGROUND)}
    with work.locked(folder, "embed"):
        work.start(folder, "embed", settings)
        made = ready.texts_of(folder, every, pictures.drawn(folder, every))  # before what takes long
        shown = image_pass(folder, every, clip, about)
        wanted = ready.wanted(made, every)
        done = features.texts(folder, wanted, clip, about)
        targets = sum(is_target for said in made.values() for _, _, is_target in said)
        without = [uid for uid, said in made.items() if not any(is_target for *_, is_target in said)]
        counts = {
            "shapes": len(shown),
            "images": sum(len(item.paths()) for item in shown),
            "texts": targets,
            "distinct_texts": len(wanted),
            "without_text": len(without),
        }
        work.finish(folder, "embed", settings, counts)
    print(f"embed: {targets} texts, {len(wanted)} distinct, in {folder / 'features'} ({done} were there)")
    if without:
        print(f"  {len(without)} shapes have no text, only pictures, first {without[0]}")
    dataset = f"targets/{name}"
    built = _still_right(dataset, data_dir, folder, ready.digest_of(shown, made, about))
    if built is None:
        built = build.build(dataset, data_dir, build.Options(source=str(folder), jobs=jobs))
    else:
        print(f"{dataset}: nothing has changed since {built} was built.")
    print(f"train on it: --config.data.datasets=\"('{dataset}',)\" --config.model.embed_dim={about['width']}")
    return built


def _still_right(dataset: str, data_dir: str, folder: Path, digest: str) -> Path | None:
    """The data set's folder where it was built of just this; deletes what this folder's older content made.

    Raises:
      ValueError: it was built from another folder.
    """
    try:
        built = sources.find(dataset, data_dir)
    except sources.DatasetMissing:
        return None
    metadata = work.read_json(built / "metadata.json") or {}
    if metadata.get("work") != str(folder.resolve()):
        raise ValueError(
            f"{built} was built from {metadata.get('work', 'something else')}, not from {folder}: take "
            "another --name, or delete it."
        )
    if metadata.get("made") == digest:
        return Path(built)
    print(f"{built} was built before something changed: building it again.")
    shutil.rmtree(built)
    return None
