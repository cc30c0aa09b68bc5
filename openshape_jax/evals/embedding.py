"""Embedding every shape of a split, once per condition: the host prepares batches while the device works."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from openshape_jax.data import schema, sources
from openshape_jax.data.pipeline import draw_points
from openshape_jax.evals.conditions import Condition, changed

# (xyz (B, N, 3), rgb (B, N, 3), count (B,)) -> (B, D) unit vectors, of NumPy or on the device; points after
# the first `count` of a cloud repeat them in order. Stored codes (uint16, uint8); where a condition changes
# clouds, float32 coordinates and colours in [0, 1], and the keyword normalize=False where it says so.
Embed = Callable[..., Any]
LONG = 5000  # shapes from which a progress bar is shown
GRAY_CODE = round(schema.GRAY * 255)
AHEAD = 2  # batches that are ready before the device asks


class Embedded(NamedTuple):
    """The labelled shapes of a split, in the order that they are stored."""

    uids: list[str]
    labels: list[str]
    emb: np.ndarray  # (n, D) float32 unit vectors
    images: np.ndarray | None = None  # (n, W) the first image feature of each, NaN where it has none


def open_labelled(dataset: str, split: str, data_dir: str = "") -> tuple[sources.Records, np.ndarray, Any]:
    """(records, indices of those to embed, tfds DatasetInfo) of a split with labels.

    A small split is read once, to find damage before a long job, and only its labelled records are listed.

    Raises:
      DatasetMissing: not built. ValueError: no such split, an empty one, or no labelled shape in it.
    """
    records, info = sources.open_split(dataset, split, data_dir)
    total = len(records)
    if total == 0:
        raise ValueError(
            f"the split {split!r} of data set {dataset!r} is empty: take another of its splits "
            f"({', '.join(info.splits)}), or build it again from sources that have shapes."
        )
    labelled = (index for index in range(total) if records[index]["label"])
    rows = np.fromiter(labelled, np.int64) if total < LONG else np.arange(total)
    if len(rows) == 0 or (total >= LONG and not any(records[i]["label"] for i in range(total))):
        raise ValueError(f"data set {dataset!r} has no labelled shape in its split {split!r}.")
    return records, rows, info


def prepared(
    record: dict[str, Any],
    index: int,
    num_points: int,
    draw: int = 0,
    condition: Condition | None = None,
    gray: bool = False,
) -> dict[str, np.ndarray]:
    """{"xyz" (N, 3), "rgb" (N, 3), "count" () int32}: the points of record `index` as `Embed` takes them.

    Args:
      draw: which points are drawn, and in which order; 0: as a training's own evaluation does.
      condition: changes the cloud; None, or a clean one: codes as they are stored.
      gray: all colours are the grey that stands for none.
    """
    stored = min(sources.num_points_of(record), num_points)
    points = draw_points(record, num_points, np.random.default_rng([index, draw] if draw else index))
    if gray:
        points["rgb"] = np.full_like(points["rgb"], GRAY_CODE)
    if condition is None or condition.clean:
        return {**points, "count": np.asarray(stored, np.int32)}
    xyz = schema.dequantize_xyz(points["xyz"][:stored])
    rgb = points["rgb"][:stored].astype(np.float32) / np.float32(255)
    xyz, rgb = changed(condition, xyz, rgb, (index, draw))
    count = np.asarray(len(xyz), np.int32)
    return {"xyz": np.resize(xyz, (num_points, 3)), "rgb": np.resize(rgb, (num_points, 3)), "count": count}


def every(
    records: sources.Records,
    rows: np.ndarray,
    embed: Embed,
    *,
    batch_size: int,
    num_points: int,
    draw: int = 0,
    condition: Condition | None = None,
    gray: bool = False,
    with_images: bool = False,
    name: str = "",
) -> Embedded:
    """All labelled shapes of a split, embedded.

    A thread reads, draws and changes the clouds of the next batches while the device works on this one; the
    last batch is filled up to the common size.

    Args:
      rows: indices of the records to read; those without a label are left out of the result.
      draw, condition, gray: as `prepared`. with_images: image features are kept. name: for the progress bar.
    """
    options = {} if condition is None or condition.normalized else {"normalize": False}
    uids: list[str] = []
    labels: list[str] = []
    images: list[np.ndarray] = []
    out: list[np.ndarray] = []
    waiting: list[tuple[Any, np.ndarray]] = []

    def load(index: int) -> dict[str, Any]:
        record = records[index]
        points = prepared(record, index, num_points, draw, condition, gray)
        seen = np.asarray(record["image_features"], np.float32)
        first = seen[0] if len(seen) else np.full(seen.shape[-1], np.nan, np.float32)
        extra = {"image": first} if with_images else {}
        return {"uid": np.array(record["uid"]), "label": np.array(record["label"]), **points, **extra}

    bar = tqdm(total=len(rows), desc=name, unit="shape", disable=len(rows) < LONG, leave=False)
    with closing(_batches(rows, load, batch_size)) as stream, bar:
        for batch in stream:
            full = len(batch["uid"])
            labelled = np.flatnonzero(batch["label"] != "")
            uids += [str(batch["uid"][i]) for i in labelled]
            labels += [str(batch["label"][i]) for i in labelled]
            if with_images:
                images.append(batch["image"][labelled])
            padded = (
                np.concatenate([batch[key], np.repeat(batch[key][-1:], batch_size - full, 0)])
                if full < batch_size
                else batch[key]
                for key in ("xyz", "rgb", "count")
            )
            waiting.append((embed(*padded, **options), labelled))
            if len(waiting) > 1:
                emb, chosen = waiting.pop(0)
                out.append(np.asarray(emb)[chosen])
            bar.update(full)
    out += [np.asarray(emb)[chosen] for emb, chosen in waiting]
    return Embedded(uids, labels, np.concatenate(out), np.concatenate(images) if with_images else None)


def _batches(rows: np.ndarray, load: Callable[[int], dict[str, Any]], size: int) -> Generator[dict[str, Any]]:
    """Batches of load(row) in order, the last may be short; made by one thread, AHEAD of their use."""
    import grain

    data = grain.MapDataset.range(len(rows)).map(lambda i: load(int(rows[i])))
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=AHEAD)
    stream = iter(data.batch(size, drop_remainder=False).to_iter_dataset(options))
    try:
        yield from stream
    finally:
        stream.close()
