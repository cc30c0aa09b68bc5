"""CLIP with its inputs: strings and pictures to unit vectors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from openshape_jax import runtime, sharding
from openshape_jax.clip_inputs import Tokenizer, square
from openshape_jax.convert import clip as names
from openshape_jax.convert import clip_files, files
from openshape_jax.convert.error import ConversionError
from openshape_jax.models import clip as model
from openshape_jax.models.clip import ClipConfig

BATCH, CPU_BATCH = 64, 8  # texts or pictures encoded at once
# Texts are cut behind the longest of a batch, to one of these lengths or the model's: at most three programs,
# and short prompts take a fifth of the work. What stands behind a text's end changes nothing.
LENGTHS = (16, 32)


def load(
    name: str | Path,
    *,
    config: str | ClipConfig | None = None,
    dtype: str = "float32",
    batch_size: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Clip:
    """A CLIP from the files of transformers or OpenCLIP (safetensors, whole or in parts, or PyTorch's).

    Args:
      name: a key of CLIPS ("openclip-bigg14"), an embedding space ("CLIP ViT-B/32"), a repository
        "owner/name" of Hugging Face (used from its cache, else downloaded), a folder or a file.
      config: what it is, where no config file says it: a key of CLIPS or a ClipConfig.
      dtype: of the products: "float32" (exact), "bfloat16" or "float16" (half the memory).
      batch_size: texts or pictures encoded at once; fewer are filled up, so that one program serves all.
        None: 8 on CPUs, else 64, or the next multiple of the mesh's devices.
      mesh: batches are split over its devices, and parameters over its axis "fsdp"; None: one device.

    Raises:
      ConversionError (a ValueError): an unknown name, no network, no config, or tensors that do not fit:
        every missing, unexpected or misshapen one is listed.
    """
    known = config if isinstance(config, ClipConfig) or config is None else model.find(config)
    if config is not None and known is None:
        raise ConversionError(f"config is {config!r}; known: {', '.join(model.CLIPS)}.")
    source = clip_files.locate(name)
    tensors = files.open_tensors(source.weights)
    where = source.repo or str(source.weights)
    chosen = known or clip_files.describe(source, names.find_layout(tensors, where))
    chosen = dataclasses.replace(chosen, dtype=dtype)
    params = names.from_torch(tensors, chosen, where)
    return Clip(chosen, params, lambda: clip_files.tokenizer_folder(source), batch_size, mesh)


class Clip:
    """A CLIP's two encoders.

    Attributes:
      config: its architecture; `config.name` is the embedding space.
      logit_scale: the learnt factor on cosines.
    """

    def __init__(
        self,
        config: ClipConfig,
        params: dict[str, Any],
        tokenizer_folder: Callable[[], Path],
        batch_size: int | None = None,
        mesh: jax.sharding.Mesh | None = None,
    ):
        if batch_size is None:
            devices = 1 if mesh is None else mesh.size
            batch_size = CPU_BATCH if jax.default_backend() == "cpu" else BATCH
            batch_size = -(-batch_size // devices) * devices
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1.")
        if mesh is not None:
            sharding.check_batch_size(batch_size, mesh)
        self.config, self.batch_size = config, batch_size
        self.logit_scale = float(np.exp(np.asarray(params["logit_scale"], np.float32)))
        self._mesh = mesh
        self._params = jax.device_put(params, None if mesh is None else sharding.of_state(params, mesh))
        self._find_tokenizer, self._tokenizer = tokenizer_folder, None
        jit = runtime.jit_of_model(config.dtype, mesh)
        self._text = jit(lambda params, ids: model.encode_text(config, params, ids))
        self._image = jit(lambda params, pixels: model.encode_image(config, params, pixels))

    def tokenize(self, texts: Sequence[str]) -> np.ndarray:
        """(n, T) int32 token ids; longer texts are cut off.

        Raises:
          ConversionError: the tokenizer's files are not there. ValueError: not a sequence of strings.
        """
        if isinstance(texts, str) or not all(isinstance(t, str) for t in texts):
            raise ValueError(f"texts is {str(texts)[:80]!r}; give a list of strings.")
        if self._tokenizer is None:
            self._tokenizer = Tokenizer(self._find_tokenizer(), self.config)
        return self._tokenizer(texts)

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """(n, D) float32 unit vectors of texts. Raises as `tokenize`."""
        ids = list(self.tokenize(texts))
        return self._encode(lambda rows: self._run(self._text, self._trimmed(rows)), ids, np.asarray)

    def encode_images(self, images: Iterable[Any]) -> np.ndarray:
        """(n, D) float32 unit vectors of pictures.

        Args:
          images: of Pillow, or arrays (H, W, 3) of uint8 or of float in [0, 1], of any sizes. The shorter
            side is resized to the model's, and the middle cut out.

        Raises:
          ValueError: an array that is no picture.
        """
        size, resample = self.config.image_size, self.config.resample
        return self._encode(
            lambda rows: self._run(self._image, rows), images, lambda image: square(image, size, resample)
        )

    def prompt_average(self, names: Sequence[str], templates: Sequence[str]) -> np.ndarray:
        """(n, D) float32 unit vectors of names: the normalised mean over the templates' unit vectors.

        Args:
          templates: with {} for the name, e.g. `openshape_jax.evals.prompts.ULIP`.

        Raises:
          ValueError: no template, or one without {}.
        """
        bad = [t for t in templates if "{}" not in t]
        if isinstance(templates, str) or bad or not templates:
            raise ValueError(
                f"templates is {bad or templates!r}; give a list of texts with {{}} for the name."
            )
        if isinstance(names, str):
            raise ValueError(f"names is {names!r}; give a list of strings.")
        texts = [t.replace("{}", name) for name in names for t in templates]
        mean = self.encode_text(texts).reshape(len(names), len(templates), self.config.embed_dim).mean(1)
        return mean / np.sqrt(np.square(mean).sum(-1, keepdims=True) + 1e-12)

    def _trimmed(self, ids: np.ndarray) -> np.ndarray:
        """(n, T') ids, T' the least of LENGTHS and the model's that holds every text."""
        longest = int((ids == self.config.eos_id).argmax(1).max()) + 1
        return ids[:, : next((n for n in LENGTHS if n >= longest), ids.shape[1])]

    def _run(self, program: Callable[..., jax.Array], rows: np.ndarray) -> jax.Array:
        placed = rows if self._mesh is None else jax.device_put(rows, sharding.by_row(self._mesh))
        # TPUs would multiply float32 as bfloat16, and GPUs as TF32.
        with jax.default_matmul_precision("highest" if self.config.dtype == "float32" else "default"):
            return program(self._params, placed)

    def _encode(
        self,
        encode: Callable[[np.ndarray], jax.Array],
        inputs: Iterable[Any],
        prepare: Callable[[Any], np.ndarray],
    ) -> np.ndarray:
        """(n, D) of inputs, prepared and encoded in batches of one size."""
        out: list[tuple[jax.Array, int]] = []
        batch: list[np.ndarray] = []

        def flush() -> None:
            rows = np.stack([*batch, *[batch[-1]] * (self.batch_size - len(batch))])
            out.append((encode(rows), len(batch)))
            batch.clear()

        for item in inputs:
            batch.append(prepare(item))
            if len(batch) == self.batch_size:
                flush()
        if batch:
            flush()
        parts = [np.asarray(rows)[:count] for rows, count in out]
        return np.concatenate(parts) if parts else np.zeros((0, self.config.embed_dim), np.float32)
