from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.torch import load_file

from flawmap import Inspector, PaDiM, export_model, load
from flawmap.decision import TOP_SHARE, map_score, n_highest
from flawmap.errors import ParameterError
from flawmap.model_file import ModelFile, write_model_file

ROI = [[0, 0], [64, 0], [64, 64], [0, 64]]
OPTIONS = {"resize": 128, "n_features": 16, "align": "none", "refit_below": 0, "regularization": "paper"}


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:128, :128]
    pattern = (128 + 60 * np.sin(x / 9) + 40 * np.cos(y / 13))[..., None]
    return [np.clip(pattern + rng.normal(0, 6, (128, 128, 3)), 0, 255).astype(np.uint8) for _ in range(12)]


@pytest.fixture(scope="module")
def model(images):
    return PaDiM(**OPTIONS).fit(images)


def test_the_score_is_the_mean_of_the_highest_values():
    values = np.arange(64 * 80, dtype=np.float32).reshape(64, 80)
    sampled = np.sort(values[2::4, 2::4].ravel())
    assert n_highest(64, 80, 0.05) == 16
    assert map_score(values, 0.05) == pytest.approx(sampled[-16:].mean())
    assert map_score(values, 0.0) == values.max()
    assert map_score(values[:4, :4], 0.05) == values[:4, :4].max()  # too small for more than one


def test_the_default_is_steadier_than_the_maximum(model, images):
    [prediction] = model.predict(images[:1])
    assert model.top_share_ == TOP_SHARE
    assert prediction.pred_score == pytest.approx(map_score(prediction.anomaly_map, TOP_SHARE), rel=1e-6)
    assert prediction.pred_score < prediction.anomaly_map.max()


@pytest.mark.parametrize(("score", "roi"), [("max", None), ("top", None), (0.05, None), (0.05, ROI)])
def test_held_out_scores_exports_and_files_use_the_same_rule(images, tmp_path, score, roi):
    model = PaDiM(**OPTIONS, score=score, roi=roi).fit(images)
    model.save(tmp_path / "m.flawmap")
    new = [np.ascontiguousarray(image[::-1]) for image in images[:3]]
    wanted = [prediction.pred_score for prediction in model.predict(new)]
    loaded = load(tmp_path / "m.flawmap")
    assert loaded.score == score
    np.testing.assert_allclose([prediction.pred_score for prediction in loaded.predict(new)], wanted, rtol=1e-4)
    for kind in ("openvino", "onnx") if score == "top" else ("openvino",):
        inspector = Inspector(export_model(model, tmp_path / kind, format=kind))
        found = [prediction.pred_score for prediction in inspector.predict(new)]
        np.testing.assert_allclose(found, wanted, rtol=1e-3)
        np.testing.assert_allclose(inspector.score_batch(np.stack(new))[0], wanted, rtol=1e-3)
        assert model.top_share_ == pytest.approx(0 if score == "max" else model._asked_share * (0.25 if roi else 1))
        assert json.loads((tmp_path / kind / "metadata.json").read_text())["top_share"] == model.top_share_


def test_a_good_image_is_held_to_the_score_that_new_ones_get(images):
    model = PaDiM(**OPTIONS, calibrate="holdout").fit(images)
    held_out = model.leave_one_out_scores_
    scores = [prediction.pred_score for prediction in model.predict(images)]
    assert all(np.isclose(scores, score, rtol=1e-4).any() for score in held_out)


@pytest.mark.parametrize("score", ["best", 1.0, -0.1, True, None, float("nan"), "0.1"])
def test_a_score_that_cannot_be_meant_is_refused(score):
    with pytest.raises(ParameterError, match="score must be 'max', 'top' or a share from 0 to 1"):
        PaDiM(score=score)


def test_a_file_that_does_not_name_the_rule_is_scored_by_the_maximum(model, images, tmp_path):
    model.save(tmp_path / "m.flawmap")
    document = dict(ModelFile(tmp_path / "m.flawmap").document)
    document["parameters"] = {
        name: value for name, value in document["parameters"].items() if name not in ("score", "align")
    }
    write_model_file(tmp_path / "old.flawmap", document, load_file(tmp_path / "m.flawmap"))
    old = load(tmp_path / "old.flawmap")
    [prediction] = old.predict(images[:1])
    assert (old.score, old.align) == ("max", "none")
    assert prediction.pred_score == prediction.anomaly_map.max()
