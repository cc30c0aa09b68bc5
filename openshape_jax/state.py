"""The training state, and the pure functions on it: init, step, embed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from openshape_jax import losses, models, optim, relations
from openshape_jax.augment import augment, dequantize, rotation, shuffle, unit_sphere
from openshape_jax.config import Config, ModelConfig
from openshape_jax.data.targets import MAX_TEXTS
from openshape_jax.ops.placement import split_rows
from openshape_jax.runtime import jit_of_model
from openshape_jax.sharding import by_row, replicated

Batch = dict[str, Array]
Metrics = dict[str, Array]
PROJECTIONS = {"text": "text_proj", "image": "image_proj"}  # parameters by the kind of target


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a step changes: a pytree, saved and restored as a whole."""

    step: Array  # () int32, optimizer steps done
    params: dict[str, Any]  # {"encoder": ..., "logit_scale": () log of the factor on cosines, ...}
    stats: dict[str, Any]  # BatchNorm's running statistics
    opt_state: optax.OptState
    ema: dict[str, Any]  # moving average {"encoder", "stats"}; {} when optim.ema is 0


def init(config: Config) -> TrainState:
    """The state before the first step, a function of config.seed only."""
    rngs = nnx.Rngs(config.seed)
    encoder, stats = models.split(models.build(config.model, rngs))
    log_scale = jnp.asarray(np.log(config.loss.logit_scale), jnp.float32)
    params = {"encoder": encoder, "logit_scale": log_scale}
    if config.loss.separate_scales:
        params["image_logit_scale"] = jnp.copy(log_scale)
    if config.loss.projections:
        width = config.model.embed_dim
        params |= {name: models.linear(width, width, rngs) for name in PROJECTIONS.values()}
    ema = jax.tree.map(jnp.copy, _weights(params, stats)) if config.optim.ema else {}
    opt_state = optim.optimizer(config.optim, config.steps).init(params)
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, stats=stats, opt_state=opt_state, ema=ema)


def _weights(params: dict[str, Any], stats: dict[str, Any]) -> dict[str, Any]:
    projections = {name: params[name] for name in PROJECTIONS.values() if name in params}
    return {"encoder": params["encoder"], "stats": stats, **projections}


def evaluated(state: TrainState) -> dict[str, Any]:
    """{"encoder", "stats"} that evaluation uses, and {"text_proj", "image_proj"} where targets are projected:
    the moving average where there is one."""
    return state.ema or _weights(state.params, state.stats)


def project(weights: dict[str, Any], kind: str, targets: Any) -> Any:
    """Targets (..., D), "text" or "image", as the shapes' embeddings were trained to match them.

    They are as they were where `weights` has no projection.
    """
    projection = weights.get(PROJECTIONS[kind])
    return targets if projection is None else targets @ projection["kernel"] + projection["bias"]


