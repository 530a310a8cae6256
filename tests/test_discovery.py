"""Labels of a batch by its false-discovery rate, against a naive twin, scipy, and what comes true."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from flawmap.decision import Decision, discover, fewest_discoveries, label_batch
from flawmap.errors import ParameterError
from flawmap.prediction import Placement, Prediction


def naive_discoveries(p_values, rate):
    """One image after the other, in exact fractions: is there a rank from it on at which the limit is kept?"""
    ranked = sorted(p_values)
    limits = [rate * Fraction(j, len(ranked)) for j in range(1, len(ranked) + 1)]
    kept = [p for p, limit in zip(ranked, limits, strict=True) if p <= limit]
    return [bool(kept) and p <= max(kept) for p in p_values]


@given(
    st.integers(1, 60).flatmap(
        lambda n: st.lists(st.integers(1, n + 1).map(lambda rank: Fraction(rank, n + 1)), max_size=40)
    ),
    st.sampled_from([Fraction(1, 100), Fraction(1, 20), Fraction(1, 10), Fraction(1, 3), Fraction(7, 10)]),
)
def test_discoveries_are_those_of_a_naive_twin(p_values, rate):
    """The p-values are those that a model gives: quotients of small numbers, with many ties."""
    found = discover([float(p) for p in p_values], float(rate))
    assert found.tolist() == naive_discoveries(p_values, rate)


@pytest.mark.skipif(not hasattr(scipy.stats, "false_discovery_control"), reason="scipy before 1.11")
@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1, 0.4])
def test_discoveries_are_those_of_scipy(rate):
    rng = np.random.default_rng(0)
    for n in (1, 2, 30, 500):
        p_values = np.concatenate([rng.random(n), rng.random(n // 5) * 0.01])
        expected = scipy.stats.false_discovery_control(p_values, method="bh") <= rate
        assert discover(p_values, rate).tolist() == expected.tolist()


def test_the_share_of_good_images_among_the_discoveries_is_kept():
    """180 good and 20 anomalous images, 1000 held-out scores, drawn again and again."""
    rng = np.random.default_rng(1)
    false, found = [], []
    for _ in range(300):
        one = Decision(rng.normal(size=1000).astype(np.float32), np.zeros(0, np.float32))
        batch = np.concatenate([rng.normal(size=180), rng.normal(4, 1, size=20)]).astype(np.float32)
        labels = discover([one.p_value(score) for score in batch], 0.2)
        false.append(labels[:180].sum() / max(1, labels.sum()))
        found.append(labels[180:].mean())
    assert np.mean(false) < 0.2
    assert np.mean(false) > 0.1  # not far below: it is 0.2 times the share of good images
    assert np.mean(found) > 0.8


def test_how_many_images_must_score_above_all_good_ones():
    assert fewest_discoveries(10, 1 / 100, 0.1) == 1
    assert fewest_discoveries(100, 1 / 100, 0.1) == 10
    assert fewest_discoveries(100, 1 / 10, 0.1) == 100
    assert fewest_discoveries(100, 1 / 9, 0.1) is None
    for n_images in (1, 7, 100):
        for n_good in (5, 12, 99, 1000):
            smallest = 1 / (n_good + 1)
            fewest = fewest_discoveries(n_images, smallest, 0.1)
            labels = [discover([smallest] * j + [1.0] * (n_images - j), 0.1).any() for j in range(1, n_images + 1)]
            assert fewest == (labels.index(True) + 1 if any(labels) else None)


def prediction(p_value):
    return Prediction("part.png", 1.0, None, Placement((4, 4), (4, 4), (0, 0), (4, 4)), 0, p_value)


def test_a_batch_is_labelled_as_a_whole_and_nothing_else_changes():
    batch = [prediction(p) for p in (0.01, 0.5, 0.02, 0.9)]
    labelled = list(label_batch(iter(batch), 0.1))
    assert [one.pred_label for one in labelled] == [1, 0, 1, 0]
    for one, before in zip(labelled, batch, strict=True):
        assert vars(replace(one, pred_label=0)) == vars(before)
    assert list(label_batch([], 0.1)) == []


@pytest.mark.parametrize("rate", [0, 1, -0.1, math.nan, "0.1", True, None])
def test_an_impossible_rate_is_refused_before_anything_is_scored(rate):
    def never():
        raise AssertionError
        yield

    with pytest.raises(ParameterError, match="false-discovery rate must lie between 0 and 1"):
        label_batch(never(), rate)
    with pytest.raises(ParameterError, match="false-discovery rate must lie between 0 and 1"):
        discover([0.5], rate)


@pytest.mark.parametrize("p_values", [[-0.1], [1.1], [math.nan], [[0.5]], 0.5])
def test_what_are_no_p_values_is_refused(p_values):
    with pytest.raises(ParameterError, match="p-values"):
        discover(p_values, 0.1)


def test_predictions_without_p_values_are_refused():
    with pytest.raises(ParameterError, match="without calibration"):
        list(label_batch([replace(prediction(0.1), p_value=None)], 0.1))
