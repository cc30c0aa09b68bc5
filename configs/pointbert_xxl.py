"""PointBERT-XXL (scaling 6, 171 M parameters) with the recipe of pointbert_xl.py.

    python -m openshape_jax.main --config=configs/pointbert_xxl.py --workdir=runs/pointbert_xxl

Its parameters and optimizer state are split over the devices of a host (fsdp). Needs the ensembled shape data
and a pod; nobody has trained it yet.
:smoke runs the same job in about a minute on synthetic shapes on a laptop.
"""

import dataclasses
from pathlib import Path

from openshape_jax import config
from openshape_jax.models import pointbert


def get_config(variant: str = "") -> config.Config:
    """The XL recipe around PointBERT scaling 6."""
    c = config.load(str(Path(__file__).with_name("pointbert_xl.py")))
    wanted = {k: getattr(c.model, k) for k in ("dtype", "drop_path")}
    c.model = dataclasses.replace(pointbert.size(6), remat=True, **wanted)
    c.optim.learning_rate = 5e-4
    return config.variant(c, variant)
