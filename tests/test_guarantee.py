"""Upper bounds of false-alarm rates, against scipy and against what comes true."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta, binom, binomtest

from flawmap.decision import PIXEL_RATES, Decision, changed, images_needed, upper_bound
from flawmap.decision.guarantee import binomial_tail, groups_above, most_above
from flawmap.errors import ParameterError

NO_PIXELS = np.zeros(0, np.float32)


def decision(scores, sizes=None):
    return Decision(np.asarray(scores, np.float32), NO_PIXELS, group_sizes=sizes)


@pytest.mark.parametrize("n", [1, 2, 19, 59, 99, 320, 5000, 100_000])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
def test_the_bound_is_the_quantile_of_scipy(n, confidence):
    for k in sorted({0, 1, n // 100, n // 20, n // 2, n - 2, n - 1} & set(range(n))):
        expected = beta.ppf(confidence, k + 1, n - k)
        assert upper_bound(k, n, confidence) == pytest.approx(expected, rel=1e-9)
    assert upper_bound(n, n, confidence) == 1


def test_the_bound_is_that_of_clopper_and_pearson():
    interval = binomtest(3, 41, alternative="less").proportion_ci(0.95, method="exact")
    assert upper_bound(3, 41) == pytest.approx(interval.high, rel=1e-9)


@pytest.mark.parametrize("share", [0.0, 1e-12, 0.004, 0.3, 0.5, 0.97, 1 - 1e-12, 1.0])
def test_the_tail_is_that_of_scipy(share):
    for n in (1, 7, 200, 30_000):
        for k in sorted({0, 1, n // 50, n // 2, n - 1, n}):
            assert binomial_tail(k, n, share) == pytest.approx(binom.cdf(k, n, share), rel=1e-7, abs=1e-300)


def test_the_numbers_that_certify():
    assert [images_needed(rate) for rate in (0.01, 0.05, 0.1)] == [299, 59, 29]
    assert images_needed(0.05, 0.99) == 90
    for rate in (0.003, 0.01, 0.05, 0.2, 0.5):
        n = images_needed(rate)
        assert upper_bound(0, n) <= rate
        assert n == 1 or upper_bound(0, n - 1) > rate


def test_the_most_scores_above_are_those_of_a_search_one_by_one():
    for n, rate, confidence in (
        (59, 0.05, 0.95),
        (58, 0.05, 0.95),
        (470, 0.02, 0.9),
        (320, 0.05, 0.95),
        (12, 0.9, 0.8),
    ):
        fitting = [k for k in range(n) if upper_bound(k, n, confidence) <= rate]
        assert most_above(n, rate, confidence) == (fitting[-1] if fitting else None)


@pytest.mark.parametrize(("n", "rate"), [(59, 0.05), (200, 0.05), (200, 0.1)])
def test_a_certified_rate_is_exceeded_as_rarely_as_promised(n, rate):
    """Of uniform scores the share above a threshold t is 1 - t: known, not estimated."""
    rng = np.random.default_rng(0)
    found = [1 - decision(rng.random(n)).certified(rate).threshold for _ in range(2000)]
    kept = np.mean(np.array(found) <= rate)
    exact = beta.cdf(rate, most_above(n, rate) + 1, n - most_above(n, rate))
    assert kept == pytest.approx(exact, abs=0.015)
    assert exact >= 0.95


def test_the_bound_of_a_rate_on_average_holds_as_often_as_it_says():
    rng = np.random.default_rng(1)
    decisions = [decision(rng.random(150)).at_rate(0.05) for _ in range(2000)]
    assert np.mean([1 - one.threshold <= one.bound() for one in decisions]) == pytest.approx(0.95, abs=0.015)
    assert np.mean([1 - one.threshold for one in decisions]) <= 0.05
    assert np.mean([1 - one.threshold > 0.05 for one in decisions]) > 0.3  # on average is not for certain


def test_a_certified_rate_holds_for_groups():
    """Images of a group are nearly alike; the share of new groups with an image above is known from many of them."""
    rng = np.random.default_rng(2)
    broken = []
    for _ in range(400):
        sizes = rng.integers(1, 6, 80)
        levels = np.repeat(rng.random(80), sizes)
        scores = levels + rng.normal(0, 1e-3, sizes.sum())
        one = decision(scores, np.repeat(sizes, sizes).astype(np.float32)).certified(0.1)
        assert one.n_groups == 80
        assert one.bound() <= 0.1
        broken.append(1 - one.threshold > 0.1)
    assert np.mean(broken) <= 0.05


def naive_groups_above(scores, group_of, threshold):
    return len({group for score, group in zip(scores, group_of, strict=True) if score > threshold})


def test_groups_above_are_never_too_few():
    rng = np.random.default_rng(3)
    for _ in range(50):
        sizes = rng.integers(1, 5, 20)
        group_of, of_image = np.repeat(np.arange(20), sizes), np.repeat(sizes, sizes).astype(np.float32)
        scores = rng.random(len(group_of)).astype(np.float32)
        for threshold in (0, 0.3, 0.9, 2):
            counted = groups_above(scores, of_image, threshold)
            assert naive_groups_above(scores, group_of, threshold) <= counted <= 20
    alone = np.ones(20, np.float32)
    assert groups_above(scores[:20], alone, 0.5) == groups_above(scores[:20], None, 0.5)


def test_the_certified_threshold_is_the_lowest_that_keeps_the_bound():
    scores = np.random.default_rng(4).gamma(3, size=200).astype(np.float32)
    one = decision(scores).certified(0.05)
    assert one.bound() <= 0.05
    lower = max(score for score in scores if score < one.threshold)
    assert upper_bound(int((scores > lower).sum()), 200) > 0.05
    assert (one.false_alarm_rate, one.confidence) == (0.05, 0.95)
    assert one.threshold >= one.at_rate(0.05).threshold
    assert one.at_rate(0.05).confidence is one.at_value(3).confidence is None
    assert one.at_value(3).bound() is None


def test_too_few_images_say_how_many_are_needed():
    with pytest.raises(ParameterError, match=r"at least 59 good images with held-out scores; there are 58, .* 5\.03 %"):
        decision(np.arange(58)).certified(0.05)
    assert decision(np.arange(59)).certified(0.05).threshold == 58
    pairs = np.full(100, 2, np.float32)
    with pytest.raises(ParameterError, match=r"59 groups of good images .* there are 50"):
        decision(np.arange(100), pairs).certified(0.05)


def test_what_a_user_asks_for_is_done_or_refused():
    one = decision(np.arange(100)).at_rate(0.05)
    assert changed(one, certify=0.95).threshold == one.certified(0.05).threshold
    again = changed(changed(one, certify=0.95), certify=0.95)
    assert (again.threshold, again.false_alarm_rate) == (one.certified(0.05).threshold, 0.05)
    assert changed(one, false_alarm_rate=0.2, certify=0.99).threshold == one.certified(0.2, 0.99).threshold
    for wrong, message in (
        ({"certify": 0.95, "value": 3}, "certify or value"),
        ({"false_alarm_rate": 0.1, "value": 3}, "false_alarm_rate or value"),
        ({"certify": 95}, "confidence must lie between 0 and 1"),
        ({"certify": 0.95, "false_alarm_rate": 2}, "false_alarm_rate must lie between 0 and 1"),
    ):
        with pytest.raises(ParameterError, match=message):
            changed(one, **wrong)
    with pytest.raises(ParameterError, match="give the rate to certify"):
        changed(one.at_value(3), certify=0.95)
    mapped = Decision(one.scores, np.linspace(1, 50, len(PIXEL_RATES), dtype=np.float32))
    assert changed(mapped, pixel_false_alarm_rate=0.01).pixel_threshold == mapped.at_pixel_rate(0.01).pixel_threshold


@pytest.mark.parametrize(("k", "n"), [(-1, 4), (5, 4), (0, 0)])
def test_impossible_counts_are_refused(k, n):
    with pytest.raises(ParameterError, match="scores above"):
        upper_bound(k, n)
