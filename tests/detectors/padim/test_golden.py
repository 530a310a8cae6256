"""PaDiM against an independent float64 implementation, on MVTec AD screw (resize 256, crop 224)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flawmap import PaDiM, load
from flawmap.datasets import open_dataset
from flawmap.detectors.batches import in_batches
from flawmap.detectors.padim.embedding import embed
from flawmap.detectors.padim.gaussian.factor import factorise, squared_distances
from flawmap.detectors.padim.gaussian.leave_one_out import leave_one_out
from flawmap.detectors.padim.gaussian.moments import PAPER, Moments, update
from flawmap.evaluation.evaluate import evaluate
from flawmap.images import stream
from once import once

CASES = {"resnet18": "padim_resnet18_rd100_screw", "efficientnet_lite0": "padim_efficientnet_lite0_screw"}


@pytest.fixture(scope="module", params=CASES)
def fitted(request, shared, screw, resnet18_weights, tmp_path_factory):
    """Golden results, the model after a round trip through its file, and that file."""
    golden = np.load(shared / "golden" / f"{CASES[request.param]}.npz")
    weights = resnet18_weights if request.param == "resnet18" else None
    model = PaDiM(
        backbone=request.param,
        weights=weights,
        channels=golden["channels"],
        resize=256,
        crop=224,
        groups=None,
        regularization=0.01,
        score="max",
        align="none",
    )
    name = f"golden-{request.param}.flawmap"
    path = once(tmp_path_factory, name, lambda path: model.fit(screw / "train" / "good").save(path))
    return golden, load(path, weights=weights), path


def test_mean_and_covariance(fitted):
    golden, model, _ = fitted
    scale = np.abs(golden["mean"]).max()
    for position in range(0, 56 * 56, 301):
        mean, _ = model.gaussian(*divmod(position, 56))
        np.testing.assert_allclose(mean, golden["mean"][:, position], rtol=1e-4, atol=1e-4 * scale)
    for position, expected in zip(golden["cov_patches"].tolist(), golden["covariance"], strict=True):
        _, covariance = model.gaussian(*divmod(position, 56))
        np.testing.assert_allclose(covariance, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_patch_distances_and_maps(fitted, screw):
    golden, model, _ = fitted
    paths = [screw / path for path in golden["map_test"]]
    distances, expected = model.distances(paths), golden["patch_distance"]
    assert np.all(np.abs(distances - expected) <= np.where(expected < 1, 1e-2, 1e-3) * expected)
    for prediction, wanted in zip(model.predict(paths), golden["anomaly_map"], strict=True):
        np.testing.assert_allclose(prediction.anomaly_map, wanted, rtol=2e-3)  # the golden maps are float16


def test_scores_and_figures(fitted, screw, monkeypatch):
    golden, model, _ = fitted
    data = open_dataset(screw)
    scores, iter_predict = {}, model.iter_predict

    def noted(*args, **options):
        for prediction in iter_predict(*args, **options):
            scores[prediction.path] = prediction.pred_score
            yield prediction

    monkeypatch.setattr(model, "iter_predict", noted)
    result = evaluate(model, data.test)
    assert result.n_images == 160
    assert result.image_auroc == pytest.approx(float(golden["image_auroc"]), abs=0.002)
    assert result.pixel_auroc == pytest.approx(float(golden["pixel_auroc"]), abs=0.002)
    assert result.pro_score == pytest.approx(float(golden["pro_score"]), abs=0.002)
    assert {name: row.n_images for name, row in result.by_type.items()} == {
        "manipulated_front": 24, "scratch_head": 24, "scratch_neck": 25, "thread_side": 23, "thread_top": 23
    }  # fmt: skip
    assert result.warnings == ()
    in_order = [scores[str(screw / path)] for path in golden["test"]]
    np.testing.assert_allclose(in_order, golden["image_score"], rtol=2e-3)


def test_leave_one_out_scores(fitted):
    golden, model, _ = fitted
    np.testing.assert_allclose(model.leave_one_out_scores_, golden["leave_one_out_score"], rtol=5e-3)
    assert np.mean(model.leave_one_out_scores_ > model.threshold_) <= model.false_alarm_rate


def test_the_file_is_a_fraction_of_full_matrices(fitted):
    golden, _, path = fitted
    full = 56 * 56 * (len(golden["channels"]) ** 2 + len(golden["channels"])) * 4
    assert path.stat().st_size < full / 4
    if len(golden["channels"]) == 100:
        assert path.stat().st_size < 35e6


@pytest.fixture(scope="module")
def learnt_columns(fitted, screw):
    """The model's hierarchy, and embeddings of all training images, per level (positions, N, d)."""
    _, model, _ = fitted
    hierarchy = model.factor_.hierarchy
    images = stream(open_dataset(screw).train, model.preprocessing)
    parts = [embed(model.backbone_, hierarchy, batch.pixels) for batch in in_batches(images, 32)]
    return hierarchy, [torch.cat(level, dim=1) for level in zip(*parts, strict=True)]


@pytest.mark.parametrize(("count", "tolerance"), [(90, 1e-2), (320, 3e-3)])
def test_leave_one_out_equals_refitting_without_the_image(learnt_columns, count, tolerance):
    hierarchy, everything = learnt_columns
    columns = [column[:, :count].contiguous() for column in everything]
    moments = Moments.empty(hierarchy)
    update(moments, columns)
    squared = squared_distances(factorise(moments, regularization=PAPER), columns)
    distances = leave_one_out(squared, count).sqrt().flatten(1).numpy()
    for position in (30, 1204, 1568, 2500, 3100):
        own = hierarchy.own_positions(position)
        embeddings = torch.cat([column[row] for column, row in zip(columns, own, strict=True)], dim=1).double().numpy()
        for i in (0, count // 2, count - 1):
            rest = np.delete(embeddings, i, axis=0)
            delta = embeddings[i] - rest.mean(axis=0)
            covariance = np.cov(rest, rowvar=False) + 0.01 * np.eye(len(delta))
            expected = np.sqrt(delta @ np.linalg.solve(covariance, delta))
            assert distances[i, position] == pytest.approx(expected, rel=tolerance)
