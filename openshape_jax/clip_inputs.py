"""What a CLIP is given: token ids of texts, square images of pictures. Made without PyTorch."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from openshape_jax.convert.clip_files import transformers_library
from openshape_jax.convert.error import ConversionError
from openshape_jax.models.clip import ClipConfig

RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'})


class Tokenizer:
    """Texts to ids, by the byte pairs of a folder with tokenizer.json, or vocab.json and merges.txt."""

    def __init__(self, folder: Path, config: ClipConfig):
        """Raises ConversionError where the vocabulary is not that of `config`."""
        try:
            self._bpe = transformers_library().CLIPTokenizer.from_pretrained(
                str(folder), local_files_only=True
            )
        except Exception as error:  # of the tokenizers library, which raises bare Exceptions
            raise ConversionError(f"the tokenizer in {folder} cannot be read ({error}).") from error
        self.config = config
        self.start, self.end = (self._bpe.convert_tokens_to_ids(f"<|{t}oftext|>") for t in ("start", "end"))
        if len(self._bpe) != config.vocab_size or self.end != config.eos_id:
            raise ConversionError(
                f"the tokenizer in {folder} has {len(self._bpe)} tokens and ends texts with {self.end}, "
                f"{config.name} has {config.vocab_size} and {config.eos_id}: put the tokenizer of that there."
            )

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """(n, T) int32: start, the text, end, then `config.pad_id`; what does not fit is cut off.

        Texts are cleaned as the originals do it where that shows in captions: HTML entities, curly quotes,
        white space, upper case; broken encodings ("Ã©") are left as they are.
        """
        length = self.config.context_length
        ids = np.full((len(texts), length), self.config.pad_id, np.int32)
        if not texts:
            return ids
        cleaned = [html.unescape(html.unescape(t)).translate(_QUOTES).strip() for t in texts]
        encoded = self._bpe(cleaned, add_special_tokens=False, verbose=False)["input_ids"]
        for row, text in zip(ids, encoded, strict=True):
            whole = [self.start, *text[: length - 2], self.end]
            row[: len(whole)] = whole
        return ids


def square(image: Any, size: int, resample: str = "bicubic") -> np.ndarray:
    """(size, size, 3) uint8 of a picture: the shorter side resized to `size`, the middle cut out.

    Rounding is that of torchvision, by which OpenAI's and OpenCLIP's models were trained; the processor of
    transformers cuts one pixel beside it where an odd number is cut off.

    Args:
      image: of Pillow, in any mode (transparency is dropped), or an array (H, W, 3) of uint8 or of float in
        [0, 1].

    Raises:
      ValueError: an array of another shape, type or range.
    """
    picture = image if isinstance(image, Image.Image) else Image.fromarray(_as_bytes(np.asarray(image)))
    picture = picture.convert("RGB")
    width, height = picture.size
    short = min(width, height)
    if short != size:
        scaled = (size * width // short, size * height // short)
        picture = picture.resize(scaled, RESAMPLING[resample])
    left, top = (round((length - size) / 2) for length in picture.size)
    return np.asarray(picture.crop((left, top, left + size, top + size)))


def _as_bytes(array: np.ndarray) -> np.ndarray:
    if array.ndim != 3 or array.shape[-1] != 3 or 0 in array.shape:
        raise ValueError(f"an image has shape {array.shape}; expected (H, W, 3), or an image of Pillow.")
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise ValueError(f"an image has type {array.dtype}; expected uint8, or float in [0, 1].")
    if not (array >= 0).all() or not (array <= 1).all():
        low, high = float(array.min()), float(array.max())
        raise ValueError(f"an image has values from {low:g} to {high:g}; expected float in [0, 1], or uint8.")
    return np.rint(array * 255).astype(np.uint8)
