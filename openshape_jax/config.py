"""The typed configuration of a run, and the reading of `--config.a.b=value` overrides.

A config file is a short Python file with `get_config(variant: str = "") -> Config`. Every field has a
default and a comment with its unit or source.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from openshape_jax import overrides as overrides_lib
from openshape_jax.overrides import ConfigError as ConfigError
from openshape_jax.overrides import apply_overrides as apply_overrides
from openshape_jax.overrides import difference as difference
from openshape_jax.overrides import to_dict as to_dict


@dataclass
class ModelConfig:
    """The encoder. `openshape_jax.models.pointbert.size(n)` gives the published sizes."""

    name: str = "pointbert"
    dim: int = 512  # token width
    depth: int = 12  # transformer blocks
    heads: int = 8  # of width 64 each, always
    mlp_dim: int = 1536  # hidden width of a block's MLP
    sa_dim: int = 256  # width of a patch feature
    patches: int = 384  # centres chosen by farthest point sampling
    radius: float = 0.2  # of a patch, in units of the unit sphere
    nsample: int = 64  # points of a patch
    train_patches: int = 0  # random patches kept in a training step; 0: all (departure from OpenShape)
    embed_dim: int = 1280  # D: the width of the CLIP space
    project: bool = True  # False: the class token is the embedding (demo B/32)
    dtype: str = "float32"  # compute type; "bfloat16" pays on accelerators; on CPUs see the README
    remat: bool = False  # recompute block activations in the backward pass to save memory
    remat_policy: str = "nothing"  # what is kept of a block then: "nothing" or "dots" (products of matrices)
    # Parts in which the transformer takes each device's share of a training batch: its memory is that of one
    # part, for a second forward pass, and the gradients are those of the whole batch (GradCache, arXiv
    # 2101.06983).
    microbatches: int = 1
    drop_path: float = 0.0  # probability to skip the last block for a shape, linear from 0 (arXiv 1603.09382)


@dataclass
class DataConfig:
    """What is read, and which targets are drawn."""

    datasets: tuple[str, ...] = ("openshape_ensemble",)  # tfds builders, `name` or `name/config`
    weights: tuple[float, ...] = ()  # of the mixture; empty: by number of shapes
    split: str = "train"  # of every data set
    splits: tuple[str, ...] = ()  # one for each of `datasets`, where they differ; empty: `split`
    data_dir: str = ""  # "": TFDS's default (TFDS_DATA_DIR or ~/tensorflow_datasets)
    num_points: int = 10_000  # drawn without replacement from each stored cloud at every visit
    # Sources of texts to draw from, e.g. ("class", "synonym"); (): those of the paper (data/targets.py).
    text_sources: tuple[str, ...] = ()
    texts: int = 1  # targets drawn for a shape at every visit, each another where there are so many
    images: int = 1  # likewise
    class_text_share: float = 0.0  # probability to take the class name whatever the other sources say
    use_text_filter: bool = True  # leave out metadata texts that GPT-4 found to say nothing (OpenShape)
    prompt_engineering: bool = True  # features averaged over prompt templates where there are any (OpenShape)
    # Batches of seeds with some of their neighbours, from this file: of `openshape mine`, or OpenShape's
    # point_feat_knn.npy. "": no such groups.
    hard_negatives: str = ""
    group_size: int = 5  # shapes of a group, the seed included (OpenShape: 40 groups of 5)
    thumbnail_share: float = 0.5  # probability of the thumbnail among a shape's image features (OpenShape)
    # The device puts the points of a batch in random order, not the host; pays on accelerators.
    device_shuffle: bool = False
    in_memory_limit: float = 2.0  # GB: sets whose training split is smaller are decoded once and kept
    prefetch: int = 4  # batches read ahead
    workers: int = 0  # processes that read; 0: a thread of this one, enough for 1,000 shapes a second


@dataclass
class AugmentConfig:
    """On-device augmentation, in this order; the defaults are OpenShape's, extras are off."""

    enabled: bool = True
    dropout: float = 0.875  # a ratio u * dropout of points is replaced by point 0 (colour kept)
    scale_low: float = 0.8
    scale_high: float = 1.25
    stretch: float = 0.0  # extra factor exp(U(-s, s)) per axis
    shift: float = 0.1  # U(-shift, shift) per axis
    tilt_sigma: float = 0.06  # rad, rotation about each axis
    tilt_clip: float = 0.18  # rad
    azimuth: float = 1.0  # share of a full turn about z: 1 is any heading
    mirror: float = 0.0  # probability to mirror x
    gray: float = 0.5  # probability that the whole cloud's colour becomes 0.4
    noise_sigma: float = 0.0  # largest sigma of Gaussian coordinate noise; each cloud draws its own
    partial: float = 0.0  # probability to keep only the points on one side of a random plane
    sparse: float = 0.0  # probability to keep only a few distinct points (64 to N, log-uniform)


