from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from flawmap.decision import PIXEL_RATES, Decision, find_regions, judge
from flawmap.detectors.calibration import PixelHistogram
from flawmap.errors import ModelFileError, ParameterError
from flawmap.images import Preprocessing, stream

QUANTILES = np.linspace(1, 50, len(PIXEL_RATES), dtype=np.float32)


def decision(scores):
    return Decision(np.asarray(scores, np.float32), QUANTILES)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1, 0.2, 0.5])
def test_the_promise_is_kept_exactly_for_exchangeable_scores(rate):
    """Each of N + 1 scores in turn is the new one: at most `rate` of them are flagged, and nearly that many."""
    everything = np.random.default_rng(0).normal(size=200)
    flagged = 0
    for i in range(200):
        flagged += decision(np.delete(everything, i)).at_rate(rate).label(np.float32(everything[i]))
    assert flagged / 200 <= rate
    assert flagged / 200 > rate - 1 / 200 - 1e-9


def test_label_and_p_value_agree():
    one = decision(np.random.default_rng(1).gamma(3, size=99)).at_rate(0.05)
    for score in np.linspace(0, 20, 500).astype(np.float32):
        assert one.label(score) == (one.p_value(score) <= 0.05)


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.2, 0.5])
def test_the_promise_is_kept_for_exchangeable_groups_of_any_size(rate):
    """Each group in turn is new, and one of its images, at random, is judged: at most `rate` are flagged."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 9, size=60)
    groups = [rng.normal(level, 0.1, size) for level, size in zip(rng.normal(size=60), sizes, strict=True)]
    flagged = []
    for i, new in enumerate(groups):
        rest = [group for j, group in enumerate(groups) if j != i]
        per_image = np.concatenate([np.full(len(group), len(group), np.float32) for group in rest])
        one = Decision(np.concatenate(rest).astype(np.float32), QUANTILES, group_sizes=per_image).at_rate(rate)
        assert one.n_groups == 59
        labels = [one.label(score) for score in new.astype(np.float32)]
        assert labels == [int(one.p_value(score) <= one.false_alarm_rate + 1e-9) for score in new.astype(np.float32)]
        flagged.append(np.mean(labels))
    assert rate - 0.1 < np.mean(flagged) <= rate


def test_p_values_run_from_one_over_n_plus_one_to_one():
    one = decision([1, 2, 3, 4])
    assert one.p_value(9) == pytest.approx(1 / 5)
    assert one.p_value(3) == pytest.approx(3 / 5)
    assert one.p_value(0) == 1


def test_too_few_images_promise_what_they_can():
    one = decision(np.arange(19)).at_rate(0.01)
    assert one.false_alarm_rate == pytest.approx(0.05)
    assert one.threshold == 18
    assert decision(np.arange(99)).at_rate(0.01).false_alarm_rate == pytest.approx(0.01)


def test_outliers_are_far_beyond_the_rest_and_come_highest_first():
    scores = np.random.default_rng(0).gamma(20, size=300)
    assert decision(scores).outliers().size == 0
    scores[[7, 200]] = [80, 90]
    assert decision(scores).outliers().tolist() == [200, 7]
    assert decision(np.ones(5)).outliers().size == 0


def test_a_value_set_by_hand_promises_nothing():
    one = decision(np.arange(9)).at_value(4.5)
    assert (one.threshold, one.false_alarm_rate) == (4.5, None)
    assert [one.label(score) for score in (4.5, 4.6)] == [0, 1]


def test_impossible_rates_are_refused():
    for rate in (0, 1, -0.1, math.nan):
        with pytest.raises(ParameterError, match="false_alarm_rate"):
            decision([1, 2]).at_rate(rate)
    with pytest.raises(ParameterError, match="pixel_false_alarm_rate"):
        decision([1, 2]).at_pixel_rate(1e-9)
    with pytest.raises(ParameterError, match="finite"):
        decision([1, 2]).at_value(math.inf)


def test_the_histogram_gives_quantiles_within_its_resolution():
    values = np.random.default_rng(0).lognormal(2, 0.7, (40, 50, 60)).astype(np.float32)
    histogram = PixelHistogram()
    for one in values:
        histogram.add(one)
    got = histogram.exceeded_by(PIXEL_RATES)
    for rate, value in zip(PIXEL_RATES, got, strict=True):
        assert np.mean(values > value) <= rate
        if rate > 1e-3:
            assert value == pytest.approx(np.quantile(values, 1 - rate), rel=5e-3)


def test_extreme_values_stay_in_the_histogram():
    histogram = PixelHistogram()
    histogram.add(np.array([[0, 1e-30, 1e30, 5]], np.float32))
    assert histogram.counts.sum() == 4


def test_regions_are_given_in_pixels_of_the_original():
    placement = Preprocessing.of(64, 48).place((256, 128))
    anomaly_map = np.zeros((48, 48), np.float32)
    anomaly_map[4:8, 10:16] = 3
    anomaly_map[5, 12] = 7
    anomaly_map[20:22, 30:31] = 9
    first, second = find_regions(anomaly_map > 1, anomaly_map, placement)
    assert (first.peak, second.peak) == (9, 7)
    assert second.box == ((4 + 8) * 4, (10 + 8) * 2, (8 + 8) * 4, (16 + 8) * 2)
    assert second.area == 4 * 6 * 4 * 2
    assert second.peak_at == ((5 + 8 + 0.5) * 4, (12 + 8 + 0.5) * 2)
    assert second.centroid == ((6 + 8) * 4, (13 + 8) * 2)
    assert find_regions(np.zeros((48, 48), bool), anomaly_map, placement) == ()


def test_diagonal_neighbours_are_one_region():
    anomaly_map = np.eye(8, dtype=np.float32)
    placement = Preprocessing.of(8).place((8, 8))
    assert len(find_regions(anomaly_map > 0, anomaly_map, placement)) == 1


def batch_of(preprocessing, shapes=((16, 16), (8, 16), (16, 4))):
    return list(stream([np.zeros((*shape, 3), np.uint8) for shape in shapes], preprocessing))


def naive_judge(images, maps, scores, decision):
    """Image by image and pixel by pixel: (score, map, label, p-value, mask)."""
    for i, image in enumerate(images):
        anomaly_map = None if maps is None else maps[i].copy()
        if anomaly_map is not None:
            top, left, bottom, right = image.placement.content
            for y, x in np.ndindex(anomaly_map.shape):
                if not (top <= y < bottom and left <= x < right):
                    anomaly_map[y, x] = 0
        score = float(max(anomaly_map.flat) if scores is None else scores[i])
        label = p_value = mask = None
        if decision is not None:
            label = 1 if score > decision.threshold else 0
            p_value = (1 + sum(known >= np.float32(score) for known in decision.scores)) / (1 + len(decision.scores))
            if anomaly_map is not None:
                mask = [[value > decision.pixel_threshold for value in row] for row in anomaly_map]
        yield score, anomaly_map, label, p_value, mask


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("given", ["maps", "scores", "both"])
@pytest.mark.parametrize("crop", [None, 12])
def test_judge_agrees_with_a_naive_twin(calibrated, given, crop):
    rng = np.random.default_rng(0)
    images = batch_of(Preprocessing.of(16, crop, "letterbox"))
    maps = None if given == "scores" else rng.gamma(3, size=(3, crop or 16, crop or 16)).astype(np.float32)
    scores = None if given == "maps" else rng.gamma(3, size=3).astype(np.float32)
    one = decision(rng.gamma(3, size=30)).at_rate(0.5).at_pixel_rate(0.4) if calibrated else None
    expected = list(naive_judge(images, maps, scores, one))
    found = judge(images, maps, scores, one)
    for prediction, image, (score, anomaly_map, label, p_value, mask) in zip(found, images, expected, strict=True):
        assert (prediction.pred_score, prediction.pred_label, prediction.p_value) == (score, label, p_value)
        assert (prediction.path, prediction.placement) == (image.path, image.placement)
        if anomaly_map is None:
            assert (prediction.anomaly_map, prediction.pred_mask, prediction.regions) == (None, None, ())
            continue
        assert np.array_equal(prediction.anomaly_map, anomaly_map)
        assert np.shares_memory(prediction.anomaly_map, maps)
        if one is None:
            assert (prediction.pred_mask, prediction.regions) == (None, ())
        else:
            assert prediction.pred_mask.tolist() == mask
            assert prediction.regions == find_regions(np.array(mask), anomaly_map, image.placement)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_never_labelled(bad):
    images = batch_of(Preprocessing.of(16))
    maps, scores = np.ones((3, 16, 16), np.float32), np.ones(3, np.float32)
    maps[1, 4, 4] = scores[2] = bad
    for given, name in (((maps, None), "image 2"), ((None, scores), "image 3"), ((maps, scores), "image 2")):
        for one in (None, decision(np.arange(9)).at_rate(0.2)):
            with pytest.raises(ModelFileError, match=f"^{name}: .*not finite"):
                judge(images, *given, one)


def test_judge_needs_maps_or_scores():
    assert judge([], None, np.zeros(0, np.float32), None) == []
    with pytest.raises(ParameterError, match="maps or scores"):
        judge(batch_of(Preprocessing.of(16)), None, None, None)


def test_a_pixel_value_replaces_the_rate_until_a_rate_is_set():
    by_value = replace(decision(np.arange(9)), pixel_value=7.5)
    assert by_value.pixel_threshold == 7.5
    assert by_value.mask(np.array([[7.5, 7.6]], np.float32)).tolist() == [[False, True]]
    assert by_value.at_pixel_rate(0.01).pixel_threshold == decision(np.arange(9)).at_pixel_rate(0.01).pixel_threshold
