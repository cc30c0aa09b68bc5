"""PointBERT-XL (scaling 5, 72 M parameters) with the strongest known recipe, at the scale of a pod.

    python -m openshape_jax.main --config=configs/pointbert_xl.py --workdir=runs/pointbert_xl

Needs the ensembled shape data (openshape data build openshape_ensemble) and accelerators: 2,048 shapes of
bfloat16 fit 16 chips of v5e or one 80 GB GPU with model.microbatches=4. No run of it at full length has been
made here yet; the steps of MixCon3D's recipe that it follows were worth +3.3 points of LVIS top-1 to its
authors (46.5 to 49.8). :smoke runs the same job in about a minute on synthetic shapes on a laptop.
"""

from openshape_jax import config
from openshape_jax.models import pointbert


def get_config(variant: str = "") -> config.Config:
    """PointBERT scaling 5 with MixCon3D's recipe, several targets a shape (HOLA) and stochastic depth."""
    # 200 visits to each of 876k shapes
    c = config.Config(model=pointbert.size(5), steps=85_000, batch_size=2048)
    c.model.dtype, c.model.drop_path = "bfloat16", 0.1
    c.data.device_shuffle, c.data.workers = True, 8
    c.data.texts, c.data.images = 2, 2
    c.loss.decoupled, c.loss.class_aware = True, True
    c.loss.separate_scales, c.loss.max_logit_scale = True, 100.0
    c.optim.learning_rate, c.optim.weight_decay, c.optim.b2 = 1e-3, 0.05, 0.98
    c.optim.schedule, c.optim.warmup_steps = "cosine", 4_000
    c.optim.clip_norm, c.optim.ema = 1.0, 0.9995
    c.checkpoint_every, c.log_every = 2_000, 50
    return config.variant(c, variant)
