"""The base of the builders of big data sets: written shard by shard, in parallel, and gone on with.

Every shard is a function of its items alone: an interrupted build keeps the shards that are done and ends
byte-identical to one that ran through, on one core, on many, or on a Beam runner.
"""

from __future__ import annotations

import abc
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder

from openshape_jax.data import files, workers

SHARD_SIZE = 512  # items: at 150 KB each a file is below 80 MB, and an interruption costs at most so many
CHECKED = 32  # rejects of an earlier try that are read again at once
Loader = Callable[[Any], dict[str, Any]]  # item -> record (`schema.encode`); ValueError rejects the item


class Shard(NamedTuple):
    """One file to write: all that a worker needs."""

    name: str  # "train-00012"
    uids: Sequence[str]
    items: Sequence[Any]
    loader: Loader
    features: Any  # tfds FeaturesDict
    folder: str


class Written(NamedTuple):
    """What became of a shard: its sidecar's content."""

    uids: list[str]  # of the records, in their order
    num_bytes: int
    rejects: list[dict[str, str]]  # {"uid", "error"}

    @classmethod
    def read(cls, sidecar: Path) -> Written:
        """The content of a sidecar."""
        return cls(**json.loads(sidecar.read_text(encoding="utf-8")))


def write_shard(shard: Shard) -> Written:
    """Writes FOLDER/NAME.array_record and then its sidecar NAME.json, which says that it is complete.

    Raises:
      OSError: the disk is full, or a source cannot be reached for now; the shard is to be made again.
    """
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    serializer = ExampleSerializer(shard.features.get_serialized_info())
    path = Path(shard.folder, f"{shard.name}.array_record")
    attempt = uuid.uuid4().hex  # a cluster may run a shard twice at once, under equal process numbers
    unfinished = path.with_suffix(f".{attempt}.tmp")
    written = Written([], 0, [])
    size = 0
    try:
        with files.full_disk_told(shard.folder):
            writer = ArrayRecordWriter(str(unfinished), "group_size:1")
            try:
                for uid, item in zip(shard.uids, shard.items, strict=True):
                    try:
                        record = shard.loader(item)
                    except (ValueError, FileNotFoundError) as error:
                        written.rejects.append({"uid": uid, "error": str(error)[:500]})
                        continue
                    example = serializer.get_tf_example(shard.features.encode_example(record))
                    # Maps of a protobuf have an order of their own in every process, unless told not to.
                    data = example.SerializeToString(deterministic=True)
                    writer.write(data)
                    written.uids.append(uid)
                    size += len(data)
            finally:
                writer.close()
        written = written._replace(num_bytes=size)
        os.replace(unfinished, path)
        files.write(path.with_suffix(".json"), json.dumps(written._asdict()))
    finally:
        unfinished.unlink(missing_ok=True)
    return written


def run_local(shards: Sequence[Shard], jobs: int) -> Iterator[tuple[str, Written]]:
    """(name, what was written) of every shard as it is done, made by `jobs` processes."""
    if jobs <= 1 or len(shards) <= 1:
        for shard in shards:
            yield shard.name, write_shard(shard)
        return
    for shard, written in workers.in_processes(write_shard, shards, jobs):
        yield shard.name, written


class TooManyRejects(ValueError):
    """More shapes were unusable than the build allows; the message names the list."""


