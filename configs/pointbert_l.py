"""PointBERT-L (scaling 4, 32 M parameters): the released OpenShape model.

    python -m openshape_jax.main --config=configs/pointbert_l.py --workdir=runs/pointbert_l

Needs the ensembled shape data (openshape data build openshape_ensemble) and an accelerator.
:smoke runs the same job in about a minute on synthetic shapes on a laptop.
"""

from openshape_jax import config
from openshape_jax.models import pointbert


def get_config(variant: str = "") -> config.Config:
    """PointBERT scaling 4 with the recipe of the paper, in bfloat16."""
    c = config.Config(model=pointbert.size(4))
    c.model.dtype = "bfloat16"
    c.data.device_shuffle = True
    c.optim.learning_rate = 5e-4
    c.steps, c.batch_size = 400_000, 200
    return config.variant(c, variant)
