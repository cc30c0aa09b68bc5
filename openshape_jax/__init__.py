"""OpenShape in JAX: 3D shape embeddings in the space of CLIP.

import openshape_jax
model = openshape_jax.load("runs/quickstart")
model.classify(points, ["chair", "table", "lamp"])
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from openshape_jax.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from openshape_jax.api import Model

__all__ = ["__version__", "load"]


def load(path: str | Path) -> Model:
    """The trained encoder of a run directory, its checkpoints folder or one checkpoint.

    Only the encoder's parameters are read, neither optimizer state nor data sets.

    Raises:
      CheckpointError: there is no checkpoint, or none can be read.
    """
    from openshape_jax.api import load as load_model  # imports jax: kept out of `import openshape_jax`

    return load_model(path)
