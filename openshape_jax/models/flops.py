"""Floating-point operations of an encoder by formula: what utilisation is measured against."""

from __future__ import annotations

from openshape_jax.config import ModelConfig
from openshape_jax.models.transformer import HEAD_DIM


def forward(model: ModelConfig, patches: int | None = None) -> dict[str, float]:
    """FLOPs of one shape's forward pass by part, 2 for a multiplication and addition.

    With P patches of K points and width C, T = P + 1 tokens of width D, inner width I = 64 heads, MLP width
    M, embedding E; of the last block only the class token is wanted, with the keys and values of all:

    | part | FLOPs |
    |---|---|
    | set abstraction | 2 P K (9 x 64 + 64 x 64 + 64 C) |
    | transformer but its last block | (depth - 1) (2 T (4 D I + 2 D M) + 4 T^2 I) |
    | its last block | 2 T 2 D I + 2 (2 D I + 2 D M) + 4 T I |
    | ends | 2 P (C + 3) D + 2 D E |

    Statistics, norms, geometry, augmentation and the loss do not count. The formula is the architecture's:
    how a program comes to the result does not change it, and `ops.attention.first_attention` does without
    the first term of the last block (1.5 % of all for scalings 4 and 5).

    Args:
      patches: P; None: all of the model's.
    """
    count = model.patches if patches is None else patches
    tokens, inner, dim, mlp = count + 1, HEAD_DIM * model.heads, model.dim, model.mlp_dim
    block = 2 * tokens * (4 * dim * inner + 2 * dim * mlp) + 4 * tokens**2 * inner
    last = 2 * tokens * 2 * dim * inner + 2 * (2 * dim * inner + 2 * dim * mlp) + 4 * tokens * inner
    return {
        "set abstraction": 2.0 * count * model.nsample * (9 * 64 + 64 * 64 + 64 * model.sa_dim),
        "transformer": float((model.depth - 1) * block + last),
        "ends": 2.0 * (count * (model.sa_dim + 3) * dim + dim * model.embed_dim * model.project),
    }


def training(model: ModelConfig) -> float:
    """FLOPs of one shape's training step, three forward passes; what is computed again does not count."""
    return 3 * sum(forward(model, model.train_patches or None).values())
