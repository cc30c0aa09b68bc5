"""The training state, and the pure functions on it: init, step, embed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from openshape_jax import losses, models, optim
from openshape_jax.augment import augment, dequantize, rotation, shuffle, unit_sphere
from openshape_jax.config import Config, ModelConfig

Batch = dict[str, Array]
Metrics = dict[str, Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a step changes: a pytree, saved and restored as a whole."""

    step: Array  # () int32, optimizer steps done
    params: dict[str, Any]  # {"encoder": ..., "logit_scale": () the log of the factor on cosines}
    stats: dict[str, Any]  # BatchNorm's running statistics
    opt_state: optax.OptState
    ema: dict[str, Any]  # moving average {"encoder", "stats"}; {} when optim.ema is 0


def init(config: Config) -> TrainState:
    """The state before the first step, a function of config.seed only."""
    encoder, stats = models.split(models.build(config.model, nnx.Rngs(config.seed)))
    log_scale = jnp.asarray(np.log(config.loss.logit_scale), jnp.float32)
    params = {"encoder": encoder, "logit_scale": log_scale}
    ema = jax.tree.map(jnp.copy, {"encoder": encoder, "stats": stats}) if config.optim.ema else {}
    opt_state = optim.optimizer(config.optim, config.steps).init(params)
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, stats=stats, opt_state=opt_state, ema=ema)


def evaluated(state: TrainState) -> dict[str, Any]:
    """{"encoder", "stats"} that evaluation uses: the moving average where there is one."""
    return state.ema or {"encoder": state.params["encoder"], "stats": state.stats}


def loss(
    config: Config,
    params: dict[str, Any],
    stats: dict[str, Any],
    xyz: Array,
    rgb: Array,
    batch: Batch,
    keep: Array | None = None,
) -> tuple[Array, tuple[dict[str, Any], Metrics]]:
    """(loss, (new statistics, metrics)) of a batch whose points are ready for the encoder.

    Args:
      batch: text (B, D), has_text (B,), image (B, D), has_image (B,), text_id (B,), text_ids (B, T); with
        data.hard_negatives also group (B,).
    """
    emb, stats = models.apply(config.model, params["encoder"], stats, xyz, rgb, train=True, keep=keep)
    scale = jnp.exp(params["logit_scale"])
    shared = losses.shared_text(batch["text_id"], batch["text_ids"]) if config.loss.class_aware else None
    ignored = None
    if config.data.hard_negatives:
        has_both, margin = batch["has_text"] & batch["has_image"], config.loss.false_negative_margin
        ignored = losses.false_negatives(batch["image"], batch["text"], has_both, batch["group"], margin)
    text, text_top1 = losses.contrastive(emb, batch["text"], scale, batch["has_text"], shared, ignored)
    image, image_top1 = losses.contrastive(emb, batch["image"], scale, batch["has_image"], None, ignored)
    total = config.loss.text_weight * text + config.loss.image_weight * image
    metrics = {
        "loss": total, "text_loss": text, "image_loss": image, "text_top1": text_top1,
        "image_top1": image_top1, "logit_scale": scale,
    }  # fmt: skip
    if ignored is not None:
        metrics["ignored_pairs"] = ignored.sum() / len(ignored)  # of each shape, on average
    return total, (stats, metrics)


def draw_patches(key: Array, config: ModelConfig, batch_size: int) -> Int[Array, "B P"] | None:
    """Which patches of each shape a training step uses, None for all.

    Dropping patches before they are grouped makes a step cheaper in proportion and regularises (as
    PatchDropout, arXiv 2208.07220, does for images).
    """
    if not config.train_patches or config.train_patches == config.patches:
        return None
    order = jnp.argsort(jax.random.uniform(key, (batch_size, config.patches)), axis=1)
    return order[:, : config.train_patches]


def make_train_step(config: Config) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The pure function (state, batch) -> (state, metrics) of one optimizer step; jit it with donation.

    Augmentation is a function of (config.seed, step). `batch` adds to `loss`'s the stored points:
    xyz (B, N, 3) uint16 and rgb (B, N, 3) uint8.
    """
    tx = optim.optimizer(config.optim, config.steps)
    decay = config.optim.ema

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), state.step))
        keep = draw_patches(keys[0], config.model, len(batch["xyz"]))
        points = batch["xyz"], batch["rgb"]
        if config.data.device_shuffle:
            points = shuffle(jax.random.fold_in(keys[1], 0), *points)
        xyz, rgb = augment(keys[1], *dequantize(*points), config.augment)
        grad_fn = jax.value_and_grad(
            lambda p: loss(config, p, state.stats, xyz, rgb, batch, keep), has_aux=True
        )
        (_, (stats, metrics)), grads = grad_fn(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params: dict[str, Any] = optax.apply_updates(state.params, updates)  # type: ignore[assignment]
        ema = state.ema
        if decay:
            now = jnp.minimum(decay, (1.0 + state.step) / (10.0 + state.step))
            fresh = {"encoder": params["encoder"], "stats": stats}
            ema = jax.tree.map(lambda old, new: old * now + new * (1 - now), ema, fresh)
        metrics["grad_norm"] = optax.tree.norm(grads)
        new = TrainState(step=state.step + 1, params=params, stats=stats, opt_state=opt_state, ema=ema)
        return new, metrics

    return step


def make_embed(config: ModelConfig, views: int = 1) -> Callable[..., Float[Array, "B D"]]:
    """The pure function (weights, xyz, rgb, count) -> unit embeddings (B, D); weights as `evaluated` gives.

    A cloud shorter than the batch is filled up by repeating its own points in order; with `count` (B,), the
    numbers of real points, its embedding is exactly that of the cloud alone: a repeated point never is the
    first of those at its place, and adds nothing to a maximum over a patch.

    With several views the cloud is turned to `views` headings evenly about z, each starting at another
    point, and the unit embeddings are averaged (a departure from OpenShape, which takes one view).
    """

    def one_view(weights: dict[str, Any], xyz: Array, rgb: Array, count: Array, view: Array) -> Array:
        shift = view * (count // views)
        order = (jnp.arange(xyz.shape[1]) - shift[:, None]) % count[:, None]
        turned = jnp.take_along_axis(xyz @ rotation(2, 2 * jnp.pi * view / views).T, order[..., None], 1)
        colours = jnp.take_along_axis(rgb, order[..., None], 1)
        out, _ = models.apply(config, weights["encoder"], weights["stats"], turned, colours)
        return losses.normalize(out)

    def embed(weights: dict[str, Any], xyz: Array, rgb: Array, count: Array | None = None) -> Array:
        count = jnp.full(len(xyz), xyz.shape[1]) if count is None else count
        xyz = jax.vmap(unit_sphere)(xyz, count)
        if views == 1:
            return losses.normalize(models.apply(config, weights["encoder"], weights["stats"], xyz, rgb)[0])
        every = jax.lax.map(lambda view: one_view(weights, xyz, rgb, count, view), jnp.arange(views))
        return losses.normalize(every.mean(0))

    return embed
