"""ScanObjectNN, from its h5 files or OpenShape's release; see README.md in this folder."""

from tfds_builders.scanobjectnn.builder import Scanobjectnn

__all__ = ["Scanobjectnn"]