def loss(
    config: Config,
    params: dict[str, Any],
    stats: dict[str, Any],
    xyz: Array,
    rgb: Array,
    batch: Batch,
    keep: Array | None = None,
    paths: Array | None = None,
) -> tuple[Array, tuple[dict[str, Any], Metrics]]:
    """(loss, (new statistics, metrics)) of a batch whose points are ready for the encoder.

    Args:
      batch: text (B, M, D), has_text (B, M), text_id (B, M), image (B, M', D), has_image (B, M'),
        text_ids (B, T); with data.hard_negatives also group (B,).
      keep, paths: as `models.apply`.
    """
    c = config.loss
    emb, stats = models.apply(
        config.model, params["encoder"], stats, xyz, rgb, train=True, keep=keep, paths=paths
    )
    notes, ignored = {"text_ids": batch["text_ids"]}, None
    if config.data.hard_negatives:
        has_both = batch["has_text"][:, 0] & batch["has_image"][:, 0]
        image, text = batch["image"][:, 0], batch["text"][:, 0]
        notes |= relations.pair_notes(image, text, has_both, batch["group"])
        ignored = relations.false_negatives(c.false_negative_margin)
    form = losses.Form(None, ignored, c.hardness, c.top_k, c.decoupled)
    shared = dataclasses.replace(form, positives=relations.shared_text) if c.class_aware else form
    shapes = losses.shapes(emb.astype(config.model.dtype), notes)  # in the type that the encoder made it in
    tasks = []
    for kind, of_kind, ids in (("text", shared, {"text_id": batch["text_id"]}), ("image", form, {})):
        own = project(params, kind, batch[kind]), batch[f"has_{kind}"]
        tasks.append(losses.Task(*own, _scale(params, kind), of_kind, ids))
    total, metrics, weights = jnp.zeros(()), {}, {"text": c.text_weight, "image": c.image_weight}
    outcomes = losses.contrastive(shapes, tasks)
    for (kind, weight), task, (value, seen) in zip(weights.items(), tasks, outcomes, strict=True):
        total += weight * value
        metrics |= {f"{kind}_loss": value, f"{kind}_logit_scale": task.logit_scale}
        metrics |= {f"{kind}_{name}": found for name, found in seen.items()}
    if "image_logit_scale" not in params:
        metrics["logit_scale"] = metrics.pop("text_logit_scale")
        del metrics["image_logit_scale"]
    metrics |= {"loss": total, "bad_rows": ~jnp.isfinite(emb).all(-1)}
    return total, (stats, metrics)


def batch_shapes(config: Config) -> dict[str, jax.ShapeDtypeStruct]:
    """What a training step takes: shapes and types of the global batch that `data.pipeline` makes."""
    b, n, d = config.batch_size, config.data.num_points, config.model.embed_dim
    m, images = config.data.texts, config.data.images
    shapes = {
        "xyz": ((b, n, 3), jnp.uint16), "rgb": ((b, n, 3), jnp.uint8),
        "text": ((b, m, d), jnp.float16), "has_text": ((b, m), jnp.bool_), "text_id": ((b, m), jnp.int32),
        "text_ids": ((b, MAX_TEXTS), jnp.int32),
        "image": ((b, images, d), jnp.float16), "has_image": ((b, images), jnp.bool_),
    }  # fmt: skip
    if config.data.hard_negatives:
        shapes["group"] = ((b,), jnp.int32)
    return {name: jax.ShapeDtypeStruct(shape, kind) for name, (shape, kind) in shapes.items()}


def _scale(params: dict[str, Any], kind: str) -> Array:
    """The factor on cosines with targets of a kind."""
    own = params.get("image_logit_scale") if kind == "image" else None
    return jnp.exp(params["logit_scale"] if own is None else own)


def draw_patches(key: Array, config: ModelConfig, batch_size: int) -> Int[Array, "B P"] | None:
    """Which patches of each shape a training step uses, None for all.

    Dropping patches before they are grouped makes a step cheaper in proportion and regularises (as
    PatchDropout, arXiv 2208.07220, does for images).
    """
    if not config.train_patches or config.train_patches == config.patches:
        return None
    order = jnp.argsort(jax.random.uniform(key, (batch_size, config.patches)), axis=1)
    return order[:, : config.train_patches]


def draw_paths(key: Array, config: ModelConfig, batch_size: int) -> Float[Array, "depth 2 B"] | None:
    """What the attention and the MLP of each block are multiplied with in a training step, None for 1.

    0 with a probability that grows linearly from 0 in the first block to `drop_path` in the last, else
    1 / (1 - it): stochastic depth (arXiv 1603.09382), as its users implement it.
    """
    if not config.drop_path:
        return None
    kept = 1 - jnp.linspace(0, config.drop_path, config.depth)[:, None, None]
    return jax.random.bernoulli(key, kept, (config.depth, 2, batch_size)) / kept


