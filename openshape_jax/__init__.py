"""OpenShape in JAX: 3D shape embeddings in the space of CLIP.

import openshape_jax
model = openshape_jax.load("runs/quickstart")
model.classify(points, ["chair", "table", "lamp"])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from openshape_jax.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from openshape_jax.api import Model
    from openshape_jax.clip import Clip

__all__ = ["__version__", "load", "load_clip"]


def load(path: str | Path, **options: Any) -> Model:
    """The encoder of a training run of ours, a PyTorch or safetensors file, or a Hugging Face folder.

    Only the encoder's parameters are read, neither optimizer state nor data sets.

    Args:
      path: a run directory, its checkpoints folder or one checkpoint; a .pt or .safetensors file or a
        folder of such; or a repository of Hugging Face ("OpenShape/openshape-pointbert-vitg14-rgb").
      options: up, patches, radius, nsample, embed_dim, ignore of foreign checkpoints that do not tell
        them, see `openshape_jax.convert.load.read`.

    Raises:
      CheckpointError: there is no checkpoint, or none can be read.
      ConversionError (a ValueError): a foreign checkpoint that cannot be used; says why.
    """
    from openshape_jax.api import load as load_model  # imports jax: kept out of `import openshape_jax`

    return load_model(path, **options)


def load_clip(name: str | Path, **options: Any) -> Clip:
    """The text and image encoders of a CLIP: "openai-b32", a folder, or a repository of Hugging Face.

    Args:
      name: a key of `openshape_jax.models.clip.CLIPS`, or where the weights lie.
      options: config, dtype, batch_size, mesh; see `openshape_jax.clip.load`.

    Raises:
      ConversionError (a ValueError): not found, no network, or tensors that do not fit; says what to do.
    """
    from openshape_jax.clip import load as load_model

    return load_model(name, **options)
