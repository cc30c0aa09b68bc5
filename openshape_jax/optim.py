"""Learning-rate schedules and the optimizer."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from openshape_jax.config import OptimConfig


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
    """AdamW with decay on every parameter, as PyTorch's default that the original uses."""
    adamw = optax.adamw(
        schedule(config, steps), config.b1, config.b2, eps=1e-8, weight_decay=config.weight_decay
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw) if config.clip_norm else adamw