def jit_train_step(config: Config, mesh: Mesh, places: Any) -> Callable[..., Any]:
    """`jax.jit` of `make_train_step` for a mesh's devices; the state that it is given is donated.

    Args:
      places: shardings of a state (`sharding.of_state`).
    """
    return jit_of_model(config.model.dtype, mesh)(
        make_train_step(config),
        in_shardings=(places, by_row(mesh)),
        out_shardings=(places, replicated(mesh)),
        donate_argnums=0,
    )


def make_train_step(config: Config) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The pure function (state, batch) -> (state, metrics) of one optimizer step; jit it with donation.

    Augmentation is a function of (config.seed, step). A step whose loss or gradient is not finite changes
    nothing but the step's number; metrics then has finite False, and bad_rows (B,) True for shapes whose
    embedding is to blame. `batch` adds to `loss`'s the stored points: xyz (B, N, 3) uint16 and rgb (B, N, 3)
    uint8; and, where hosts must agree to stop, stop (B,).
    """
    tx = optim.optimizer(config.optim, config.steps)
    decay = config.optim.ema

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        batch = jax.tree.map(split_rows, batch)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), state.step))
        keep = draw_patches(keys[0], config.model, len(batch["xyz"]))
        paths = draw_paths(jax.random.fold_in(keys[0], 1), config.model, len(batch["xyz"]))
        points = batch["xyz"], batch["rgb"]
        if config.data.device_shuffle:
            points = shuffle(jax.random.fold_in(keys[1], 0), *points)
        xyz, rgb = augment(keys[1], *dequantize(*points), config.augment)
        grad_fn = jax.value_and_grad(
            lambda p: loss(config, p, state.stats, xyz, rgb, batch, keep, paths), has_aux=True
        )
        (total, (stats, metrics)), grads = grad_fn(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params: dict[str, Any] = optax.apply_updates(state.params, updates)  # type: ignore[assignment]
        if config.loss.max_logit_scale:
            largest = np.log(config.loss.max_logit_scale)
            params |= {k: jnp.minimum(v, largest) for k, v in params.items() if k.endswith("logit_scale")}
        ema = state.ema
        if decay:
            now = jnp.minimum(decay, (1.0 + state.step) / (10.0 + state.step))
            ema = jax.tree.map(lambda old, new: old * now + new * (1 - now), ema, _weights(params, stats))
        metrics["grad_norm"] = optax.tree.norm(grads)
        metrics["finite"] = jnp.isfinite(total) & jnp.isfinite(metrics["grad_norm"])
        if "stop" in batch:
            metrics["stop"] = batch["stop"].any()
        new = TrainState(step=state.step, params=params, stats=stats, opt_state=opt_state, ema=ema)
        new = jax.tree.map(lambda new, old: jnp.where(metrics["finite"], new, old), new, state)
        return dataclasses.replace(new, step=state.step + 1), metrics

    return step


def make_embed(
    config: ModelConfig, views: int = 1, normalized: bool = True
) -> Callable[..., Float[Array, "B D"]]:
    """The pure function (weights, xyz, rgb, count) -> unit embeddings (B, D); weights as `evaluated` gives.

    A cloud shorter than the batch is filled up by repeating its own points in order; with `count` (B,), the
    numbers of real points, its embedding is exactly that of the cloud alone: a repeated point never is the
    first of those at its place, and adds nothing to a maximum over a patch.

    With several views the cloud is turned to `views` headings evenly about z, each starting at another
    point, and the unit embeddings are averaged (a departure from OpenShape, which takes one view).

    Clouds are centred and scaled to the unit sphere first; with `normalized` False they are taken as they
    are, to measure what the encoder makes of such.
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
        if normalized:
            xyz = jax.vmap(unit_sphere)(xyz, count)
        if views == 1:
            return losses.normalize(models.apply(config, weights["encoder"], weights["stats"], xyz, rgb)[0])
        every = jax.lax.map(lambda view: one_view(weights, xyz, rgb, count, view), jnp.arange(views))
        return losses.normalize(every.mean(0))

    return embed
