"""Geometry operations in JAX: written for one cloud, vmapped for a batch, float32 throughout."""

from openshape_jax.ops.ball_query import ball_query
from openshape_jax.ops.fps import farthest_point_sampling

__all__ = ["ball_query", "farthest_point_sampling"]
