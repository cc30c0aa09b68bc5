"""The accuracy measures."""

import numpy as np
import pytest

from openshape_jax.evals.zero_shot import accuracy


def test_against_a_count_by_hand():
    scores = np.array(
        [[0.9, 0.1, 0.0, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.1, 0.2, 0.3], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]]
    )
    result = accuracy(scores, np.array([0, 0, 0]))
    assert result == {
        "top1": pytest.approx(1 / 3),
        "top3": pytest.approx(2 / 3),
        "top5": pytest.approx(2 / 3),
        "mean_class": pytest.approx(1 / 3),
    }


def test_mean_class_weighs_classes_equally():
    scores = np.eye(3)[[0, 0, 0, 0]]
    assert accuracy(scores, np.array([0, 0, 0, 1]))["mean_class"] == 0.5


def test_constant_scores_do_not_count_as_right():
    assert accuracy(np.ones((4, 3)), np.array([0, 1, 2, 0]))["top1"] == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_no_numbers_stop_the_evaluation(bad):
    scores = np.zeros((10, 6))
    scores[3, 2] = bad
    with pytest.raises(FloatingPointError, match="1 of 10 shapes have NaN or infinite scores"):
        accuracy(scores, np.zeros(10, int))


def test_no_shape_is_an_error():
    with pytest.raises(ValueError, match="no labelled shape"):
        accuracy(np.zeros((0, 3)), np.zeros(0, int))
