"""Regions of interest on the command line, from the fit to pictures and figures."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from commands import run
from conftest import textured
from flawmap import load

FIT = ["--layers", "blocks.1", "--resize", "96", "--refit-below", "0", "--n-features", "12"]
POLYGON = [[20, 16], [60, 16], [60, 56], [20, 56]]


@pytest.fixture
def photos(tmp_path):
    """Folders of good and new photos (96 x 96), and a region's mask and polygons."""
    rng = np.random.default_rng(0)
    for folder, n in (("good", 12), ("new", 3)):
        (tmp_path / folder).mkdir()
        for i in range(n):
            image = Image.fromarray(textured(rng, (96, 96)))
            if folder == "new" and i:  # the second with a spot inside, the third with one outside
                x, y = [(40, 36), (84, 84)][i - 1]
                ImageDraw.Draw(image).rectangle([x, y, x + 8, y + 8], fill=(255, 255, 255))
            image.save(tmp_path / folder / f"{i:02}.png")
    mask = Image.new("L", (96, 96))
    ImageDraw.Draw(mask).rectangle([20, 16, 59, 55], fill=255)
    mask.save(tmp_path / "roi.png")
    (tmp_path / "roi.json").write_text(json.dumps({"include": [POLYGON]}))
    return tmp_path


@pytest.mark.parametrize("name", ["roi.png", "roi.json"])
def test_fit_info_and_predict_with_a_region(photos, name):
    model, out = photos / "part.flawmap", photos / "out"
    fitted = run("fit", photos / "good", "-o", model, "--roi", photos / name, *FIT)
    said = " ".join(fitted.stderr.split())
    assert f"Inspected: 17% of the model's input, by {photos / name}, as it lies on" in said
    assert f"{photos / 'good' / '00.png'}" in said.replace(" ", "")
    described = json.loads(run("info", model, "--json").stdout)
    assert described["roi"] == {"inspected": 0.1736, "box": [16, 20, 56, 60]}
    run("predict", model, photos / "new", "-o", out, "--maps", "--masks", "-q")
    with (out / "predictions.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert [row["pred_label"] for row in rows] == ["0", "1", "0"]
    assert rows[2]["regions"] == "[]"
    for i in range(3):
        heat = np.load(out / "maps" / f"{i:02}.npy")
        mask = np.asarray(Image.open(out / "masks" / f"{i:02}.png"))
        inside = np.zeros((96, 96), bool)
        inside[16:56, 20:60] = True
        assert not heat[~inside].any()
        assert not mask[~inside].any()
        overlay = np.asarray(Image.open(out / "overlays" / f"{i:02}.png")).astype(int)
        outlined = (overlay == (255, 0, 255)).all(axis=2)
        assert outlined.sum() == 4 * 39
        assert outlined[16, 20:60].all()
        photo = np.asarray(Image.open(photos / "new" / f"{i:02}.png")).astype(int)
        assert np.array_equal(overlay[~inside], photo[~inside])


def test_json_of_a_fit_and_a_photo_that_the_region_was_drawn_on(photos):
    Image.open(photos / "good" / "00.png").resize((48, 48)).save(photos / "drawn.png")
    half = [[x / 2, y / 2] for x, y in POLYGON]
    (photos / "half.json").write_text(json.dumps({"include": [half]}))
    options = ["--roi", photos / "half.json", "--roi-photo", photos / "drawn.png"]
    said = json.loads(run("fit", photos / "good", "-o", photos / "m.flawmap", *options, *FIT, "--json", "-q").stdout)
    assert said["inspected"] == 0.1736
    assert said["remarks"] == {}
    plain = json.loads(run("fit", photos / "good", "-o", photos / "m.flawmap", *FIT, "--json", "-q").stdout)
    assert plain["inspected"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--roi", "none.png"], "none.png: no such file"),
        (["--roi-photo", "good/00.png"], "give roi (--roi) too"),
        (["--roi", "roi.png", "--detector", "spade"], "roi is not for spade"),
        (["--roi", "roi.png", "--roi-photo", "none.png"], "none.png: no such file"),
        (["--roi", "roi.png", "--crop", "16x8"], "the crop cuts it off"),
    ],
)
def test_what_cannot_be_is_one_line(photos, monkeypatch, options, message):
    monkeypatch.chdir(photos)
    mask = np.zeros((96, 96), np.uint8)
    mask[:30, :30] = 255
    Image.fromarray(mask).save(photos / "roi.png")
    padim = [] if "spade" in options else ["--refit-below", "0", "--n-features", "12"]
    layers = ["--layers", "blocks.1", "--resize", "96", *padim]
    failed = run("fit", "good", "-o", "m.flawmap", *options, *layers, "-q", code=1)
    assert message in " ".join(failed.stderr.split())
    assert not (photos / "m.flawmap").exists()


def test_evaluate_counts_pixels_inside_alone(photos):
    data = photos / "data"
    for name, source in (("good/0", "00"), ("spot/0", "01"), ("spot/1", "02")):
        (data / "test" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.open(photos / "new" / f"{source}.png").save(data / "test" / f"{name}.png")
    (data / "ground_truth" / "spot").mkdir(parents=True)
    for i, (x, y) in enumerate([(40, 36), (84, 84)]):
        mask = Image.new("L", (96, 96))
        ImageDraw.Draw(mask).rectangle([x, y, x + 8, y + 8], fill=255)
        mask.save(data / "ground_truth" / "spot" / f"{i}_mask.png")
    (data / "train").mkdir()
    (photos / "good").rename(data / "train" / "good")
    run("fit", data / "train" / "good", "-o", photos / "m.flawmap", "--roi", photos / "roi.png", *FIT, "-q")
    said = json.loads(run("evaluate", photos / "m.flawmap", data, "--json", "-q").stdout)
    assert any(text.startswith("83% of the model's input lies outside its region") for text in said["warnings"])
    assert any("1 of 2 masks mark nothing that the model sees" in text for text in said["warnings"])
    model = load(photos / "m.flawmap")
    heats = [model.predict(data / "test" / f"{name}.png").anomaly_map for name in ("good/0", "spot/0", "spot/1")]
    truth = np.zeros((3, 96, 96), bool)
    truth[1, 36:45, 40:49] = True  # the other one lies outside
    inside = np.broadcast_to(model.roi_, truth.shape)
    from sklearn.metrics import roc_auc_score

    expected = roc_auc_score(truth[inside], np.stack(heats)[inside])
    assert said["pixel_auroc"] == pytest.approx(expected)
    assert said["pixel_auroc"] > 0.9
