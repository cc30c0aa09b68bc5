"""How fast the input pipeline delivers ready batches, beside reading the raw bytes alone.

    python experiments/input_pipeline/run.py [--shapes 4096] [--records 50000] [--data_dir DIR]

Makes a synthetic data set of full-size records (10,000 points, 12 image features of 1,280, five texts with
both embeddings: 147 KB), then measures in turns: ArrayRecord alone, read record by record in random order,
and the training stream (random order, targets drawn, batches of 64 ready for the device), on one core and,
with a worker process on each (data.workers), on all cores. Both once with the files in the page cache, and
once from the disk (pages are dropped before each turn).
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from openshape_jax import runtime
from openshape_jax.config import Config
from openshape_jax.data import pipeline, schema, sources
from tfds_builders import sharded

WIDTH = 1280
BATCH = 64
SOURCES = ("metadata", "blip", "msft", "retrieval", "retrieval")


def full_record(n: int) -> dict:
    """Shape `n`: random points on rays, colours and features."""
    rng = np.random.default_rng(n)

    def feature() -> np.ndarray:
        return rng.normal(size=WIDTH).astype(np.float32) / WIDTH**0.5

    words = f"shape {n}, in words of about the length that a caption of a picture has"
    xyz = rng.normal(size=(10_000, 3))
    xyz *= rng.random((10_000, 1)) / np.linalg.norm(xyz, axis=1, keepdims=True)
    return schema.encode(
        uid=f"shape-{n}",
        dataset="synthetic",
        xyz=xyz,
        rgb=rng.random((10_000, 3)),
        texts=[schema.Text(words, source, feature(), feature()) for source in SOURCES],
        text_dim=WIDTH,
        image_features=np.stack([feature() for _ in range(12)]),
        image_dim=WIDTH,
    )


class FullRecords(sharded.ShardedBuilder, skip_registration=True):
    """Synthetic records of the size of the released data's."""

    name = "full_records"
    VERSION = tfds.core.Version("1.0.0")
    shapes = 4096

    def _info(self) -> tfds.core.DatasetInfo:
        features = schema.features(text_dim=WIDTH, image_dim=WIDTH)
        return tfds.core.DatasetInfo(builder=self, features=features, metadata=tfds.core.MetadataDict())

    def _items(self, dl_manager: object) -> dict[str, dict[str, int]]:
        return {"train": {f"shape-{n}": n for n in range(self.shapes)}}

    def _loader(self) -> sharded.Loader:
        return full_record


def raw_rate(source: object, count: int, rng: np.random.Generator) -> float:
    """Records a second of ArrayRecord alone, one by one in random order."""
    order = [int(i) for i in rng.permutation(len(source))[:count]]  # type: ignore[arg-type]
    started = time.perf_counter()
    for index in order:
        source[index]  # type: ignore[index]
    return count / (time.perf_counter() - started)


def stream_rate(config: Config, first: int, count: int) -> float:
    """Shapes a second of the stream that training reads, once it flows."""
    steps = count // BATCH
    with closing(pipeline.batches(config, first)) as stream:
        for _ in range(config.data.prefetch + 1):
            next(stream)
        started = time.perf_counter()
        for _ in range(steps):
            next(stream)
        return steps * BATCH / (time.perf_counter() - started)


def drop_pages(folder: Path) -> None:
    """Makes the kernel forget the content of the files."""
    for path in folder.glob("*array_record*"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resident_mb() -> float:
    """Memory of this process now, in MB, without the pages of the files it reads."""
    pages = Path("/proc/self/statm").read_text().split()
    return (int(pages[1]) - int(pages[2])) * resource.getpagesize() / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", type=int, default=4096, help="of the synthetic set (150 KB each)")
    parser.add_argument("--records", type=int, default=50_000, help="read while memory is watched")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--data_dir", default="/tmp/openshape_input_pipeline")
    args = parser.parse_args()
    builder = FullRecords(data_dir=args.data_dir, file_format="array_record")
    builder.shapes = args.shapes
    if not Path(builder.data_dir).is_dir():
        builder.download_and_prepare()
    runtime.keep_freed_memory()  # as a training does
    cores = os.sched_getaffinity(0)

    config = Config(batch_size=BATCH)
    config.data.datasets, config.data.data_dir = ("full_records",), args.data_dir
    config.data.device_shuffle, config.data.in_memory_limit = True, 0.0
    records, info = sources.open_split("full_records", "train", args.data_dir)
    size = info.splits["train"].num_bytes / len(records)
    source = records._source  # type: ignore[union-attr]  # serialised
    rng = np.random.default_rng(0)
    print(
        f"{len(records)} records of {size / 1e3:.1f} KB, {len(cores)} cores, medians of {args.rounds} turns"
    )
    for place in ("page cache", "disk"):
        raw_rate(source, len(records), rng)  # into the page cache
        for workers in (0, len(cores)):
            config.data.workers, config.data.prefetch = workers, max(4, 4 * workers)
            os.sched_setaffinity(0, cores if workers else {max(cores)})
            raw, stream = [], []
            for turn in range(args.rounds):
                if place == "disk":
                    drop_pages(Path(builder.data_dir))
                raw.append(raw_rate(source, 1024, rng))
                if place == "disk":
                    drop_pages(Path(builder.data_dir))
                stream.append(stream_rate(config, 50 * turn, 1024 * max(workers, 1)))
            share = statistics.median(b / a for a, b in zip(raw, stream, strict=True))
            alone, ready = statistics.median(raw), statistics.median(stream)
            how = f"{workers} workers" if workers else "one core"
            print(
                f"{place}, {how}: ArrayRecord alone {alone:.0f} records/s, stream {ready:.0f} shapes/s "
                f"({share:.0%})"
            )
    config.data.workers = 0
    marks = []
    with closing(pipeline.batches(config, 0)) as batches:
        for step in range(args.records // BATCH + 1):
            next(batches)
            if step % (args.records // BATCH // 5) == 0:
                marks.append(f"{step * BATCH}: {resident_mb():.0f}")
    print(f"memory in MB after so many records: {', '.join(marks)}")


if __name__ == "__main__":
    main()
