"""A small PointBERT on 820 real models of Sweet Home 3D, on a laptop without accelerator.

openshape data build sweethome3d
python -m openshape_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
"""

from openshape_jax import config


def get_config(variant: str = "") -> config.Config:
    """The quickstart, "smoke" for a minute on synthetic shapes."""
    c = config.Config(steps=2000, batch_size=48, checkpoint_every=250)
    c.model = config.ModelConfig(
        dim=192, depth=4, heads=3, mlp_dim=512, sa_dim=96, patches=64, radius=0.35, nsample=32, embed_dim=512
    )
    c.data.datasets = ("sweethome3d",)
    c.data.num_points = 1024
    c.data.class_text_share = 0.5
    c.augment.partial, c.augment.sparse, c.augment.noise_sigma = 0.2, 0.2, 0.02
    c.augment.stretch, c.augment.mirror = 0.2, 0.5
    c.loss.class_aware = True
    c.optim.learning_rate, c.optim.weight_decay = 1e-3, 0.05
    c.optim.schedule, c.optim.warmup_steps, c.optim.ema, c.optim.clip_norm = "cosine", 100, 0.995, 1.0
    c.eval.datasets, c.eval.num_points, c.eval.every, c.eval.report = ("sweethome3d",), 2048, 500, True
    return config.variant(c, variant)
