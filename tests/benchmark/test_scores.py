from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from flawmap.benchmark.paper.scores import RATES, run_curves, run_figures
from flawmap.decision import Decision
from flawmap.evaluation.figures import ImageGroup
from flawmap.evaluation.metrics import PixelScores


def new_groups():
    """The good images, and the anomalous ones."""
    return [ImageGroup(is_anomalous=False), ImageGroup(is_anomalous=True)]


def test_the_image_curve_is_scikit_learns():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 400), rng.normal(size=400).astype(np.float32)
    scores += labels
    run = new_groups()
    for label, score in zip(labels, scores, strict=True):
        run[label].add(float(score), None, None)
    x, y, _ = roc_curve(labels, scores, drop_intermediate=False)
    rates = RATES["image_roc"]
    off = ~np.isclose(rates[:, None], x).any(axis=1)  # beside the corners, where a curve has one value
    np.testing.assert_allclose(np.array(run_curves(*run)["image_roc"])[off], np.interp(rates, x, y)[off], atol=1e-5)
    one_class = new_groups()
    one_class[1].add(0.1, None, None)
    assert run_curves(*one_class) == {}


def test_pixel_curves_are_scikit_learns_by_pixel_and_by_region():
    rng = np.random.default_rng(0)
    mask = np.zeros((60, 60), bool)
    mask[5:45, 5:45] = mask[50:53, 50:53] = True
    scores = (rng.normal(size=mask.shape) + mask * rng.uniform(0, 2, mask.shape)).round(1).astype(np.float32)
    pixels = PixelScores()
    pixels.add(scores, mask)
    rates = np.linspace(0.0013, 0.9991, 211)
    weights = np.where(mask, np.where(np.indices(mask.shape)[0] < 48, 1 / 1600, 1 / 9), 1.0)
    for by_region, weight in ((False, None), (True, weights.ravel())):
        x, y, _ = roc_curve(mask.ravel(), scores.ravel(), sample_weight=weight, drop_intermediate=False)
        curve = pixels.curve(rates, by_region=by_region)
        np.testing.assert_allclose(curve, np.interp(rates, x, y), atol=1e-9)
    assert PixelScores().curve(rates) is None


def test_the_area_under_a_kept_curve_is_the_figure():
    rng = np.random.default_rng(0)
    scores = new_groups()
    mask = np.zeros((32, 32), bool)
    mask[4:20, 4:20] = True
    labels, images = [], []
    for i in range(40):
        one = rng.normal(size=mask.shape).astype(np.float32) + (i % 2) * 0.9 * mask
        scores[i % 2].add(float(one.max()), one, mask if i % 2 else None)
        labels.append(i % 2)
        images.append(float(one.max()))
    figures, curves = run_figures(*scores), run_curves(*scores)
    assert figures["image_auroc"] == pytest.approx(roc_auc_score(labels, images))
    assert np.trapezoid(curves["pixel_roc"], RATES["pixel_roc"]) == pytest.approx(figures["pixel_auroc"], abs=2e-3)
    assert np.trapezoid(curves["pro"], RATES["pro"]) / 0.3 == pytest.approx(figures["pro_score"], abs=2e-3)


def test_images_without_maps_or_masks_have_no_pixel_figures():
    scores = new_groups()
    scores[0].add(1.0, None, None)
    scores[1].add(2.0, np.ones((3, 3), np.float32), None)
    at_5 = {"found_at_5": None, "flagged_at_5": None}
    assert run_figures(*scores) == {"image_auroc": 1.0, "pixel_auroc": None, "pro_score": None, **at_5}
    assert set(run_curves(*scores)) == {"image_roc"}


def test_shares_above_the_threshold_of_5_per_cent():
    scores = new_groups()
    for i in range(10):
        scores[0].add(float(i), None, None)
        scores[1].add(float(i + 15), None, None)
    known = Decision(np.arange(19, dtype=np.float32), np.zeros(0, np.float32))  # the threshold is the highest, 18
    figures = run_figures(*scores, known)
    assert (figures["found_at_5"], figures["flagged_at_5"]) == (0.6, 0)
    figures = run_figures(*scores, Decision(known.scores[:18], known.pixel_quantiles))
    assert figures["found_at_5"] is figures["flagged_at_5"] is None
    figures = run_figures(scores[0], ImageGroup(is_anomalous=True), known)
    assert (figures["found_at_5"], figures["flagged_at_5"]) == (None, 0)
