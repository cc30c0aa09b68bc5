"""The stage `render`: twelve pictures of every shape, and sheets of them to look at."""

from __future__ import annotations

import os
import shutil
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from openshape_jax.data import files, workers
from openshape_jax.geometry_io import RawPoints
from openshape_jax.making import cameras, clouds, shapes, tracing, work
from openshape_jax.making.shapes import Shape, Source

SIZE = 512  # pixels of a side
LONGEST_NAME = 120  # of a folder; longer uids are cut and told apart by a digest
KEY = "made.json"  # in a shape's folder: what its pictures were made of
BACKGROUND = (255, 255, 255)  # behind the pictures for captions and features; OpenShape does not say its own
THUMB, EDGE, HEAD, ROWS = 128, 8, 18, 20  # of a sheet: pixels, and shapes on a page


class Job(NamedTuple):
    """One shape to draw: all that a worker needs."""

    source: Source
    shape: Shape
    folder: Path
    key: str
    size: int


def folder_name(uid: str) -> str:
    """A file name for any uid, readable where that goes."""
    name = urllib.parse.quote(uid, safe=" +@=,()[]")
    if len(name) > LONGEST_NAME or name.startswith("."):
        name = f"{name.lstrip('.')[: LONGEST_NAME - 33]}~{work.digest(uid)}"
    return name


def settings(size: int = SIZE) -> dict[str, Any]:
    """What decides how a picture looks."""
    return {
        "views": [list(camera) for camera in cameras.CAMERAS],
        "size": size,
        "field_degrees": cameras.FIELD,
        "margin": cameras.MARGIN,
        "renderer": "embree, 2 x 2 rays a pixel; points as discs",
        "form": 1,  # of the code: another number makes all pictures again
    }


def render(folder: Path, source: Source, every: Sequence[Shape], size: int = SIZE, jobs: int = 0) -> None:
    """Draws what is not drawn yet into FOLDER/render/UID/VIEW.png; prints what was done.

    Shapes that cannot be drawn are listed in render/rejects.jsonl.

    Args:
      size: pixels of a side.
      jobs: processes; 0: one for each core.

    Raises:
      ValueError: no shape could be drawn, or the renderer is not installed. OSError: the disk is full.
    """
    out, made_by = folder / "render", settings(size)
    with work.locked(folder, "render"):
        work.start(folder, "render", made_by)
        out.mkdir(exist_ok=True)
        for left in out.glob(f"*{files.TEMPORARY}"):
            shutil.rmtree(left, ignore_errors=True)
        todo, done = [], 0
        for shape in every:
            job = Job(source, shape, out / folder_name(shape.uid), key_of(shape, made_by), size)
            if _key(job.folder) == job.key:
                done += 1
            else:
                todo.append(job)
        if todo and source.folder:
            tracing.available()
        rejects = []
        with tqdm(total=len(every), initial=done, unit="shape", desc="render") as bar:
            for job, error in in_processes(todo, jobs or os.cpu_count() or 1):
                bar.update()
                if error:
                    rejects.append({"uid": job.shape.uid, "error": error})
                    bar.set_postfix(rejected=len(rejects))
        rejects.sort(key=lambda reject: reject["uid"])
        work.write_lines(out / "rejects.jsonl", rejects)
        _remove_others(out, every)
        usable = len(every) - len(rejects)
        if todo or not list(out.glob("sheet-*.png")):
            _sheets(out, [shape for shape in every if _key(out / folder_name(shape.uid))])
        work.finish(folder, "render", made_by, {"shapes": usable, "rejected": len(rejects)})
    print(f"render: {usable} shapes, {len(cameras.CAMERAS)} pictures each, in {out} ({done} were there)")
    for reject in rejects[:5]:
        print(f"  left out: {reject['uid']}: {reject['error']}")
    if rejects:
        print(f"  {len(rejects)} left out, listed in {out / 'rejects.jsonl'}")
    if not usable:
        raise ValueError(f"none of {len(every)} shapes could be drawn; see {out / 'rejects.jsonl'}.")


def key_of(shape: Shape, made_by: dict[str, Any]) -> str:
    """The key of a shape's pictures."""
    return work.digest([shape.uid, shape.stamp, made_by])


def _key(folder: Path) -> str:
    found = work.read_json(folder / KEY)
    return found["key"] if found else ""


def in_processes(
    todo: Sequence[Job], jobs: int, make: Callable[[Job], str] | None = None
) -> Iterator[tuple[Job, str]]:
    """(job, "" or why it could not be done) as they are done, by `jobs` processes.

    Args:
      make: draws one; None: `draw`.
    """
    make = make or draw
    if jobs <= 1 or len(todo) < 2:
        for job in todo:
            yield job, make(job)
        return
    left = {job.shape.uid: job for job in todo}
    try:
        for job, error in workers.in_processes(make, todo, jobs):
            del left[job.shape.uid]
            yield job, error
    except BrokenProcessPool:
        # One took its process with it, most likely for memory: alone, each shows whether it is the one.
        for job in left.values():
            try:
                yield from workers.in_processes(make, [job], 1)
            except BrokenProcessPool:
                yield job, "the process that drew it died; is it too large for this machine's memory?"