class ShardedBuilder(FileReaderBuilder, skip_registration=True):
    """A TFDS builder whose subclasses say what the items are and how one becomes a record.

    Attributes (`openshape_jax.data.build.Options` sets them):
      source: folder of the raw files, "" where none was given.
      jobs: processes; 0: one for each core.
      max_reject_fraction: share of unusable shapes above which the build fails.
      runner: (shards) -> iterable of (name, Written), e.g. on a Beam cluster; None: processes here.
    """

    source = ""
    jobs = 0
    max_reject_fraction = 0.01
    runner: Callable[[Sequence[Shard]], Iterable[tuple[str, Written]]] | None = None

    @abc.abstractmethod
    def _items(self, dl_manager: Any) -> Mapping[str, Mapping[str, Any]]:
        """{split: {uid: item}}; an item can be pickled.

        Raises:
          SourceNotFound: there are no raw files.
        """

    @abc.abstractmethod
    def _loader(self) -> Loader:
        """item -> record; can be pickled."""

    def _subsets(self) -> Mapping[str, Collection[str]]:
        """{name: uids}: further splits, each a part of "train" that is not stored again."""
        return {}

    def _finish(self, folder: Path) -> None:
        """Writes what else belongs to the data set, e.g. features of class names."""

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        del download_config
        folder = self.data_path
        partial = Path(folder.parent, f"partial.{self.version}")
        partial.mkdir(parents=True, exist_ok=True)
        with _locked(partial):
            items = self._items(dl_manager)
            shards = self._plan(items, partial)
            _discard_other_plan(partial, shards)
            written = self._write(shards, partial)
            self._collect(shards, written, partial, Path(folder))
        shutil.rmtree(partial)

    def _plan(self, items: Mapping[str, Mapping[str, Any]], partial: Path) -> list[Shard]:
        loader, features = self._loader(), self.info.features
        shards = []
        for split, by_uid in items.items():
            # Ordered by hash: every shard is a fair sample, so none takes much longer than another.
            order = sorted(by_uid, key=lambda uid: (hashlib.blake2b(uid.encode()).digest(), uid))
            for first in range(0, len(order), SHARD_SIZE):
                uids = order[first : first + SHARD_SIZE]
                name = f"{split}-{first // SHARD_SIZE:05d}"
                shards.append(Shard(name, uids, [by_uid[u] for u in uids], loader, features, str(partial)))
        return shards

    def _write(self, shards: Sequence[Shard], partial: Path) -> dict[str, Written]:
        from tqdm import tqdm

        with ThreadPoolExecutor(CHECKED) as pool:
            earlier = {shard.name: _earlier(shard, pool) for shard in shards}
        done = {name: written for name, written in earlier.items() if written}
        missing = [shard for shard in shards if shard.name not in done]
        total = sum(len(shard.uids) for shard in shards)
        size = {shard.name: len(shard.uids) for shard in shards}
        if done:
            print(f"{len(done)} of {len(shards)} shards are there from an earlier, interrupted build.")
        if self.runner:
            results: Iterable[tuple[str, Written]] = self.runner(missing)
        else:
            results = run_local(missing, self.jobs or os.cpu_count() or 1)
        with tqdm(total=total, initial=sum(size[n] for n in done), unit="shape", desc=self.name) as bar:
            for name, result in results:
                done[name] = result
                bar.update(size[name])
                bar.set_postfix(rejected=sum(len(w.rejects) for w in done.values()))
        return done

    def _collect(
        self, shards: Sequence[Shard], written: Mapping[str, Written], partial: Path, folder: Path
    ) -> None:
        """Moves the shards that hold anything to `folder` under their final names, and describes them.

        Raises:
          TooManyRejects: nothing is moved.
        """
        rejects = [reject for shard in shards for reject in written[shard.name].rejects]
        total = sum(len(shard.uids) for shard in shards)
        lines = "".join(json.dumps(reject) + "\n" for reject in rejects)
        if total == len(rejects) or len(rejects) > self.max_reject_fraction * total:
            listed = partial / "rejects.jsonl"
            listed.write_text(lines, encoding="utf-8")
            first = "; ".join(f"{r['uid']}: {r['error']}" for r in rejects[:3])
            raise TooManyRejects(
                f"{len(rejects)} of {total} shapes of {self.name!r} are unusable, more than the allowed "
                f"{self.max_reject_fraction:.1%} (first: {first or 'there is no shape at all'}). All are "
                f"listed in {listed}. Mend the source, or allow more with --max-reject-fraction."
            )
        if rejects:
            (folder / "rejects.jsonl").write_text(lines, encoding="utf-8")
        splits = []
        for split in dict.fromkeys(shard.name.rpartition("-")[0] for shard in shards):
            mine = [s for s in shards if s.name.rpartition("-")[0] == split and written[s.name].uids]
            if not mine:
                raise TooManyRejects(f"no shape of the split {split!r} of {self.name!r} is usable.")
            template = tfds.core.ShardedFileTemplate(
                data_dir=folder, dataset_name=self.name, split=split, filetype_suffix="array_record"
            )
            for index, shard in enumerate(mine):
                target = template.sharded_filepath(shard_index=index, num_shards=len(mine))
                os.replace(partial / f"{shard.name}.array_record", target)
            uids = [uid for shard in mine for uid in written[shard.name].uids]
            (folder / f"uids.{split}.txt").write_text("\n".join(uids) + "\n", encoding="utf-8")
            splits.append(
                tfds.core.SplitInfo(
                    name=split,
                    shard_lengths=[len(written[shard.name].uids) for shard in mine],
                    num_bytes=sum(written[shard.name].num_bytes for shard in mine),
                    filename_template=template,
                )
            )
            if split == "train":
                self._write_subsets(folder, uids, {reject["uid"] for reject in rejects})
        self.info.set_splits(tfds.core.SplitDict(splits))
        if self.info.metadata is not None:
            self.info.metadata["skipped"] = len(rejects)
        self._finish(folder)

    def _write_subsets(self, folder: Path, uids: Sequence[str], rejected: Collection[str]) -> None:
        at = {uid: index for index, uid in enumerate(uids)}
        for name, wanted in self._subsets().items():
            unknown = [uid for uid in wanted if uid not in at and uid not in rejected]
            if unknown:
                raise ValueError(
                    f"the split {name!r} names {len(unknown)} shapes that are not in the data, first "
                    f"{unknown[0]!r}: fetch the missing files, or take that split's file away."
                )
            rows = np.array(sorted(at[uid] for uid in wanted if uid in at), np.int64)
            np.save(folder / f"subset.{name}.npy", rows)


