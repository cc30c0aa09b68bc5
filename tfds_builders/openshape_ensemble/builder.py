"""The TFDS builder of OpenShape's released training data (ArrayRecord; needs no TensorFlow)."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from openshape_jax.data import schema
from tfds_builders.openshape_ensemble import layout, records
from tfds_builders.sharded import ShardedBuilder

WIDTH = 1280  # of every text and image feature
TEXT_SPACE = "OpenCLIP ViT-bigG-14 (laion2b_s39b_b160k)"


@dataclasses.dataclass
class EnsembleConfig(tfds.core.BuilderConfig):
    """Which data sets, by the release's names; none: all that are there."""

    datasets: tuple[str, ...] = ()


class OpenshapeEnsemble(ShardedBuilder):
    """Objaverse, ShapeNetCore, ABO and 3D-FUTURE as OpenShape released them; see README.md."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First release."}
    BUILDER_CONFIGS: ClassVar = [
        EnsembleConfig(name="all", description="all four data sets, or those whose folder is there"),
        EnsembleConfig(name="objaverse", description="about 800,000 shapes", datasets=("Objaverse",)),
        EnsembleConfig(name="shapenet", description="52,500 shapes", datasets=("ShapeNet",)),
        EnsembleConfig(name="abo", description="8,000 shapes", datasets=("ABO",)),
        EnsembleConfig(name="future3d", description="9,900 shapes", datasets=("3D-FUTURE",)),
    ]
    contents: layout.Contents

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Coloured point clouds with CLIP features of their texts and renders.",
            features=schema.features(text_dim=WIDTH, image_dim=WIDTH),
            homepage="https://huggingface.co/datasets/OpenShape/openshape-training-data",
            license="Of each data set and, in Objaverse, of each author: see README.md.",
            metadata=tfds.core.MetadataDict(
                text_space=TEXT_SPACE,
                up="z",
                axes="x, -z, y of the released files: a rotation, where OpenShape mirrors",
                unit_features=False,  # kept as released: OpenShape normalises in its loss, as we do
            ),
        )

    def _items(self, dl_manager: Any) -> Mapping[str, Mapping[str, layout.Item]]:
        del dl_manager  # nothing is fetched
        assert isinstance(self.builder_config, EnsembleConfig)
        self.contents = found = layout.read(self.source, self.builder_config.datasets)
        parts = ", ".join(f"{name} {count:,}" for name, count in found.counts.items())
        print(f"{len(found.stored['train']):,} training shapes: {parts}")
        if found.absent:
            line = "!" * 78
            names = "\n".join(f"  {name}: {count:,} shapes" for name, count in found.absent.items())
            print(f"{line}\nNOT in this build, for there is no folder of them:\n{names}\n{line}")
        assert self.info.metadata is not None
        attribution = [
            {"creator": f"authors of {name}", "license": "see README.md", "library": name, "count": count}
            for name, count in found.counts.items()
        ]
        self.info.metadata.update(shapes=found.counts, absent=found.absent, attribution=attribution)
        return found.stored

    def _loader(self) -> records.Load:
        return records.Load(WIDTH, self.contents.fingerprint)

    def _subsets(self) -> Mapping[str, Collection[str]]:
        return self.contents.subsets
