"""How long an evaluation of ModelNet40's size takes with PointBERT-S, and how much of it the device computes.

    python experiments/eval_speed/run.py [--shapes 2468] [--batch_size 32] [--data_dir DIR]

Makes a synthetic data set of 2,468 shapes of 10,000 points (222 MB) with class vectors of width 1,280, and
takes an untrained encoder of configs/pointbert_s.py: points, patches and operations are as many as in the
real thing. Then, in one process: the whole of `openshape eval --suite zero_shot`; the device alone (one batch
that is ready, again and again); the host alone (every batch read, drawn and stacked, nothing embedded).
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from openshape_jax import api, runtime, state, train
from openshape_jax import config as config_lib
from openshape_jax.data import class_features, schema
from openshape_jax.evals import embedding, suite
from tfds_builders import sharded
from tfds_builders.modelnet40.builder import CLASSES

ROOT = Path(__file__).parents[2]
WIDTH, POINTS = 1280, 10_000


def shape(n: int) -> dict[str, Any]:
    """Shape `n`: random points on rays, grey as ModelNet40's."""
    rng = np.random.default_rng(n)
    xyz = rng.normal(size=(POINTS, 3))
    xyz *= rng.random((POINTS, 1)) / np.linalg.norm(xyz, axis=1, keepdims=True)
    label = CLASSES[n % len(CLASSES)]
    return schema.encode(
        uid=f"shape-{n}",
        dataset="eval_speed",
        xyz=xyz,
        rgb=np.full((POINTS, 3), 100 / 255),
        texts=[schema.Text(label, "class")],
        text_dim=WIDTH,
        image_dim=WIDTH,
        meta={"name": f"shape-{n}", "label": label},
    )


class EvalSpeed(sharded.ShardedBuilder, skip_registration=True):
    """Synthetic shapes of the size of ModelNet40's test split."""

    name = "eval_speed"
    VERSION = tfds.core.Version("1.0.0")
    shapes = 2468

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=schema.features(text_dim=WIDTH, image_dim=WIDTH),
            metadata=tfds.core.MetadataDict(classes=list(CLASSES)),
        )

    def _items(self, dl_manager: object) -> dict[str, dict[str, int]]:
        return {"test": {f"shape-{n}": n for n in range(self.shapes)}}

    def _loader(self) -> sharded.Loader:
        return shape

    def _finish(self, folder: Path) -> None:
        rows = np.random.default_rng(0).normal(size=(len(CLASSES), WIDTH))
        class_features.save(folder, class_features.of_rows(CLASSES, rows, "eval_speed"))


def clocks() -> np.ndarray:
    """(seconds on the wall, seconds of processor time of this process)."""
    return np.array([time.perf_counter(), time.process_time()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", type=int, default=2468)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--data_dir", default="/tmp/openshape_eval_speed")
    args = parser.parse_args()
    builder = EvalSpeed(data_dir=args.data_dir, file_format="array_record")
    builder.shapes = args.shapes
    if not Path(builder.data_dir).is_dir():
        builder.download_and_prepare()
    runtime.prepare()
    config = config_lib.load(str(ROOT / "configs/pointbert_s.py"))
    weights = state.evaluated(state.init(config))
    model = api.Model(weights, {**train.describe(config), "logit_scale": 14.28}, 0)
    config.eval.datasets, config.eval.batch_size = ("eval_speed",), args.batch_size
    records, rows, _ = embedding.open_labelled("eval_speed", "test", args.data_dir)
    batches = -(-len(rows) // args.batch_size)
    print(f"{len(rows)} shapes of {POINTS}, {batches} batches of {args.batch_size}, {os.cpu_count()} cores")

    rows_of_a_batch = np.resize(rows, args.batch_size)
    clouds = [embedding.prepared(records[int(i)], int(i), POINTS) for i in rows_of_a_batch]
    batch = [np.stack([cloud[key] for cloud in clouds]) for key in ("xyz", "rgb", "count")]
    started = clocks()
    np.asarray(model.embed_stored(*batch))
    compiling = clocks() - started

    started = clocks()
    suite.run(model, config.eval, args.data_dir)
    whole = clocks() - started

    started = clocks()
    for _ in range(batches):
        np.asarray(model.embed_stored(*batch))
    device = clocks() - started

    started = clocks()
    nothing = np.zeros((args.batch_size, WIDTH), np.float32)
    embedding.every(records, rows, lambda *points: nothing, batch_size=args.batch_size, num_points=POINTS)
    host = clocks() - started

    print(f"{'':<34}{'wall s':>8}{'CPU s':>8}")
    for name, seconds in (("first batch, with compiling", compiling), ("whole evaluation", whole),
                          ("device alone", device), ("host alone", host)):  # fmt: skip
        print(f"{name:<34}{seconds[0]:8.1f}{seconds[1]:8.1f}")
    print(f"{len(rows) / whole[0]:.0f} shapes a second; device alone / whole: {device[0] / whole[0]:.0%}")
    print(f"{whole[0] + compiling[0]:.0f} s with compiling; the aim is 240 s")


if __name__ == "__main__":
    main()
