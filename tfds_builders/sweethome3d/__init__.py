"""912 coloured, named models of Sweet Home 3D as point clouds; see README.md in this folder."""

from tfds_builders.sweethome3d.builder import Sweethome3d

__all__ = ["Sweethome3d"]
