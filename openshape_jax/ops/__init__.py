"""Operations with a form for each platform: geometry (one cloud, vmapped, float32) and attention."""

from openshape_jax.ops.attention import attention, self_attention
from openshape_jax.ops.dispatch import ball_query, farthest_point_sampling, gather

__all__ = ["attention", "ball_query", "farthest_point_sampling", "gather", "self_attention"]
