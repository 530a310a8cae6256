from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import f1_score, roc_auc_score

from flawmap.errors import DatasetError, ParameterError
from flawmap.evaluation.metrics import Rate, best_threshold, error_rates, image_auroc, reliability


@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=1, max_size=60))
def test_equals_scikit_learn_with_ties(pairs):
    labels, scores = [label for label, _ in pairs], [float(score) for _, score in pairs]
    if len(set(labels)) < 2:
        assert image_auroc(labels, scores) is None
    else:
        assert image_auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_perfect_reversed_and_undecided():
    assert image_auroc([0, 0, 1], [1, 2, 3]) == 1
    assert image_auroc([1, 0, 0], [1, 2, 3]) == 0
    assert image_auroc([1, 0, 1, 0], [5, 5, 5, 5]) == 0.5
    assert image_auroc([0, 1], [0, np.inf]) == 1


def test_infinite_and_signed_zero_scores():
    assert image_auroc([0, 1, 0, 1], [-np.inf, np.inf, 0, 1]) == 1
    assert image_auroc([0, 1], [np.inf, np.inf]) == 0.5
    assert image_auroc([0, 1], [0.0, -0.0]) == 0.5


def test_one_class_has_no_auroc():
    assert image_auroc([1, 1], [1, 2]) is None
    assert image_auroc(np.zeros(3, bool), [1, 2, 3]) is None


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 1], [0, np.nan], "NaN"),
        ([0, 1], [0, 1, 2], r"\(2,\) and \(3,\)"),
        ([[0, 1]], [[0, 1]], r"\(1, 2\)"),
        ([], [], "none"),
        ([0, 2], [0, 1], "labels 0"),
        ([-1, 1], [0, 1], "labels 0"),
        ([0.5, 1], [0, 1], "labels 0"),
    ],
)
def test_bad_input_is_refused(labels, scores, message):
    with pytest.raises(ParameterError, match=message):
        image_auroc(labels, scores)


@pytest.mark.parametrize("name", ["padim_resnet18_rd100_screw", "padim_efficientnet_lite0_screw"])
def test_golden(shared, name):
    golden = np.load(shared / "golden" / f"{name}.npz")
    assert image_auroc(golden["label"], golden["image_score"]) == pytest.approx(float(golden["image_auroc"]), abs=1e-4)


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


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (1, 1), (0, 41), (3, 41), (41, 41), (500, 1000)])
def test_equals_scipys_wilson_interval(hits, n):
    expected = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    rate = Rate.of(hits, n)
    assert rate.value == hits / n
    assert (rate.low, rate.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_no_cases_and_impossible_ones():
    assert Rate.of(0, 0) is None
    with pytest.raises(ParameterError, match="0 to 3 hits, got 4"):
        Rate.of(4, 3)


def test_uniform_p_values_keep_their_promise():
    kept = reliability((np.arange(1000) + 0.5) / 1000)
    assert kept.uniformity > 0.99
    for asked, rate in zip(kept.asked, kept.realised, strict=True):
        assert rate.value == pytest.approx(asked, abs=1e-9)
        assert rate.low < asked < rate.high


def test_small_p_values_are_found_out():
    kept = reliability(np.random.default_rng(0).random(400) ** 3)
    assert kept.uniformity < 1e-6
    assert kept.realised[2].low > kept.asked[2]


def test_no_p_values():
    assert reliability([]) is None
