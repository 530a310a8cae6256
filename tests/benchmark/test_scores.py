from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from flawmap.benchmark.paper.scores import RATES, RunScores
from flawmap.evaluation.metrics import PixelScores


def test_the_image_curve_is_scikit_learns():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 400), rng.normal(size=400).astype(np.float32)
    scores += labels
    run = RunScores()
    for label, score in zip(labels, scores, strict=True):
        run.add(float(score), None, None, is_anomalous=bool(label))
    x, y, _ = roc_curve(labels, scores, drop_intermediate=False)
    rates = RATES["image_roc"]
    off = ~np.isclose(rates[:, None], x).any(axis=1)  # beside the corners, where a curve has one value
    np.testing.assert_allclose(np.array(run.curves()["image_roc"])[off], np.interp(rates, x, y)[off], atol=1e-5)
    one_class = RunScores()
    one_class.add(0.1, None, None, is_anomalous=True)
    assert one_class.curves() == {}


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
    scores = RunScores()
    mask = np.zeros((32, 32), bool)
    mask[4:20, 4:20] = True
    labels, images = [], []
    for i in range(40):
        one = rng.normal(size=mask.shape).astype(np.float32) + (i % 2) * 0.9 * mask
        scores.add(float(one.max()), one, mask if i % 2 else None, is_anomalous=bool(i % 2))
        labels.append(i % 2)
        images.append(float(one.max()))
    figures, curves = scores.figures(), scores.curves()
    assert figures["image_auroc"] == pytest.approx(roc_auc_score(labels, images))
    assert np.trapezoid(curves["pixel_roc"], RATES["pixel_roc"]) == pytest.approx(figures["pixel_auroc"], abs=2e-3)
    assert np.trapezoid(curves["pro"], RATES["pro"]) / 0.3 == pytest.approx(figures["pro_score"], abs=2e-3)


def test_images_without_maps_or_masks_have_no_pixel_figures():
    scores = RunScores()
    scores.add(1.0, None, None, is_anomalous=False)
    scores.add(2.0, np.ones((3, 3), np.float32), None, is_anomalous=True)
    assert scores.figures() == {"image_auroc": 1.0, "pixel_auroc": None, "pro_score": None}
    assert set(scores.curves()) == {"image_roc"}
