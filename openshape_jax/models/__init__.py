"""Encoders: `build(config, rngs)` makes the one that `config.name` names."""

from __future__ import annotations

from typing import Any

from flax import nnx
from jaxtyping import Array, Float, Int

from openshape_jax.config import ModelConfig
from openshape_jax.models.pointbert import Linear, PointBert

ENCODERS = {"pointbert": PointBert}


def build(config: ModelConfig, rngs: nnx.Rngs) -> nnx.Module:
    """A freshly initialised encoder.

    Raises:
      ValueError: `config.name` is not a known encoder.
    """
    if config.name not in ENCODERS:
        raise ValueError(f"model.name is {config.name!r}; known encoders: {', '.join(ENCODERS)}.")
    return ENCODERS[config.name](config, rngs=rngs)


def linear(d_in: int, d_out: int, rngs: nnx.Rngs) -> dict[str, Array]:
    """{"kernel": (d_in, d_out), "bias": (d_out,)} of a fresh linear map, initialised as PyTorch does."""
    return split(Linear(d_in, d_out, rngs=rngs))[0]


def split(model: nnx.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """(parameters, BatchNorm statistics) of an encoder as pure dicts of arrays."""
    _, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(stats)


def apply(
    config: ModelConfig,
    params: dict[str, Any],
    stats: dict[str, Any],
    xyz: Float[Array, "B N 3"],
    rgb: Float[Array, "B N 3"],
    *,
    train: bool = False,
    start: Array | int = 0,
    keep: Int[Array, "B P"] | None = None,
    paths: Float[Array, "depth 2 B"] | None = None,
) -> tuple[Float[Array, "B D"], dict[str, Any]]:
    """(embeddings, new statistics): the encoder as a pure function of what `split` returns."""
    graph, *_ = nnx.split(nnx.eval_shape(lambda: build(config, nnx.Rngs(0))), nnx.Param, nnx.BatchStat)
    model = nnx.merge(graph, nnx.State(params), nnx.State(stats))
    out = model(xyz, rgb, train=train, start=start, keep=keep, paths=paths)
    return out, split(model)[1]
