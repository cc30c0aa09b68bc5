"""The TFDS builder of synthetic objects (ArrayRecord; needs no TensorFlow, no network)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from openshape_jax.data import schema, vocabulary, workers
from tfds_builders.primitives import shapes

TEXT_DIM = 512
TEST_SEEDS = 1 << 30  # the test split's seeds start here: no training set can reach them
CHUNK = 64  # seeds that one worker makes at a time


@dataclasses.dataclass
class PrimitivesConfig(tfds.core.BuilderConfig):
    """How many shapes, of how many points."""

    train: int = 3000
    test: int = 498
    num_points: int = 4096


def records(seeds: range, num_points: int) -> list[dict[str, Any]]:
    """The records of some seeds; a function of its arguments only."""
    words = vocabulary.load()
    made = []
    for seed in seeds:
        shape = shapes.sample(seed, num_points)
        texts = [schema.Text(shape.label, "class", words.encode([shape.label])[0])]
        for phrase in shape.synonyms:
            index = words.find(phrase)
            texts.append(schema.Text(phrase, "synonym", None if index is None else words.features[index]))
        texts.append(schema.Text(shape.caption, "caption"))
        meta = {"name": shape.label, "label": shape.label, "creator": "openshape_jax", "license": "CC0-1.0"}
        uid = f"primitives#{seed}"
        made.append(
            schema.encode(
                uid=uid, dataset="primitives", xyz=shape.xyz, rgb=shape.rgb, texts=texts,
                text_dim=TEXT_DIM, meta=meta,
            )
        )  # fmt: skip
    return made


class Primitives(tfds.core.GeneratorBasedBuilder):
    """Parametric coloured objects with compositional captions; see README.md."""

    VERSION = tfds.core.Version("1.2.0")
    RELEASE_NOTES: ClassVar = {
        "1.0.0": "First release.",
        "1.1.0": "14 more categories: toys, textiles, kitchen machines, pools.",
        "1.2.0": "Records with room for prompt-averaged text features and kinds of images.",
    }
    BUILDER_CONFIGS: ClassVar = [
        PrimitivesConfig(name="default", description="3,000 + 498 shapes at 4,096 points"),
        PrimitivesConfig(
            name="tiny", description="166 + 83 shapes at 1,024 points", train=166, test=83, num_points=1024
        ),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Parametric objects made offline from seeds.",
            features=schema.features(text_dim=TEXT_DIM),
            metadata=tfds.core.MetadataDict(
                classes=sorted(shapes.CATEGORIES),
                text_space=vocabulary.TEXT_SPACE,
                up="z",
                attribution=[
                    {
                        "creator": "openshape_jax",
                        "license": "CC0-1.0",
                        "library": "primitives",
                        "count": self.builder_config.train + self.builder_config.test,
                    }
                ],
            ),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # nothing is fetched
        c = self.builder_config
        return {
            "train": self._generate_examples(range(c.train)),
            "test": self._generate_examples(range(TEST_SEEDS, TEST_SEEDS + c.test)),
        }

    def _generate_examples(self, seeds: range) -> Iterator[tuple[int, dict[str, Any]]]:
        points = self.builder_config.num_points
        chunks = [seeds[i : i + CHUNK] for i in range(0, len(seeds), CHUNK)]
        if len(chunks) <= 4:  # starting workers would take longer than the work
            made = [records(chunk, points) for chunk in chunks]
        else:
            with workers.pool() as pool:
                made = list(pool.map(records, chunks, [points] * len(chunks)))
        for chunk, batch in zip(chunks, made, strict=True):
            yield from zip(chunk, batch, strict=True)