def _earlier(shard: Shard, pool: ThreadPoolExecutor) -> Written | None:
    """What an earlier try wrote of the shard, None where it has to be made.

    One with rejects is made again if any of them is usable by now: the source may have been mended since.
    """
    path = Path(shard.folder, f"{shard.name}.json")
    if not path.is_file():
        return None
    written = Written.read(path)
    whole = path.with_suffix(".array_record").is_file()  # not if a build failed after it was moved
    item_of = dict(zip(shard.uids, shard.items, strict=True)) if written.rejects else {}

    def is_usable(reject: Mapping[str, str]) -> bool:
        try:
            shard.loader(item_of[reject["uid"]])
        except (ValueError, FileNotFoundError):
            return False
        return True

    if whole and not any(pool.map(is_usable, written.rejects)):
        return written
    path.unlink()
    return None


def _discard_other_plan(partial: Path, shards: Sequence[Shard]) -> None:
    """Deletes shards of an interrupted build that had other items; they could not be gone on with."""
    digest = hashlib.blake2b()
    for shard in shards:
        digest.update(json.dumps([shard.name, list(shard.uids), repr(shard.loader)]).encode())
    plan, mine = partial / "plan.txt", digest.hexdigest()
    if plan.is_file() and plan.read_text() == mine:
        return
    old = [p for p in partial.iterdir() if p.suffix in (".array_record", ".json", ".tmp")]
    if old:
        print(f"an interrupted build in {partial} had other shapes or settings: starting again.")
    for path in old:
        path.unlink()
    plan.write_text(mine)


@contextlib.contextmanager
def _locked(partial: Path) -> Iterator[None]:
    """Holds the folder for this process.

    Raises:
      OSError: another build of the same data set is running.
    """
    with open(partial / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError(
                errno.EBUSY, "another build of this data set is running; wait for it or stop it", str(partial)
            ) from error
        yield