def draw(job: Job) -> str:
    """Draws one shape into its folder, all pictures or none; "" or why it cannot be used.

    Raises:
      OSError: the disk is full, or the file cannot be reached for now.
    """
    try:
        found = shapes.load(job.source, job.shape)
        make: Callable[..., list[np.ndarray]]
        make = clouds.pictures if isinstance(found, RawPoints) else tracing.pictures
        drawn = make(found, cameras.CAMERAS, job.size)
    except (ValueError, FileNotFoundError, PermissionError, MemoryError) as error:
        shutil.rmtree(job.folder, ignore_errors=True)
        return str(error)[:500] or type(error).__name__
    unfinished = job.folder.with_name(f"{job.folder.name}{files.TEMPORARY}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    for i, pixels in enumerate(drawn):
        with (unfinished / f"{i:02d}.png").open("wb") as file:
            Image.fromarray(pixels).save(file, "png", compress_level=4)
            file.flush()
            os.fsync(file.fileno())
    work.write_json(unfinished / KEY, {"uid": job.shape.uid, "key": job.key})
    shutil.rmtree(job.folder, ignore_errors=True)
    unfinished.rename(job.folder)
    return ""


def _remove_others(out: Path, every: Sequence[Shape]) -> None:
    """Takes away pictures of shapes that are no more."""
    names = {folder_name(shape.uid) for shape in every}
    for path in out.iterdir():
        if path.is_dir() and path.name not in names and (path / KEY).is_file():
            shutil.rmtree(path)


# ---------------------------------------------------------------- reading them


class Drawn(NamedTuple):
    """A shape with its pictures."""

    shape: Shape
    folder: Path
    key: str

    def paths(self) -> list[Path]:
        """Its pictures, in the order of the cameras."""
        return sorted(self.folder.glob("[0-9][0-9].png"))

    def images(self, views: Sequence[int] = ()) -> list[Image.Image]:
        """Pictures on white, as captioners and CLIP see them; of some views, or of all."""
        paths = self.paths()
        return [on_background(Image.open(paths[i])) for i in (views or range(len(paths)))]


def on_background(image: Image.Image) -> Image.Image:
    """An RGB picture of an RGBA one, on white."""
    canvas = Image.new("RGB", image.size, BACKGROUND)
    canvas.paste(image, mask=image.getchannel("A") if "A" in image.getbands() else None)
    return canvas


def drawn(folder: Path, every: Sequence[Shape]) -> list[Drawn]:
    """The shapes that have pictures, in their order.

    Raises:
      FileNotFoundError: the stage has not run to its end. ValueError: pictures are missing.
    """
    record = work.read_json(work.need(folder / "render.json", "render"))
    if not record["complete"]:
        raise FileNotFoundError(
            f"{folder}: render was interrupted; run `openshape targets render` to its end."
        )
    out, found = folder / "render", []
    rejected = {reject["uid"] for reject in work.read_lines(out / "rejects.jsonl")}
    keys, there = {}, set()
    for shape in every:
        place = out / folder_name(shape.uid)
        key = key_of(shape, record["settings"])
        if _key(place) == key:
            found.append(Drawn(shape, place, key))
            there.add(key)
        if shape.uid not in rejected:
            keys[shape.uid] = key
    work.check_current("render", keys, there)
    return found


# ---------------------------------------------------------------- sheets


def _sheets(out: Path, every: Sequence[Shape]) -> None:
    """Writes pages of small pictures, a shape a row."""
    from PIL import ImageDraw

    for old in out.glob("sheet-*.png"):
        old.unlink()
    for page, first in enumerate(range(0, len(every), ROWS)):
        rows = every[first : first + ROWS]
        width = len(cameras.CAMERAS) * (THUMB + EDGE) + EDGE
        sheet = Image.new("RGB", (width, len(rows) * (THUMB + HEAD + EDGE) + EDGE), "#dfe5ee")
        pen = ImageDraw.Draw(sheet)
        for row, shape in enumerate(rows):
            top = EDGE + row * (THUMB + HEAD + EDGE)
            pen.text((EDGE, top), shape.uid.encode("latin-1", "replace").decode("latin-1")[:160], "#0f172a")
            for i, path in enumerate(sorted((out / folder_name(shape.uid)).glob("[0-9][0-9].png"))):
                image = Image.open(path)
                image.thumbnail((THUMB, THUMB))
                at = (EDGE + i * (THUMB + EDGE), top + HEAD)
                pen.rectangle((*at, at[0] + THUMB - 1, at[1] + THUMB - 1), "#ffffff")
                sheet.paste(image, at, image)
        files.write(out / f"sheet-{page:03d}.png", lambda file, page=sheet: page.save(file, "png"))
