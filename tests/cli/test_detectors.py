from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from flawmap.cli.app import app

FIT = ["--backbone", "resnet10t", "--random-weights", "--resize", "64", "-q"]


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


@pytest.fixture
def dataset(good_images, scratched, tmp_path):
    mask = np.zeros((64, 64), np.uint8)
    mask[24:40, 38:43] = 255
    files = {f"test/good/{i}.png": good_images[i] for i in range(3)}
    files |= {"test/scratch/0.png": scratched, "ground_truth/scratch/0_mask.png": mask}
    for name, content in files.items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(content).save(path)
    return tmp_path / "data"


@pytest.mark.parametrize("detector", ["padim", "spade", "mahalanobis-ad"])
def test_every_command_works_with_every_detector(detector, good_folder, dataset, tmp_path):
    model, out = tmp_path / "m.flawmap", tmp_path / "out"
    fitted = json.loads(run("fit", good_folder, "-o", model, "--detector", detector, *FIT, "--json").stdout)
    assert fitted["n_images"] == 12
    document = json.loads(run("info", model, "--json").stdout)
    assert (document["detector"], document["localises"]) == (detector, detector != "mahalanobis-ad")
    assert (document["decision"]["pixel_false_alarm_rate"] is None) == (detector == "mahalanobis-ad")
    assert detector in run("info", model).stdout
    said = run("predict", model, dataset / "test", "-o", out, "--maps").stderr.replace("\n", " ")
    with (out / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    result = json.loads(run("evaluate", model, dataset, "--json", "-q").stdout)
    assert result["image_auroc"] == 1
    assert result["promised_false_alarm_rate"] == pytest.approx(1 / 13)
    changed = json.loads(run("threshold", model, "--false-alarm-rate", "0.5", "--json").stdout)
    if detector == "mahalanobis-ad":
        assert "image-level: there are no heat maps" in said
        assert {row["overlay"] + row["anomaly_map"] + row["n_regions"] for row in rows} == {""}
        assert result["pixel_auroc"] is result["pro_score"] is None
        assert "no pixel figures" in result["warnings"][0]
        assert changed["pixel_threshold"] is changed["pixel_false_alarm_rate"] is None
        assert "image-level" in run("threshold", model, "--pixel-false-alarm-rate", "0.01", code=1).stderr
    else:
        assert "no heat maps" not in said
        assert all((out / row["overlay"]).is_file() and (out / row["anomaly_map"]).is_file() for row in rows)
        assert result["pixel_auroc"] > 0.9
        assert changed["pixel_threshold"] > 0


def test_options_of_spade(good_folder, tmp_path):
    options = ["--detector", "spade", "--variant", "port", "--n-neighbors", "3", "--image-layer", "layer3"]
    run("fit", good_folder, "-o", tmp_path / "m.flawmap", *options, "--coreset", "0.5", "--cache-mb", "1", *FIT)
    document = json.loads(run("info", tmp_path / "m.flawmap", "--json").stdout)
    assert (document["variant"], document["n_neighbors"], document["image_layer"]) == ("port", 3, "layer3")
    assert document["coreset"] == 0.5


def test_blocks_of_positions(good_folder, tmp_path):
    path, small = tmp_path / "m.flawmap", ["--random-weights", "--resize", "64", "-q"]
    run("fit", good_folder, "-o", path, "--blocks", "2", *small)
    assert json.loads(run("info", path, "--json").stdout)["blocks"] == 2
    refused = run("fit", good_folder, "-o", path, "--blocks", "3", *small, code=1).stderr
    assert "blocks must be 1, 2 or 4, got 3" in refused.replace("\n", " ")
    refused = run("fit", good_folder, "-o", path, "--blocks", "4", *small[:1], "--resize", "96", code=1).stderr
    assert "whole blocks, got 6 x 6" in refused.replace("\n", " ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--detector", "spade", "--n-features", "5"], "--n-features is not for spade"),
        (["--detector", "spade", "--blocks", "2"], "--blocks is not for spade"),
        (["--detector", "mahalanobis-ad", "--cache-mb", "5"], "--cache-mb is not for mahalanobis-ad"),
        (["--coreset", "0.1"], "--coreset is not for padim"),
        (["--detector", "spade", "--n-neighbors", "13"], "more than the 12 good images"),
    ],
)
def test_options_that_do_not_fit(good_folder, tmp_path, options, message):
    failed = run("fit", good_folder, "-o", tmp_path / "m.flawmap", *options, *FIT, code=1)
    assert message in failed.stderr.replace("\n", " ")
    assert not (tmp_path / "m.flawmap").exists()


def test_a_preset_names_its_detector(good_folder, tmp_path):
    arguments = ["fit", good_folder, "-o", tmp_path / "m.flawmap", "--random-weights", "--resize", "64", "-q"]
    run(*arguments, "--preset", "mahalanobis-ad-effnet-b4")
    assert json.loads(run("info", tmp_path / "m.flawmap", "--json").stdout)["detector"] == "mahalanobis-ad"
    failed = run(*arguments, "--preset", "spade-wr50", "--detector", "padim", code=1)
    assert "--preset spade-wr50 is of spade" in failed.stderr.replace("\n", " ")
    assert "unknown preset 'spade'" in run(*arguments, "--preset", "spade", code=1).stderr.replace("\n", " ")
