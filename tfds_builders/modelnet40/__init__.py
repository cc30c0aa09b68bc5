"""ModelNet40, from OpenShape's release or from Princeton's meshes; see README.md in this folder."""

from tfds_builders.modelnet40.builder import Modelnet40

__all__ = ["Modelnet40"]
