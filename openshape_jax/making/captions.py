"""The stage `caption`: what a captioner says of each shape's pictures.

A captioner is a function of a uid and some pictures. Three are made here: an OpenAI-compatible vision
endpoint, BLIP or BLIP-2 by transformers, and a file of captions.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from tqdm import tqdm

from openshape_jax.making import pictures, work
from openshape_jax.making.endpoint import Chat, in_parallel
from openshape_jax.making.pictures import Drawn
from openshape_jax.making.shapes import Shape

FILE = "captions.jsonl"
BLIP_TOKENS = 40  # of a caption, at most
LONGEST = 400  # characters of a caption; what is longer was no caption


class Captions(NamedTuple):
    """What a captioner says of one shape."""

    texts: list[str]
    prompt_tokens: int = 0
    completion_tokens: int = 0


# (uid, pictures on white) -> what it says; ValueError: it has nothing usable to say of this shape
Captioner = Callable[[str, Sequence[Image.Image]], Captions]


def by_endpoint(chat: Chat, prompt: str) -> Captioner:
    """A captioner that shows all pictures of a shape to a vision model at once, for one caption."""

    def caption(uid: str, images: Sequence[Image.Image]) -> Captions:
        del uid
        content: list[dict[str, Any]] = [{"type": "text", "text": prompt}]
        content += [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in images]
        answer = chat.ask([{"role": "user", "content": content}], temperature=0, max_tokens=100)
        return Captions([answer.text], answer.prompt_tokens, answer.completion_tokens)

    return caption


def data_url(image: Image.Image) -> str:
    """A picture as a data: URL (JPEG)."""
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def by_blip(name: str) -> Captioner:
    """A captioner by a BLIP or BLIP-2 of transformers, which captions each picture by itself.

    Args:
      name: a folder, or a repository of Hugging Face ("Salesforce/blip-image-captioning-base").

    Raises:
      ValueError: PyTorch is not installed, or there is no such model here; says what to do.
    """
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise ValueError(
            "transformers runs BLIP with PyTorch, which is not installed here and belongs to no extra of "
            "ours: pip install torch --index-url https://download.pytorch.org/whl/cpu (or with CUDA), or "
            "caption by --endpoint URL, or by --captions-from FILE."
        )
    from transformers import AutoModelForImageTextToText, AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(name)
        model = AutoModelForImageTextToText.from_pretrained(name).eval()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--blip {name}: it is no BLIP folder here and could not be had ({str(error)[:300]}). Run 'hf "
            f"download {name} --local-dir DIR' where there is network, copy DIR here and give its path."
        ) from error

    def caption(uid: str, images: Sequence[Image.Image]) -> Captions:
        del uid
        inputs = processor(images=list(images), return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=BLIP_TOKENS, do_sample=False)
        return Captions(list(processor.batch_decode(ids, skip_special_tokens=True)))

    return caption


def by_file(path: Path, uids: Sequence[str], where: str) -> Captioner:
    """A captioner that looks captions up in a CSV or JSON file, as mesh_folder takes it (file, caption, ...).

    Args:
      where: the folder or data set of the shapes, for messages.

    Raises:
      ValueError: another form, an unknown column or shape; lists them with their lines.
    """
    from tfds_builders.mesh_folder import captions

    said = captions.read(path, uids, Path(where))

    def caption(uid: str, images: Sequence[Image.Image]) -> Captions:
        del images
        return Captions(list(said[uid].captions) if uid in said else [])

    return caption


def caption(
    folder: Path,
    every: Sequence[Shape],
    make: Callable[[], Captioner],
    settings: dict[str, Any],
    views: Sequence[int],
    parallel: int = 1,
    again_empty: bool = False,
) -> None:
    """Writes FOLDER/captions.jsonl: {"uid", "texts", ...} of every shape that has pictures.

    Args:
      make: the captioner; called where anything is to be done.
      settings: what decides what it says: model, prompt.
      views: numbers of the pictures that it is shown.
      parallel: shapes that are captioned at once, by threads.
      again_empty: caption again what got no usable caption.

    Raises:
      FileNotFoundError: render has not run. EndpointError: the endpoint fails for good; what is done is kept.
    """
    with work.locked(folder, "caption"):
        shown = pictures.drawn(folder, every)
        made_by = {**settings, "views": list(views)}
        keys = {key_of(item, made_by): item for item in shown}
        work.start(folder, "caption", made_by)
        with work.Journal(folder / FILE) as journal:
            todo = {
                key: item
                for key, item in keys.items()
                if key not in journal.kept or (again_empty and not journal.kept[key]["texts"])
            }
            done = len(keys) - len(todo)
            if todo:
                captioner = make()
                with tqdm(total=len(keys), initial=done, unit="shape", desc="caption") as bar:
                    for (key, item), found in in_parallel(
                        todo.items(), lambda entry: _of(captioner, entry[1], views), parallel
                    ):
                        journal.add({"key": key, "uid": item.shape.uid, **found})
                        bar.update()
            kept = [journal.kept[key] for key in keys]
        work.write_lines(folder / FILE, kept)
        empty = [line["uid"] for line in kept if not line["texts"]]
        counts = {"shapes": len(kept), "captions": sum(len(line["texts"]) for line in kept)}
        tokens = {k: sum(line.get(k, 0) for line in kept) for k in ("prompt_tokens", "completion_tokens")}
        work.finish(folder, "caption", made_by, {**counts, "without": len(empty), **tokens})
    print(
        f"caption: {counts['captions']} captions of {counts['shapes']} shapes in {folder / FILE} ({done} "
        "were there)"
    )
    if empty:
        why = ""
        if made_by.get("captioner") != "file":
            why = f": what was said was empty or longer than {LONGEST} characters; --again-empty asks again"
        print(f"  {len(empty)} shapes have none, first {empty[0]}{why}")


def key_of(item: Drawn, made_by: dict[str, Any]) -> str:
    """The key of a shape's captions."""
    return work.digest([item.key, made_by])


def check(folder: Path, shown: Sequence[Drawn]) -> None:
    """Returns if the captions, where there are any, are of the pictures that there are.

    Raises:
      ValueError: they are not; says what to do. FileNotFoundError: captioning was interrupted.
    """
    if record := work.completed(folder, "caption"):
        there = {line["key"] for line in work.read_lines(folder / FILE)}
        work.check_current("caption", {i.shape.uid: key_of(i, record["settings"]) for i in shown}, there)


def _of(captioner: Captioner, item: Drawn, views: Sequence[int]) -> dict[str, Any]:
    found = captioner(item.shape.uid, item.images(views))
    texts = [" ".join(text.split()).strip("\"'` ") for text in found.texts]
    texts = list(dict.fromkeys(text for text in texts if 0 < len(text) <= LONGEST))
    tokens = {"prompt_tokens": found.prompt_tokens, "completion_tokens": found.completion_tokens}
    return {"texts": texts, **{k: v for k, v in tokens.items() if v}}