@dataclass
class LossConfig:
    text_weight: float = 1.0
    image_weight: float = 1.0
    logit_scale: float = 14.28  # initial 1 / temperature (OpenShape)
    separate_scales: bool = False  # one learnt scale for texts and one for images (MixCon3D)
    max_logit_scale: float = 0.0  # the scale never exceeds it (CLIP: 100); 0: no limit
    projections: bool = False  # learnt linear maps of the text and the image targets
    class_aware: bool = False  # shapes of a batch that share a text target are all positives
    decoupled: bool = False  # several positives do not compete with each other (HOLA)
    hardness: float = 0.0  # beta: negatives count in proportion to exp(beta x logit) (arXiv 2010.04592)
    top_k: int = 0  # only the k nearest negatives count; 0: all
    # With data.hard_negatives: a negative of the own group is left out where cos(image, its text) exceeds
    # cos(image, the negative's text) by no more than this (OpenShape); -3: none is.
    false_negative_margin: float = 0.1


@dataclass
class OptimConfig:
    """Weight decay falls on every parameter, as in the original."""

    name: str = "adamw"  # or "muon", AdamW but for matrices: fewer steps to the same loss where data are few
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    b1: float = 0.9
    b2: float = 0.999
    clip_norm: float = 0.0  # largest global gradient norm; 0: no clipping
    schedule: str = "step"  # "step", "cosine" or "constant"
    warmup_steps: int = 0
    decay_rate: float = 0.967  # of "step": factor every decay_every steps
    decay_every: int = 10_000
    layer_decay: float = 1.0  # rate of a block relative to the one after it (as BEiT, arXiv 2106.08254)
    ema: float = 0.0  # decay of the moving average used for evaluation; 0: none
    nonfinite: str = "stop"  # a step whose loss or gradient is not finite: "stop", or "skip" it and count


@dataclass
class EvalConfig:
    datasets: tuple[str, ...] = ()  # tfds builders evaluated zero-shot on their test split
    split: str = "test"
    # Parts of `openshape eval` and --mode=eval: zero_shot, few_shot, knn, retrieval, robustness, or all.
    suite: tuple[str, ...] = ("zero_shot",)
    seeds: int = 1  # draws of each shape's points over which these average
    every: int = 0  # steps between evaluations during training; 0: only at the end
    batch_size: int = 64
    num_points: int = 10_000
    gray: bool = False  # shapes are shown without colour (0.4), to a model that was trained so
    views: int = 1  # headings about z whose embeddings are averaged
    report: bool = False  # write WORKDIR/report/index.html at the end


@dataclass
class Config:
    seed: int = 0
    steps: int = 100_000  # optimizer steps
    batch_size: int = 200  # shapes of the global batch
    log_every: int = 20  # steps between lines of metrics.jsonl
    checkpoint_every: int = 1_000  # steps
    checkpoints_kept: int = 3
    cpu_devices: int = 1  # on CPUs the batch is split over so many devices; 2 fit two cores
    fsdp: int = 0  # most devices over which parameters are split; 0: a host's, from 100 M parameters on
    resume: str = "auto"  # "force": go on although the workdir holds another config's run
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)


def from_dict(values: dict[str, Any], cls: type = Config) -> Any:
    """The config that `to_dict` wrote.

    Raises:
      ConfigError: an unknown field or a wrong type.
    """
    return overrides_lib.from_dict(values, cls)


