"""Hard-negative mining: the file of nearest neighbours, and the groups of shapes drawn from it.

The second stage of OpenShape (arXiv 2305.10764, "hard negative mining") composes a batch of seeds, each with
some of its nearest neighbours by the shape embeddings of the first stage: shapes hard to tell apart.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from openshape_jax.data import files

FORMAT = 1  # version of the file's layout
ARRAYS = ("uids", "index", "similarity", "metadata")
IDS = "id"  # metadata["names"] where the names are what follows the last "/" of our uids


class Neighbours(NamedTuple):
    """The nearest neighbours of each shape of a set, the nearest first."""

    uids: list[str]  # (N,)
    index: np.ndarray  # (N, K) int32 into uids; -1 where there is none
    similarity: np.ndarray | None  # (N, K) float16 cosines; None: the file does not tell them
    metadata: dict[str, Any]  # dataset, split, checkpoint, step, version, ...


def write(path: str | Path, neighbours: Neighbours) -> None:
    """Writes a `.npz` without pickles, whole or not at all: equal input gives equal bytes.

    It holds `uids` (UTF-8 joined by line ends) and `metadata` (JSON) as uint8, `index` and `similarity`.

    Raises:
      ValueError: arrays that do not fit together, or a uid with a line end. OSError: it cannot be written.
    """
    path, n = Path(path), len(neighbours.uids)
    index, similarity = neighbours.index, neighbours.similarity
    if similarity is None or not index.shape == similarity.shape == (n, index.shape[-1]):
        shape = None if similarity is None else similarity.shape
        raise ValueError(f"{n} uids, indices {index.shape} and similarities {shape} do not fit together.")
    if bad := [uid for uid in neighbours.uids if "\n" in uid]:
        raise ValueError(f"the uid {bad[0]!r} has a line end: rename that shape.")
    described = json.dumps({"format": FORMAT, **neighbours.metadata}, sort_keys=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.new_file(path) as file:
        np.savez_compressed(
            file,
            uids=np.frombuffer("\n".join(neighbours.uids).encode(), np.uint8),
            index=index.astype(np.int32),
            similarity=similarity.astype(np.float16),
            metadata=np.frombuffer(described.encode(), np.uint8),
        )


def read(path: str | Path) -> Neighbours:
    """The content of a file of `write`, or of OpenShape's released point_feat_knn.npy.

    Raises:
      FileNotFoundError: says what makes one. ValueError: damaged, or another kind of file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: there is no file of neighbours. Make it with `openshape mine --checkpoint DIR --data "
            f"NAME --out {path}`, or give OpenShape's point_feat_knn.npy."
        )
    if path.suffix == ".npy":
        return _read_released(path)
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            found = {name: file[name] for name in ARRAYS}
        metadata = json.loads(found["metadata"].tobytes())
        version = metadata.pop("format")
        uids = found["uids"].tobytes().decode().split("\n")
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, OSError) as error:
        raise ValueError(
            f"{path} is no file of neighbours, or damaged ({error}): make it again with `openshape mine`."
        ) from error
    if version != FORMAT:
        raise ValueError(f"{path} has format {version}; this version of openshape_jax reads format {FORMAT}.")
    neighbours = Neighbours(uids, found["index"], found["similarity"], metadata)
    _check(path, neighbours)
    return neighbours


def _check(path: Path, neighbours: Neighbours) -> None:
    n, index = len(neighbours.uids), neighbours.index
    if index.ndim != 2 or len(index) != n or not np.issubdtype(index.dtype, np.integer):
        raise ValueError(f"{path}: {n} uids but neighbours {index.shape} {index.dtype}: make it again.")
    if index.size and not -1 <= index.min() <= index.max() < n:
        raise ValueError(
            f"{path}: neighbours from {index.min()} to {index.max()} among {n} shapes: make it again."
        )


def _read_released(path: Path) -> Neighbours:
    """{"name": uids, "index": {uid: indices into name, itself among them}}, also as one array of indices."""
    from openshape_jax.data import safe_npy

    found = safe_npy.load(path)
    if not isinstance(found, Mapping) or not {"name", "index"} <= found.keys():
        raise ValueError(f"{path} is not OpenShape's point_feat_knn.npy: it has no 'name' and 'index'.")
    uids, listed = [str(name) for name in found["name"]], found["index"]
    if isinstance(listed, Mapping):
        listed = [np.asarray(listed.get(uid, ()), np.int32) for uid in uids]
    if len(listed) != len(uids):
        raise ValueError(f"{path}: {len(uids)} names but neighbours of {len(listed)}: fetch it again.")
    index = np.full((len(uids), max(map(len, listed), default=0)), -1, np.int32)
    for row, places in enumerate(listed):
        others = np.asarray(places)[np.asarray(places) != row]  # a shape leads its own list
        index[row, : len(others)] = others
    index = index[:, (index >= 0).any(0)]
    neighbours = Neighbours(uids, index, None, {"checkpoint": path.name, "names": IDS})
    _check(path, neighbours)
    return neighbours


class Groups:
    """Draws a seed's group from its neighbours.

    Raises:
      ValueError: fewer shapes than a group has members, or no shape of the set is in the file.
    """

    def __init__(self, neighbours: Neighbours, uids: Sequence[str], size: int):
        """
        Args:
          uids: of the shapes to draw from, in the order of their records.
          size: members m of a group, the seed included.
        """
        if len(uids) < size:
            raise ValueError(f"data.group_size is {size} but there are {len(uids)} shapes: lower it.")
        names = neighbours.uids
        if neighbours.metadata.get("names") == IDS:  # an id that several groups use: its first shape
            uids, names = ([uid.rpartition("/")[2] for uid in part] for part in (uids, names))
        place = {uid: i for i, uid in reversed(list(enumerate(uids)))}
        row = {uid: r for r, uid in enumerate(names)}
        rows = np.array([row.get(uid, -1) for uid in uids], np.int64)
        if not (rows >= 0).any():
            raise ValueError(
                f"none of the {len(uids)} shapes (first {uids[0]!r}) is among the {len(row)} of the file of "
                f"neighbours ({neighbours.metadata.get('dataset', 'first ' + neighbours.uids[0])}): make one "
                "of this data set with `openshape mine`."
            )
        # The last entry is for -1: no neighbour, or none in this split.
        places = np.array([*(place.get(uid, -1) for uid in names), -1], np.int32)
        self._near = places[np.where(rows[:, None] >= 0, neighbours.index[rows], -1)]  # (len(uids), K)
        self._size = size

    def num_short(self) -> int:
        """Shapes with too few neighbours for a whole group."""
        own = np.arange(len(self._near))[:, None]
        return int((((self._near >= 0) & (self._near != own)).sum(1) < self._size - 1).sum())

    def draw(self, seed: int, rng: np.random.Generator) -> np.ndarray:
        """(m,) int64 different places of records: the seed, then m - 1 of its neighbours without replacement.

        Where there are fewer, other shapes at random fill the group (OpenShape's code fails there).
        """
        near = np.unique(self._near[seed])
        near = rng.permutation(near[(near >= 0) & (near != seed)])[: self._size - 1]
        group = [seed, *near.tolist()]
        while len(group) < self._size:
            other = int(rng.integers(len(self._near)))
            if other not in group:
                group.append(other)
        return np.array(group, np.int64)
