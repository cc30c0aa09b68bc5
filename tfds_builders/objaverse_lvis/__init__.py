"""Objaverse-LVIS, from OpenShape's release; see README.md in this folder."""

from tfds_builders.objaverse_lvis.builder import ObjaverseLvis

__all__ = ["ObjaverseLvis"]
