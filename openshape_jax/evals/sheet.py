"""Contact sheets: pictures of records with everything that is said of them below."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from openshape_jax import render
from openshape_jax.data import schema

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

PAGE, CARD, LINE = "#eef2f7", "#ffffff", "#d5dde8"
INK, SOFT, ACCENT = "#0f172a", "#64748b", "#1d4ed8"
PICTURE = 288  # pixels of a side
PAD, GAP, EDGE = 18, 20, 36  # inside a card, between cards, around the page
WIDTH = PICTURE + 2 * PAD
TEXTS = 14  # of a record that are written; a released shape may have dozens
TEXT_LINES = 5  # of one text


class Run(NamedTuple):
    """One line of text."""

    text: str
    size: int
    colour: str
    bold: bool = False
    indent: int = 0
    dot: str = ""  # "full": the text has a feature, "ring": it has none; before its first line
    lead: str = ""  # a beginning in another colour
    space: int = 0  # above

    @property
    def height(self) -> int:
        """Pixels, the space above included."""
        return round(1.36 * self.size) + self.space


def contact_sheet(records: Sequence[dict[str, Any]], title: str, about: str, columns: int = 4) -> Image.Image:
    """A picture of records in rows of cards: their points drawn, then label, uid and texts.

    A full dot marks a text with a feature, a ring one of words only. DejaVu Sans has no Chinese, Japanese or
    Korean letters; they show as boxes.

    Args:
      records: as `schema.decode` gives them, at least one.

    Raises:
      ValueError: no record.
    """
    from PIL import Image, ImageDraw

    if not records:
        raise ValueError("there is no record to show.")
    columns = min(columns, len(records))
    rows = [list(records[i : i + columns]) for i in range(0, len(records), columns)]
    runs = [[_card(record) for record in row] for row in rows]
    heights = [max(3 * PAD + PICTURE + sum(run.height for run in card) for card in row) for row in runs]
    width = 2 * EDGE + columns * WIDTH + (columns - 1) * GAP
    head = _heading(title, about, width - 2 * EDGE)
    top = EDGE + sum(run.height for run in head) + GAP
    sheet = Image.new("RGB", (width, top + sum(heights) + GAP * (len(rows) - 1) + EDGE), PAGE)
    draw = ImageDraw.Draw(sheet)
    _write(draw, EDGE, EDGE, head)
    y = top
    for row, cards, height in zip(rows, runs, heights, strict=True):
        for i, (record, card) in enumerate(zip(row, cards, strict=True)):
            x = EDGE + i * (WIDTH + GAP)
            draw.rounded_rectangle((x, y, x + WIDTH - 1, y + height - 1), 12, CARD, LINE)
            xyz = schema.dequantize_xyz(record["xyz"])
            picture = render.picture(xyz, record["rgb"] / 255, PICTURE)
            sheet.paste(Image.fromarray(picture), (x + PAD, y + PAD))
            _write(draw, x + PAD, y + 2 * PAD + PICTURE, card)
        y += height + GAP
    return sheet


def _heading(title: str, about: str, width: int) -> list[Run]:
    lines = [Run(line, 28, INK, bold=True) for line in wrap(title, font(28, True), width)]
    about = f"{about}; ● text with a feature, ○ words only"
    return lines + [Run(line, 15, SOFT, space=4) for line in wrap(about, font(15), width)]


def _card(record: dict[str, Any]) -> list[Run]:
    """The lines below a record's picture."""
    width = WIDTH - 2 * PAD
    label = record["label"] or "no label"
    runs = [
        Run(line, 18, INK if record["label"] else SOFT, bold=True)
        for line in wrap(label, font(18, True), width, 3)
    ]
    runs += [
        Run(line, 12, SOFT, space=2 * (i == 0))
        for i, line in enumerate(wrap(record["uid"], font(12), width, 3))
    ]
    texts = record["texts"]
    for text in texts[:TEXTS]:
        has = text.feature is not None or text.prompt_feature is not None
        lead = f"{text.source}: "
        lines = wrap(lead + " ".join(text.text.split()), font(14), width - 16, TEXT_LINES)
        for i, line in enumerate(lines):
            first = lead if i == 0 and line.startswith(lead) else ""
            dot = ("full" if has else "ring") if i == 0 else ""
            runs.append(Run(line[len(first) :], 14, INK, False, 16, dot, first, 7 * (i == 0)))
    rest = []
    if len(texts) > TEXTS:
        rest.append(f"{len(texts) - TEXTS} more texts")
    if len(record["image_features"]):
        rest.append(f"{len(record['image_features'])} image features")
    if not texts:
        rest.insert(0, "no text")
    rest.append(f"{len(record['xyz']):,} points")
    return runs + [Run(line, 12, SOFT, space=9) for line in wrap(", ".join(rest), font(12), width)]


def _write(draw: ImageDraw.ImageDraw, x: int, y: int, runs: Sequence[Run]) -> None:
    for run in runs:
        y += run.space
        face = font(run.size, run.bold)
        middle = y + 0.66 * run.size
        if run.dot:
            box = (x + 1, middle - 4, x + 9, middle + 4)
            draw.ellipse(box, ACCENT if run.dot == "full" else None, ACCENT, 1)
        left = x + run.indent
        if run.lead:
            draw.text((left, y), run.lead, SOFT, face)
            left += face.getlength(run.lead)
        draw.text((left, y), run.text, run.colour, face)
        y += run.height - run.space


@functools.cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib."""
    import matplotlib
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size)


def wrap(text: str, face: ImageFont.FreeTypeFont, width: float, most: int = 100) -> list[str]:
    """The lines of a text, none wider than `width`: broken between words, too long words inside.

    A text of more than `most` lines ends in "…".
    """
    lines, line = [], ""
    for word in text.split(" "):
        joined = f"{line} {word}" if line else word
        if face.getlength(joined) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        line = word
        while face.getlength(line) > width:
            fits = next(n for n in range(len(line) - 1, 0, -1) if n == 1 or face.getlength(line[:n]) <= width)
            cut = max(line.rfind(mark, 0, fits) for mark in "/_-#") + 1  # of a path, between its parts
            cut = cut if cut > fits / 2 else fits
            lines.append(line[:cut])
            line = line[cut:]
    lines.append(line)
    if len(lines) <= most:
        return lines
    last = lines[most - 1]
    while last and face.getlength(last + "…") > width:
        last = last[:-1]
    return [*lines[: most - 1], last + "…"]
