"""Shapes with targets made from themselves by `openshape targets`; see README.md in this folder."""

from tfds_builders.targets.builder import Targets

__all__ = ["Targets"]
