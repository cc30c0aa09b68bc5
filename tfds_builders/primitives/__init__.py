"""Parametric objects with compositional captions, made offline; see README.md in this folder."""

from tfds_builders.primitives.builder import Primitives

__all__ = ["Primitives"]
