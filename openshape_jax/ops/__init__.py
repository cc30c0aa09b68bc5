"""Geometry operations in JAX: written for one cloud, vmapped for a batch, float32 throughout."""

from openshape_jax.ops.dispatch import ball_query, farthest_point_sampling

__all__ = ["ball_query", "farthest_point_sampling"]
