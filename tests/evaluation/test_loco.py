"""MVTec LOCO AD: sPRO, and the mean over logical and structural anomalies."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from conftest import textured
from flawmap.cli.app import app
from flawmap.datasets import open_dataset
from flawmap.evaluation import evaluate
from flawmap.evaluation.metrics import PixelScores
from flawmap.images import Preprocessing

SHARE = {"pixel_value": 255, "saturation_threshold": 0.25, "relative_saturation": True}
PIXELS = {"pixel_value": 128, "saturation_threshold": 20, "relative_saturation": False}
UPPER, LOWER, OUTSIDE = (np.zeros((64, 64), bool) for _ in range(3))
UPPER[24:32, 38:43] = LOWER[32:40, 38:43] = OUTSIDE[:1] = True  # the model, which crops 64 of 72 pixels, sees no edge


@pytest.fixture
def part(tmp_path):
    rng = np.random.default_rng(7)
    root = tmp_path / "bolt"
    pictures = {f"{place}/good/{i}.png": textured(rng) for place in ("train", "test") for i in range(4)}
    for kind, strength in (("logical_anomalies", 1.0), ("structural_anomalies", 0.1)):
        for i in range(3):
            image = np.float32(textured(rng))
            image[24:40, 38:43] += strength * (255 - image[24:40, 38:43])
            pictures[f"test/{kind}/{i}.png"] = np.uint8(image)
            pictures[f"ground_truth/{kind}/{i}/000.png"] = np.uint8(UPPER * 255)
            pictures[f"ground_truth/{kind}/{i}/001.png"] = np.uint8(LOWER * 128)
    pictures["ground_truth/logical_anomalies/0/002.png"] = np.uint8(OUTSIDE * 255)
    for name, picture in pictures.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(root / name)
    (root / "defects_config.json").write_text(json.dumps([SHARE, PIXELS]))
    return root


def spro_of(model, samples):
    """By hand: a quarter of the upper half, and 20 pixels of the photo of the lower half."""
    pixels, preprocessing = PixelScores(), Preprocessing.of(72, 64)
    for sample in samples:
        prediction = model.predict(sample.path)
        if not sample.is_anomalous:
            pixels.add(prediction.anomaly_map)
            continue
        upper, lower = (preprocessing.apply_mask(part, prediction.placement) for part in (UPPER, LOWER))
        areas = 0.25 * np.count_nonzero(upper), 20 * (72 / 64) ** 2
        pixels.add(prediction.anomaly_map, upper | lower, defects=list(zip((upper, lower), areas, strict=True)))
    return pixels.spro()


def test_spro_and_the_mean_of_types_are_those_of_the_paper(small_model, part):
    data = open_dataset(part)
    result = evaluate(small_model, data)
    assert set(result.by_type) == {"logical_anomalies", "structural_anomalies"}
    for kind, figures in result.by_type.items():
        chosen = [sample for sample in data.test if sample.type in ("good", kind)]
        scores = [small_model.predict(sample.path).pred_score for sample in chosen]
        assert figures.image_auroc == pytest.approx(roc_auc_score([s.is_anomalous for s in chosen], scores))
        assert figures.spro_score == pytest.approx(spro_of(small_model, chosen), abs=1e-9)
    logical, structural = result.by_type["logical_anomalies"], result.by_type["structural_anomalies"]
    assert logical.spro_score != pytest.approx(structural.spro_score, abs=1e-3)
    assert result.spro_score == pytest.approx(spro_of(small_model, data.test), abs=1e-9)
    assert result.type_mean.spro_score == pytest.approx((logical.spro_score + structural.spro_score) / 2)
    assert result.type_mean.image_auroc == pytest.approx((logical.image_auroc + structural.image_auroc) / 2)
    assert result.to_json()["type_mean"]["n_images"] == 6


def test_the_command_shows_both(small_model, part, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    small_model.save(tmp_path / "m.flawmap")
    shown = CliRunner().invoke(app, ["evaluate", str(tmp_path / "m.flawmap"), str(part), "-q"]).stdout
    result = evaluate(small_model, open_dataset(part))
    lines = {line.split("│")[1].strip(): line for line in shown.splitlines() if "│" in line}
    assert "sPRO" in shown
    assert f"{result.spro_score:.4f}" in lines["all"]
    assert f"{result.type_mean.image_auroc:.4f}" in lines["mean of types"]
    assert f"{result.type_mean.spro_score:.4f}" in lines["mean of types"]


def test_without_saturations_there_is_no_spro(small_model, part):
    (part / "defects_config.json").unlink()
    result = evaluate(small_model, open_dataset(part))
    assert result.pro_score is not None
    assert result.spro_score is result.type_mean.spro_score is None
    assert result.type_mean.image_auroc is not None
    assert "without its thresholds there is no sPRO" in result.warnings[0]
