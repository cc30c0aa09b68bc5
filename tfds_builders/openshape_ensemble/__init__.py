"""The released training data of OpenShape; see README.md in this folder."""

from tfds_builders.openshape_ensemble.builder import OpenshapeEnsemble

__all__ = ["OpenshapeEnsemble"]
