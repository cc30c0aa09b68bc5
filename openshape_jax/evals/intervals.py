"""Confidence intervals of accuracies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

LEVEL = 0.95
OVER_DRAWS = "95 % t interval of the mean over {} draws"
OVER_SHAPES = "95 % Wilson interval over the shapes"


class Mean(NamedTuple):
    """A mean over draws and how far the true one may be."""

    mean: float
    half: float | None  # half of the width of the 95 % interval; None: a single value tells nothing of it

    def text(self) -> str:
        """As a table shows it, in per cent: "45.2 ± 1.3"."""
        return f"{100 * self.mean:.1f}" + ("" if self.half is None else f" ± {100 * self.half:.1f}")


def mean(values: Sequence[float] | np.ndarray) -> Mean:
    """The mean of n independent values with its 95 % interval by Student's t distribution, n - 1 degrees.

    Raises:
      ValueError: no value.
    """
    from scipy import stats

    values = np.asarray(values, np.float64)
    n = len(values)
    if n == 0:
        raise ValueError("there is no value to take the mean of.")
    if n == 1:
        return Mean(float(values[0]), None)
    quantile = stats.t.ppf((1 + LEVEL) / 2, n - 1)
    return Mean(float(values.mean()), float(quantile * values.std(ddof=1) / np.sqrt(n)))


def described(values: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """{"mean", "half_width", "values"} for a JSON file."""
    found = mean(values)
    return {"mean": found.mean, "half_width": found.half, "values": [float(v) for v in values]}


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share that was found among n (Wilson 1927)."""
    z = 1.959963984540054
    centre, half = share + z**2 / (2 * n), z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return float((centre - half) / (1 + z**2 / n)), float((centre + half) / (1 + z**2 / n))
