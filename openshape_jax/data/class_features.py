"""Text vectors of a data set's class names, kept in a file beside its records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

FILE = "class_features.npz"


class ClassFeatures(NamedTuple):
    """Class names and their vectors in the space of some CLIP."""

    names: list[str]
    features: np.ndarray  # (C, D) float32 unit rows

    @property
    def width(self) -> int:
        """D."""
        return self.features.shape[1]


def of_rows(names: Sequence[str], rows: Sequence[np.ndarray] | np.ndarray, where: str) -> ClassFeatures:
    """The features of C names as unit rows.

    Args:
      rows: (C, D) vectors of any length, or C vectors (D,) or (1, D).
      where: the file they come from, for messages.

    Raises:
      ValueError: a name twice, another number of rows, rows of unequal width, a NaN, infinite or zero row.
    """
    if len(rows) != len(names):
        raise ValueError(f"{where} has {len(rows)} class features, but there are {len(names)} classes.")
    if len(names) == 0:
        raise ValueError(f"{where} has no class.")
    double = [name for i, name in enumerate(names) if name in names[:i]]
    if double:
        raise ValueError(f"{where} has the class {double[0]!r} twice.")
    flat = [np.asarray(row, np.float32).reshape(-1) for row in rows]
    for name, row in zip(names, flat, strict=True):
        if len(row) != len(flat[0]) or len(row) == 0:
            raise ValueError(
                f"{where}: the feature of {name!r} has width {len(row)}, that of {names[0]!r} has "
                f"{len(flat[0])}; all must come from one CLIP."
            )
        if not np.isfinite(row).all() or not row.any():
            raise ValueError(
                f"{where}: the feature of {name!r} is zero, NaN or infinite; it has no direction."
            )
    features = np.stack(flat)
    return ClassFeatures(list(names), features / np.linalg.norm(features, axis=1, keepdims=True))


def save(folder: str | Path, classes: ClassFeatures) -> None:
    """Writes FOLDER/class_features.npz."""
    np.savez(Path(folder) / FILE, names=np.array(classes.names), features=classes.features)


def load(folder: str | Path) -> ClassFeatures | None:
    """The class features of a built data set's folder, None where it has none.

    Raises:
      ValueError: the file is damaged; says to build the data set again.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return of_rows([str(name) for name in file["names"]], file["features"], str(path))
    except Exception as error:  # a damaged archive fails in many ways
        raise ValueError(
            f"{path} cannot be read ({error}): delete {folder} and build the data set again."
        ) from error
