"""The settings of the paper (arXiv 2305.10764) for its released PointBERT, and its ablations as variants.

    python -m openshape_jax.main --config=configs/paper/pointbert_l.py --workdir=runs/paper_all
    python -m openshape_jax.main --config=configs/paper/pointbert_l.py:no_lvis --workdir=runs/paper_no_lvis

Needs openshape data build openshape_ensemble (and, to be evaluated, objaverse_lvis and modelnet40:
--config.eval.datasets=objaverse_lvis,modelnet40). The authors trained for about 300 A100-hours.

| variant | what differs | authors' top-1, LVIS / ModelNet40 |
|---|---|---|
| (none) | all data | 46.8 / 84.4 |
| no_lvis | without the shapes of Objaverse-LVIS | 39.1 / 85.3 |
| shapenet_only | ShapeNet alone | 10.8 / 70.3 |
| hard_negatives | second stage on mined batches: also --config.data.hard_negatives=FILE (openshape mine) | |
| smoke | a minute on synthetic shapes | |

The authors ran their ablations with another encoder, SparseConv (all data: 42.0 / 83.1; hard negatives: 43.4
/ 83.4): no_text_filter 41.4 / 82.9, no_enrichment (captions, retrieval) 37.0 / 82.9, no_rgb 39.6 / 83.6,
no_text 23.3 / 67.4, no_image 41.0 / 81.0, no_objaverse 13.9 / 75.5.
"""

from openshape_jax import config
from openshape_jax.models import pointbert


def get_config(variant: str = "") -> config.Config:
    """PointBERT scaling 4, AdamW 5e-4 with StepLR, batches of 200 in float32."""
    c = config.Config(model=pointbert.size(4), steps=400_000, batch_size=200)
    c.data.device_shuffle = True
    c.optim.learning_rate, c.optim.weight_decay = 5e-4, 0.01
    c.optim.schedule, c.optim.decay_rate, c.optim.decay_every = "step", 0.967, 10_000
    if variant in ("no_lvis", "shapenet_only"):
        c.data.split = f"train_{variant}"
    elif variant == "hard_negatives":
        c.data.group_size, c.loss.false_negative_margin = 5, 0.1
    elif variant == "no_text_filter":
        c.data.use_text_filter = False
    elif variant == "no_enrichment":
        c.data.text_sources = ("metadata",)
    elif variant == "no_rgb":
        c.augment.gray, c.eval.gray = 1.0, True
    elif variant == "no_text":
        c.loss.text_weight = 0.0
    elif variant == "no_image":
        c.loss.image_weight = 0.0
    elif variant == "no_objaverse":
        c.data.datasets = tuple(f"openshape_ensemble/{name}" for name in ("shapenet", "abo", "future3d"))
    else:
        return config.variant(c, variant)
    return c
