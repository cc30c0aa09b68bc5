"""Learning-rate schedules and the optimizer."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from openshape_jax.config import OptimConfig

SMALLEST_MATRIX = 16  # rows and columns from which Muon takes a parameter for a matrix


def schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """The learning rate of a step, after `warmup_steps` of linear growth from 0.

    "step" multiplies by `decay_rate` every `decay_every` steps (the original's StepLR, stepped per
    iteration), "cosine" falls to 0 at `steps`, "constant" stays.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.schedule == "step":
        body = lambda t: peak * config.decay_rate ** jnp.floor(t / config.decay_every)  # noqa: E731
    elif config.schedule == "cosine":
        body = optax.cosine_decay_schedule(peak, max(steps - warmup, 1))
    else:
        body = optax.constant_schedule(peak)
    if warmup == 0:
        return body
    # The first step already moves: (t + 1) / warmup.
    ramp = lambda t: peak * (t + 1) / warmup  # noqa: E731
    return optax.join_schedules([ramp, body], [warmup])


def optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """AdamW or Muon, with decay on every parameter, as PyTorch's default that the original uses.

    Muon (momentum, made orthogonal by Newton-Schulz iteration) moves the matrices inside the encoder;
    vectors, the first layer and the projection to the embedding are left to AdamW with Nesterov momentum, as
    its author advises. Its steps are scaled to the size of Adam's (0.2 root mean square, arXiv 2502.16982),
    so both share learning rate and decay.
    """
    rate, decay = schedule(config, steps), config.weight_decay
    if config.name == "muon":
        moved = optax.contrib.muon(
            rate,
            weight_decay=decay,
            adam_b1=config.b1,
            adam_b2=config.b2,
            adam_weight_decay=decay,
            muon_weight_dimension_numbers=_matrices,
            consistent_rms=0.2,
            ns_steps=4,
            preconditioning="aol",  # saves the fifth (arXiv 2512.04632)
        )
    else:
        moved = optax.adamw(rate, config.b1, config.b2, eps=1e-8, weight_decay=decay)
    parts: list[optax.GradientTransformation] = [moved]
    if config.clip_norm:
        parts.insert(0, optax.clip_by_global_norm(config.clip_norm))
    if config.layer_decay != 1:
        parts.append(
            optax.stateless(
                lambda tree, _: jax.tree.map(jnp.multiply, tree, layer_rates(tree, config.layer_decay))
            )
        )
    return parts[0] if len(parts) == 1 else optax.chain(*parts)


def _matrices(params: Any) -> Any:
    """Which axes of a parameter are a matrix that Muon moves, None where none is."""
    from optax.contrib import MuonDimensionNumbers

    def axes(path: tuple[Any, ...], leaf: Any) -> Any:
        names = [getattr(key, "key", None) for key in path]
        if "encoder" not in names or "proj" in names or leaf.ndim < 2:
            return None
        if "transformer" in names:  # stacked along the first axis
            return MuonDimensionNumbers(1, 2) if leaf.ndim == 3 else None
        return MuonDimensionNumbers(0, 1) if min(leaf.shape) >= SMALLEST_MATRIX else None

    return jax.tree_util.tree_map_with_path(axes, params)


def layer_rates(params: Any, decay: float) -> Any:
    """The factor on the learning rate of each parameter, decay ** (layers above it).

    The lowest layer is all in front of the transformer's blocks, whose parameters are stacked along their
    first axis; the highest is the projection to the embedding and the logit scale, with factor 1.
    """

    def is_stacked(path: tuple[Any, ...]) -> bool:
        return any(getattr(key, "key", None) == "transformer" for key in path)

    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    depth = next((leaf.shape[0] for path, leaf in leaves if is_stacked(path)), 0)

    def rate(path: tuple[Any, ...], leaf: Any) -> Any:
        names = [getattr(key, "key", None) for key in path]
        if is_stacked(path):
            layers = decay ** jnp.arange(depth, 0, -1, dtype=jnp.float32)
            return layers.reshape(-1, *[1] * (leaf.ndim - 1))
        is_head = "encoder" not in names or "proj" in names
        return jnp.float32(1.0 if is_head else decay ** (depth + 1))

    return jax.tree_util.tree_map_with_path(rate, params)
