"""Intervals against scipy's, and their coverage."""

import numpy as np
import pytest
from scipy import stats

from openshape_jax.evals import intervals


@pytest.mark.parametrize("n", [2, 3, 10, 200])
def test_the_interval_of_a_mean_is_scipys(n):
    values = np.random.default_rng(n).normal(3, 2, n)
    found = intervals.mean(values)
    low, high = stats.t.interval(0.95, n - 1, loc=values.mean(), scale=stats.sem(values))
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high))


def test_it_holds_the_true_mean_in_95_of_100_cases():
    rng = np.random.default_rng(0)
    held = [abs(m.mean - 1) < m.half for m in (intervals.mean(rng.normal(1, 3, 5)) for _ in range(2000))]
    assert 0.935 < np.mean(held) < 0.965


def test_one_value_has_none_and_no_value_is_an_error():
    assert intervals.mean([0.4]) == (0.4, None)
    assert intervals.mean([0.4]).text() == "40.0"
    assert intervals.mean([0.4, 0.5]).text() == "45.0 ± 63.5"
    assert intervals.described([0.25, 0.75])["values"] == [0.25, 0.75]
    with pytest.raises(ValueError, match="no value"):
        intervals.mean([])


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (3, 10), (75, 94), (2468, 2468)])
def test_the_interval_of_a_share_is_scipys(hits, n):
    expected = stats.binomtest(hits, n).proportion_ci(0.95, "wilson")
    assert intervals.wilson(hits / n, n) == pytest.approx((expected.low, expected.high), abs=1e-9)
