"""A small PointBERT on 912 real models of Sweet Home 3D and synthetic ones, on two CPU cores.

    openshape data build sweethome3d
    openshape data build primitives
    python -m openshape_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

:primitives trains on the synthetic set alone, :smoke is a minute on its smallest version.
"""

from openshape_jax import config


def get_config(variant: str = "") -> config.Config:
    """The quickstart; the choices are explained in experiments/quickstart/README.md."""
    c = config.Config(steps=1750, batch_size=48, checkpoint_every=300, cpu_devices=2, fsdp=2)
    c.model = config.ModelConfig(
        dim=192,
        depth=3,
        heads=3,
        mlp_dim=576,
        sa_dim=96,
        patches=64,
        train_patches=32,
        radius=0.25,
        nsample=32,
        embed_dim=512,
    )
    c.data.datasets, c.data.weights = ("sweethome3d", "primitives"), (0.85, 0.15)
    c.data.num_points = 2048
    c.data.text_sources = ("class",)
    c.augment.dropout, c.augment.partial, c.augment.sparse, c.augment.noise_sigma = 0.5, 0.2, 0.2, 0.01
    c.augment.stretch, c.augment.mirror, c.augment.gray = 0.25, 0.5, 0.85
    c.loss.class_aware = True
    c.optim.name, c.optim.learning_rate, c.optim.weight_decay = "muon", 1e-3, 0.05
    c.optim.schedule, c.optim.warmup_steps, c.optim.ema, c.optim.clip_norm = "cosine", 60, 0.995, 1.0
    c.eval.datasets, c.eval.num_points, c.eval.views = ("sweethome3d",), 2048, 4
    c.eval.every, c.eval.report = 1000, True
    if variant == "primitives":
        c.data.datasets, c.data.weights, c.eval.datasets = ("primitives",), (), ("primitives",)
        return c
    return config.variant(c, variant)
