"""The stream of training batches: a function of (seed, step), whatever the restarts or threads."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import numpy as np

from openshape_jax.config import Config, DataConfig
from openshape_jax.data import mining, sources, targets

PROBED = 64  # records of a data set whose features are looked at before the first step
SEARCHED = 2048  # records in which a text is looked for, at most


def draw_points(
    record: dict[str, Any], num_points: int, rng: np.random.Generator, shuffle: bool = True
) -> dict[str, np.ndarray]:
    """{"xyz" (N, 3) uint16, "rgb" (N, 3) uint8}: points drawn without replacement, in random order.

    A record with fewer points gives all of them, repeated until there are N. Without `shuffle` the order is
    left to the device, and a record of just N points is passed on as it is.
    """
    stored = sources.num_points_of(record)
    if stored == num_points and not shuffle:
        return {"xyz": record["xyz"], "rgb": record["rgb"]}
    if stored > num_points:
        order = rng.choice(stored, num_points, replace=False, shuffle=shuffle)
    else:
        order = np.resize(rng.permutation(stored) if shuffle else np.arange(stored), num_points)
    return {"xyz": record["xyz"][order], "rgb": record["rgb"][order]}


def points_to_embed(record: dict[str, Any], index: int, num_points: int) -> dict[str, np.ndarray]:
    """`draw_points` of record `index`, always the same, with "count": () int32, how many are not repeated."""
    points = draw_points(record, num_points, np.random.default_rng(index))
    return {**points, "count": np.asarray(min(sources.num_points_of(record), num_points), np.int32)}


def _open(name: str, split: str, config: DataConfig) -> sources.Records:
    records, _ = sources.open_split(name, split, config.data_dir)
    if records.num_bytes > config.in_memory_limit * 1e9:
        return records
    kept = sources.InMemory(records)
    useful = [i for i in range(len(kept)) if targets.has_target(kept[i], config)]
    if not useful:
        raise ValueError(
            f"no shape of {name!r} has a text of data.text_sources {config.text_sources} or an image "
            "feature: there is nothing to train on."
        )
    if config.workers:  # each reads for itself: a copy of the set for each would fill the memory
        return sources.Subset(records, np.array(useful))
    return sources.InMemory(kept, useful)


def dataset(config: Config, host: int = 0, hosts: int = 1) -> Any:
    """A grain MapDataset whose element `step` is this host's rows of the global batch of that step.

    Rows: uid, xyz, rgb (codes), text, has_text, text_id, text_ids, image, has_image; with data.hard_negatives
    also group, the same number for the members of a group.

    Raises:
      sources.DatasetMissing: a data set is not built. FileNotFoundError: no file of neighbours.
      ValueError: nothing to train on, or no neighbours of it.
    """
    import grain

    names = config.data.datasets
    splits = config.data.splits or (config.data.split,) * len(names)
    opened = [_open(name, split, config.data) for name, split in zip(names, splits, strict=True)]
    # Salted by the name, so that every data set has its own order. The source is a range, as grain measures
    # the size of whatever a source gives: of a record that takes longer than decoding it.
    parts = [
        grain.MapDataset.range(len(records))
        .seed(config.seed ^ targets.text_hash(name))
        .shuffle()
        .repeat(None)
        .map(records.__getitem__)
        for name, records in zip(names, opened, strict=True)
    ]
    weights = config.data.weights or tuple(float(len(r)) for r in opened)
    mixed = parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, list(weights))
    width = config.model.embed_dim
    for name, records in zip(names, opened, strict=True):
        _check_width(name, records, width)
    _check_words(config.data, opened)

    def example(record: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {
            **draw_points(record, config.data.num_points, rng, not config.data.device_shuffle),
            **targets.choose(record, config.data, width, width, rng),
            "uid": np.array(record["uid"]),
        }

    def member(row: tuple[dict[str, Any], int], rng: np.random.Generator) -> dict[str, Any]:
        return {**example(row[0], rng), "group": np.int32(row[1])}

    # Random choices come before the slice: they belong to the global stream, not to a host.
    stream: Any
    if config.data.hard_negatives:
        stream = _mined(config, opened[0]).seed(config.seed).random_map(member)
    else:
        stream = mixed.seed(config.seed).random_map(example)
    mine = config.batch_size // hosts
    if hosts > 1:  # the rows that the host's devices own (sharding.put_batch)
        whole = stream

        def row(index: int) -> dict[str, Any]:
            step, place = divmod(index, mine)
            return whole[step * config.batch_size + host * mine + place]

        stream = grain.MapDataset.range(sys.maxsize).map(row)
    return stream.batch(mine, drop_remainder=True)


def _mined(config: Config, records: sources.Records) -> Any:
    """A MapDataset of (record, group) rows: seeds in shuffled order, each followed by its group's members."""
    import grain

    size, batch_size = config.data.group_size, config.batch_size
    salt = targets.text_hash(config.data.datasets[0])
    groups = mining.Groups(mining.read(config.data.hard_negatives), sources.uids(records), size)
    if short := groups.num_short():
        print(
            f"{short} of {len(records)} shapes have fewer than {size - 1} neighbours among them: "
            "shapes at random fill their groups."
        )
    seeds = grain.MapDataset.range(len(records)).seed(config.seed ^ salt)
    drawn: Any = seeds.shuffle().repeat(None).random_map(groups.draw)

    def row(index: int) -> tuple[dict[str, Any], int]:
        return records[int(drawn[index // size][index % size])], index % batch_size // size

    return grain.MapDataset.range(sys.maxsize).map(row)


def _first(records: sources.Records, most: int) -> Iterator[dict[str, Any]]:
    return (records[i] for i in range(min(len(records), most)))


def _check_width(name: str, records: sources.Records, width: int) -> None:
    for record in _first(records, PROBED):
        texts = [f for t in record["texts"] for f in (t.feature, t.prompt_feature) if f is not None]
        for kind, rows in (("text", texts), ("image", record["image_features"])):
            if len(rows) and len(rows[0]) != width:
                raise ValueError(
                    f"data set {name!r} has {kind} features of width {len(rows[0])} but model.embed_dim is "
                    f"{width}; set --config.model.embed_dim={len(rows[0])}."
                )


def _check_words(config: DataConfig, opened: Sequence[sources.Records]) -> None:
    """Returns if the sources of texts that were asked for are there: images would hide a misspelt one."""
    if not config.text_sources:
        return
    found: set[str] = set()
    for record in (record for records in opened for record in _first(records, SEARCHED)):
        if targets.has_text(record, config):
            return
        found |= {t.source for t in record["texts"]}
    raise ValueError(
        f"the first shapes of {', '.join(config.datasets)} have no text of data.text_sources "
        f"{config.text_sources}; theirs are of {', '.join(sorted(found)) or 'no source'} (blip and msft are "
        "asked for as caption)."
    )


def batches(
    config: Config, first_step: int, host: int = 0, hosts: int = 1
) -> Generator[dict[str, np.ndarray]]:
    """The host's batches of steps `first_step`, `first_step` + 1, ... without end, read ahead.

    By a thread, or by `config.data.workers` processes, which make the same batches. Close the generator to
    stop them.
    """
    import grain
    from absl import flags

    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=config.data.prefetch)
    ahead = dataset(config, host, hosts)[first_step:].to_iter_dataset(options)
    if config.data.workers:
        if not flags.FLAGS.is_parsed():  # grain hands them to its workers
            flags.FLAGS.mark_as_parsed()
        each = max(config.data.prefetch // config.data.workers, 1)
        ahead = ahead.mp_prefetch(grain.MultiprocessingOptions(config.data.workers, each))
    stream = iter(ahead)
    try:
        yield from stream
    finally:
        stream.close()
