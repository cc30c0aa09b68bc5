"""Arguments that several verbs have alike."""

from __future__ import annotations

import argparse


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    """Adds --data_dir, as `data.sources.data_root` takes it."""
    parser.add_argument("--data_dir", default="", help="default: TFDS_DATA_DIR or ~/tensorflow_datasets")


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Adds --checkpoint, as `openshape_jax.load` takes it."""
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="PATH",
        help="run directory, converted model, .pt or .safetensors",
    )