def validate(config: Config) -> Config:
    """The same config, checked for values that could only fail later.

    Raises:
      ConfigError: names the field, the value and what is allowed.
    """
    m, d, o, e = config.model, config.data, config.optim, config.eval
    positive = {
        "steps": config.steps, "batch_size": config.batch_size, "log_every": config.log_every,
        "checkpoint_every": config.checkpoint_every, "checkpoints_kept": config.checkpoints_kept,
        "model.dim": m.dim, "model.depth": m.depth, "model.heads": m.heads, "model.mlp_dim": m.mlp_dim,
        "model.patches": m.patches, "model.nsample": m.nsample, "model.radius": m.radius,
        "model.embed_dim": m.embed_dim, "model.microbatches": m.microbatches, "data.num_points": d.num_points,
        "data.texts": d.texts, "data.images": d.images, "optim.layer_decay": o.layer_decay,
        "optim.learning_rate": o.learning_rate, "eval.batch_size": e.batch_size, "eval.views": e.views,
        "eval.seeds": e.seeds,
        "loss.logit_scale": config.loss.logit_scale,
    }  # fmt: skip
    for path, value in positive.items():
        if not value > 0:
            raise ConfigError(f"{path} is {value}; it must be positive.")
    for path, value, allowed in (
        ("model.dtype", m.dtype, ("float32", "bfloat16")),
        ("model.remat_policy", m.remat_policy, ("nothing", "dots")),
        ("optim.name", o.name, ("adamw", "muon")),
        ("optim.schedule", o.schedule, ("step", "cosine", "constant")),
        ("optim.nonfinite", o.nonfinite, ("stop", "skip")),
        ("resume", config.resume, ("auto", "force")),
    ):
        if value not in allowed:
            raise ConfigError(f"{path} is {value!r}; allowed: {', '.join(allowed)}.")
    a = config.augment
    ranges = {  # path: (value, lowest, highest)
        "seed": (config.seed, 0, 2**31 - 1), "cpu_devices": (config.cpu_devices, 1, 1024),
        "fsdp": (config.fsdp, 0, 1 << 16), "model.drop_path": (m.drop_path, 0, 0.95),
        "model.sa_dim": (m.sa_dim, 1, 1 << 16), "data.prefetch": (d.prefetch, 0, 1 << 16),
        "data.workers": (d.workers, 0, 1024),
        "data.class_text_share": (d.class_text_share, 0, 1),
        "data.thumbnail_share": (d.thumbnail_share, 0, 1),
        "data.in_memory_limit": (d.in_memory_limit, 0, 1e6),
        "augment.dropout": (a.dropout, 0, 1), "augment.scale_low": (a.scale_low, 1e-3, a.scale_high),
        "augment.scale_high": (a.scale_high, a.scale_low, 1e3), "augment.stretch": (a.stretch, 0, 5),
        "augment.shift": (a.shift, 0, 10), "augment.tilt_sigma": (a.tilt_sigma, 0, 4),
        "augment.tilt_clip": (a.tilt_clip, 0, 4), "augment.azimuth": (a.azimuth, 0, 1),
        "augment.mirror": (a.mirror, 0, 1), "augment.gray": (a.gray, 0, 1),
        "augment.noise_sigma": (a.noise_sigma, 0, 1), "augment.partial": (a.partial, 0, 1),
        "augment.sparse": (a.sparse, 0, 1),
        "loss.text_weight": (config.loss.text_weight, 0, 1e6),
        "loss.image_weight": (config.loss.image_weight, 0, 1e6),
        "loss.false_negative_margin": (config.loss.false_negative_margin, -3, 3),
        "loss.max_logit_scale": (config.loss.max_logit_scale, 0, 1e6),
        "loss.hardness": (config.loss.hardness, 0, 100), "loss.top_k": (config.loss.top_k, 0, 1 << 16),
        "optim.weight_decay": (o.weight_decay, 0, 10),
        "optim.b1": (o.b1, 0, 0.999999), "optim.b2": (o.b2, 0, 0.999999),
        "optim.learning_rate": (o.learning_rate, 0, 1e38), "optim.clip_norm": (o.clip_norm, 0, 1e9),
        "optim.warmup_steps": (o.warmup_steps, 0, 1 << 40), "optim.decay_rate": (o.decay_rate, 1e-6, 1),
        "optim.decay_every": (o.decay_every, 1, 1 << 40), "optim.ema": (o.ema, 0, 0.9999999),
        "optim.layer_decay": (o.layer_decay, 0.01, 1),
        "eval.every": (e.every, 0, 1 << 40),
    }  # fmt: skip
    for path, (value, low, high) in ranges.items():
        if not low <= value <= high:
            raise ConfigError(f"{path} is {value}; it must be from {low} to {high}.")
    if config.batch_size % m.microbatches:
        raise ConfigError(
            f"model.microbatches is {m.microbatches}; it must divide batch_size ({config.batch_size})."
        )
    if not d.datasets:
        raise ConfigError("data.datasets is empty; name at least one data set.")
    if d.weights and (len(d.weights) != len(d.datasets) or min(d.weights) <= 0):
        raise ConfigError(f"data.weights {d.weights} must be one positive number for each of {d.datasets}.")
    if d.splits and len(d.splits) != len(d.datasets):
        raise ConfigError(f"data.splits {d.splits} must be one split for each of {d.datasets}, or empty.")
    if d.hard_negatives and len(d.datasets) != 1:
        raise ConfigError(
            f"data.hard_negatives {d.hard_negatives!r} holds the neighbours within one data set, but "
            f"data.datasets is {d.datasets}: name one, or build them as one."
        )
    if d.hard_negatives and (d.group_size < 2 or config.batch_size % d.group_size):
        raise ConfigError(
            f"data.group_size is {d.group_size}; it must be at least 2 and divide batch_size "
            f"({config.batch_size})."
        )
    if d.num_points < m.patches:
        raise ConfigError(
            f"data.num_points is {d.num_points} but model.patches {m.patches}; use at least as many points."
        )
    if e.num_points < m.patches:
        raise ConfigError(
            f"eval.num_points is {e.num_points} but model.patches {m.patches}; use at least as many points."
        )
    if not 0 <= m.train_patches <= m.patches:
        raise ConfigError(
            f"model.train_patches is {m.train_patches}; it must be 0 to model.patches ({m.patches})."
        )
    return config


