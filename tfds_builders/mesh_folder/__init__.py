"""A folder of your own meshes and point clouds, with or without captions; see README.md in this folder."""

from tfds_builders.mesh_folder.builder import MeshFolder

__all__ = ["MeshFolder"]
