from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from flawmap.errors import DatasetError, ParameterError
from flawmap.evaluation.metrics import best_threshold, error_rates


@pytest.fixture
def labelled():
    rng = np.random.default_rng(0)
    labels = (rng.random(300) < 0.3).astype(int)
    return labels, np.round(rng.normal(labels * 1.5), 1)  # with ties


def candidates(scores):
    distinct = np.unique(scores)
    return [distinct[0] - 1, *distinct]


def test_f1_is_the_best_that_any_threshold_reaches(labelled):
    labels, scores = labelled
    best = max(f1_score(labels, scores > threshold) for threshold in candidates(scores))
    assert f1_score(labels, scores > best_threshold(labels, scores, "f1").threshold) == pytest.approx(best)


def test_youden_is_the_best_that_any_threshold_reaches(labelled):
    labels, scores = labelled
    best = min(np.mean(scores[labels == 0] > t) + np.mean(scores[labels == 1] <= t) for t in candidates(scores))
    point = best_threshold(labels, scores, "youden")
    assert point.false_alarm_rate.value + point.miss_rate.value == pytest.approx(best)


@pytest.mark.parametrize(("miss", "alarm", "share"), [(1, 1, None), (50, 1, None), (1, 20, 0.5), (100, 1, 0.01)])
def test_cost_is_the_least_that_any_threshold_reaches(labelled, miss, alarm, share):
    labels, scores = labelled
    rate = labels.mean() if share is None else share

    def cost(threshold):
        errors = error_rates(labels, scores, threshold)
        return rate * miss * errors.miss_rate.value + (1 - rate) * alarm * errors.false_alarm_rate.value

    point = best_threshold(labels, scores, "cost", miss_cost=miss, false_alarm_cost=alarm, defect_rate=share)
    assert cost(point.threshold) == pytest.approx(min(cost(threshold) for threshold in candidates(scores)))


def test_dearer_misses_lower_the_threshold(labelled):
    at = [best_threshold(*labelled, "cost", miss_cost=cost).threshold for cost in (0.1, 1, 10, 100)]
    assert at == sorted(at, reverse=True)
    assert at[0] > at[-1]


def test_separable_scores_are_split_in_the_middle():
    point = best_threshold([0, 0, 1, 1], [1, 2, 6, 9], "f1")
    assert (point.threshold, point.false_alarm_rate.value, point.miss_rate.value) == (4, 0, 0)
    assert point.miss_rate.high > 0.5  # two images say little


def test_what_cannot_be_decided_is_refused():
    with pytest.raises(DatasetError, match="0 good and 2 anomalous"):
        best_threshold([1, 1], [1, 2], "f1")
    with pytest.raises(ParameterError, match="costs must be positive"):
        best_threshold([0, 1], [1, 2], "cost", miss_cost=-1)
    with pytest.raises(ParameterError, match="defect rate"):
        best_threshold([0, 1], [1, 2], "cost", defect_rate=0)
    with pytest.raises(ParameterError, match="finite"):
        best_threshold([0, 1], [1, np.nan], "f1")
    with pytest.raises(ParameterError, match="criterion"):
        best_threshold([0, 1], [1, 2], "accuracy")


def test_a_false_alarm_costs_something_however_much_a_miss_costs():
    labels = np.r_[np.zeros(1000, int), 1, 1]
    scores = np.r_[np.linspace(0, 1, 999), 4.9, 5, 6]
    assert 4.9 < best_threshold(labels, scores, "cost", miss_cost=1e12).threshold < 5