def load(path_and_variant: str, overrides: Sequence[str] = ()) -> Config:
    """The Config of "FILE.py" or "FILE.py:variant", with overrides, validated.

    Raises:
      ConfigError: no such file, no `get_config` in it, an unknown variant or a bad override.
    """
    import importlib.util
    from pathlib import Path

    path, _, variant = path_and_variant.partition(":")
    if not Path(path).is_file():
        near = sorted(p.name for p in Path(path).parent.glob("*.py")) if Path(path).parent.is_dir() else []
        raise ConfigError(
            f"--config={path}: no such file." + (f" There are: {', '.join(near)}." if near else "")
        )
    spec = importlib.util.spec_from_file_location("openshape_config_file", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--config={path} is not a Python file (its name must end in .py).")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"{path} has no function get_config(variant).")
    return validate(apply_overrides(module.get_config(variant), overrides))


def smoke(config: Config) -> Config:
    """The same job as a one-minute run on the synthetic set: fewer points, patches, blocks and steps."""
    config.steps, config.batch_size, config.log_every, config.checkpoint_every = 60, 16, 5, 30
    config.cpu_devices = config.fsdp = 1
    config.data = dataclasses.replace(
        config.data, datasets=("primitives/tiny",), weights=(), num_points=512, workers=0
    )
    config.eval = dataclasses.replace(
        config.eval, datasets=("primitives/tiny",), num_points=512, batch_size=16, every=0
    )
    m = config.model
    config.model = dataclasses.replace(
        m,
        dim=96,
        depth=2,
        heads=2,
        mlp_dim=192,
        sa_dim=64,
        patches=32,
        radius=0.35,
        nsample=32,
        embed_dim=512,
        dtype="float32",
        microbatches=1,
    )
    config.optim = dataclasses.replace(config.optim, warmup_steps=min(config.optim.warmup_steps, 10))
    return config


def variant(config: Config, name: str) -> Config:
    """The config itself for "" and its smoke run for "smoke".

    Raises:
      ConfigError: another variant.
    """
    if name not in ("", "smoke"):
        raise ConfigError(f"unknown variant {name!r}; this config has: smoke.")
    return smoke(config) if name else config
