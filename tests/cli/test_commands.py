from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from commands import FIT, run
from flawmap import load
from flawmap.decision import discover
from turned import photo

succeed = run


def fail(*arguments, code=1):
    return run(*arguments, code=code)


@pytest.fixture(scope="module")
def fitted(good_images, tmp_path_factory):
    """Bytes of a model file."""
    folder = tmp_path_factory.mktemp("fitted")
    for i, image in enumerate(good_images):
        Image.fromarray(image).save(folder / f"{i:03}.png")
    succeed("fit", folder, "-o", folder / "part.flawmap", *FIT, "-q")
    return (folder / "part.flawmap").read_bytes()


@pytest.fixture
def model(fitted, tmp_path):
    (tmp_path / "part.flawmap").write_bytes(fitted)
    return tmp_path / "part.flawmap"


@pytest.fixture
def dataset(good_images, scratched, tmp_path):
    """A small data set in MVTec AD layout, with one mask missing."""
    root = tmp_path / "data"
    mask = np.zeros((64, 64), np.uint8)
    mask[24:40, 38:43] = 255
    files = {f"test/good/{i}.png": good_images[i] for i in range(4)}
    files |= {"test/scratch/0.png": scratched, "test/scratch/1.png": scratched[::-1], "test/spot/0.png": scratched}
    files |= {"ground_truth/scratch/0_mask.png": mask, "ground_truth/spot/0_mask.png": mask}
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(content).save(path)
    return root


def rows(folder):
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as table:
        return list(csv.DictReader(table))


def test_fit_predict_info_and_their_json(good_folder, tmp_path):
    out = tmp_path / "out"
    fitted = json.loads(succeed("fit", good_folder, "-o", tmp_path / "m.flawmap", *FIT, "--json", "-q").stdout)
    assert (fitted["n_images"], fitted["skipped"]) == (12, [])
    done = succeed("predict", tmp_path / "m.flawmap", good_folder, "-o", out, "--maps", "--json", "-q")
    assert json.loads(done.stdout)["n_images"] == 12
    expected = load(tmp_path / "m.flawmap").predict(good_folder)
    table = rows(out)
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [row["path"] for row in table] == [line["path"] for line in lines] == [p.path for p in expected]
    for row, line, prediction in zip(table, lines, expected, strict=True):
        assert float(row["pred_score"]) == line["pred_score"] == pytest.approx(prediction.pred_score, rel=1e-6)
        np.testing.assert_allclose(np.load(out / row["anomaly_map"]), prediction.anomaly_map, rtol=1e-5)
        with Image.open(out / row["overlay"]) as overlay:
            assert overlay.size == (64, 64)
    described = json.loads(succeed("info", tmp_path / "m.flawmap", "--json").stdout)
    assert described["backbone"]["name"] == "resnet10t"
    assert described["n_images"] == 12
    assert "resnet10t" in succeed("info", tmp_path / "m.flawmap").stdout


def test_quiet_says_nothing(good_folder, tmp_path):
    assert succeed("fit", good_folder, "-o", tmp_path / "m.flawmap", *FIT, "--quiet").output == ""
    assert succeed("predict", tmp_path / "m.flawmap", good_folder, "-o", tmp_path / "out", "--quiet").output == ""


def test_evaluate(model, dataset):
    result = json.loads(succeed("evaluate", model, dataset, "--json", "-q").stdout)
    assert result["n_images"] == 7
    assert result["image_auroc"] == 1
    assert 0.9 < result["pixel_auroc"] <= 1
    assert 0 < result["pro_score"] <= 1
    assert set(result["by_type"]) == {"scratch", "spot"}
    assert result["by_type"]["scratch"]["n_images"] == 2
    figures = {"n_images", "image_auroc", "pixel_auroc", "pro_score", "spro_score", "found_at_5", "flagged_at_5"}
    assert set(result["by_type"]["spot"]) == figures
    assert result["found_at_5"] is result["flagged_at_5"] is None  # twelve good images promise no 5 %
    assert result["spro_score"] is result["type_mean"] is None
    assert result["warnings"] == [
        "scratch: 1 of 2 images have no mask",
        "4 of 4 good images were learnt from: their scores are too low, leave them out; first "
        f"{dataset / 'test/good/0.png'}",
    ]
    assert (result["false_alarm_rate"]["value"], result["false_alarm_rate"]["n"]) == (0, 4)
    assert (result["miss_rate"]["value"], result["miss_rate"]["n"]) == (0, 3)
    assert result["promised_false_alarm_rate"] == pytest.approx(1 / 13)
    table = succeed("evaluate", model, dataset, "-q").stdout
    assert "good parts flagged: 0.000 of 4" in table
    assert "scratch" in table
    assert "1.0000" in table


def test_evaluate_says_once_what_was_learnt_from(model, dataset):
    said = succeed("evaluate", model, dataset).stderr.replace("\n", " ")
    assert "4 of 4 good images were learnt from" in said
    assert said.count("learnt from") == 1


def test_evaluate_without_masks_leaves_the_pixel_figures_out(model, dataset):
    result = json.loads(succeed("evaluate", model, dataset / "test", "--json", "-q").stdout)
    assert result["image_auroc"] == 1
    assert result["pixel_auroc"] is None
    assert result["by_type"]["spot"]["pro_score"] is None


def test_evaluate_refuses_a_mask_of_another_size(model, dataset):
    Image.new("L", (32, 64)).save(dataset / "ground_truth" / "spot" / "0_mask.png")
    assert "the mask is 64 x 32, but its image" in fail("evaluate", model, dataset, "-q").stderr.replace("\n", " ")


def test_evaluate_goes_on_without_masks_that_cannot_be_used(model, dataset):
    masks = dataset / "ground_truth"
    Image.new("L", (32, 64)).save(masks / "spot" / "0_mask.png")
    (masks / "scratch" / "1_mask.png").write_bytes(b"no image")
    result = json.loads(succeed("evaluate", model, dataset, "--json", "-q", "--skip-bad").stdout)
    assert [one["path"] for one in result["skipped"]] == [
        str(masks / "scratch" / "1_mask.png"),
        str(masks / "spot" / "0_mask.png"),
    ]
    assert (result["n_images"], result["image_auroc"]) == (7, 1)
    assert result["by_type"]["spot"]["pixel_auroc"] is None
    assert result["pixel_auroc"] == result["by_type"]["scratch"]["pixel_auroc"] > 0.9


def test_other_files_in_the_folder_are_passed_over(good_folder, tmp_path):
    (good_folder / "notes.txt").write_text("shift 3")
    fitted = succeed("fit", good_folder, "-o", tmp_path / "m.flawmap", *FIT, "--json", "-q")
    assert json.loads(fitted.stdout)["n_images"] == 12


def test_a_truncated_image_is_named_and_skipped_on_request(good_folder, model, tmp_path):
    whole = (good_folder / "003.png").read_bytes()
    (good_folder / "003.png").write_bytes(whole[: len(whole) // 2])
    target = tmp_path / "m.flawmap"
    failed = fail("fit", good_folder, "-o", target, *FIT, "-q")
    assert "003.png" in failed.stderr
    assert "damaged or cut short" in failed.stderr.replace("\n", " ")
    assert not target.exists()
    fitted = json.loads(succeed("fit", good_folder, "-o", target, *FIT, "--skip-bad", "--json", "-q").stdout)
    assert fitted["n_images"] == 11
    assert [entry["path"] for entry in fitted["skipped"]] == [str(good_folder / "003.png")]
    out = tmp_path / "out"
    assert "003.png" in fail("predict", model, good_folder, "-o", out, "-q").stderr
    assert len(rows(out)) == 11
    succeed("predict", model, good_folder, "-o", out, "--skip-bad", "-q")
    assert len(rows(out)) == 11


def test_no_images_one_image_and_no_folder(tmp_path, good_images):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no images in this folder" in fail("fit", empty, "-o", tmp_path / "m.flawmap", *FIT).stderr
    Image.fromarray(good_images[0]).save(empty / "one.png")
    assert "at least 2 good images, got 1" in fail("fit", empty, "-o", tmp_path / "m.flawmap", *FIT, "-q").stderr
    assert "no such file or folder" in fail("fit", tmp_path / "gone", "-o", tmp_path / "m.flawmap", *FIT).stderr


def test_places_that_cannot_be_written(good_folder, model, tmp_path):
    assert "is a folder" in fail("fit", good_folder, "-o", tmp_path, *FIT).stderr
    assert "no such folder" in fail("fit", good_folder, "-o", tmp_path / "no" / "m.flawmap", *FIT).stderr
    (tmp_path / "file").write_text("x")
    assert "file" in fail("predict", model, good_folder, "-o", tmp_path / "file", "-q").stderr
    read_only = fail("predict", model, good_folder, "-o", "/proc/flawmap", "-q")
    assert "/proc/flawmap" in read_only.stderr


def test_names_beyond_ascii_and_equal_stems(model, good_images, tmp_path):
    folder = tmp_path / "Prüfung [1] 検査"
    for name in ("a/ü 1.png", "b/ü 1.png", "b/ü 1.bmp"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(good_images[0]).save(folder / name)
    succeed("predict", model, folder, "-o", tmp_path / "out", "-q")
    assert [row["overlay"] for row in rows(tmp_path / "out")] == [
        "overlays/a/ü 1.png",
        "overlays/b/ü 1.png",
        "overlays/b/ü 1.png.png",
    ]
    assert len(list((tmp_path / "out" / "overlays").rglob("*.png"))) == 3


def test_results_inside_the_image_folder_are_not_scored_again(model, good_folder):
    for _ in range(2):
        succeed("predict", model, good_folder, "-o", good_folder / "out", "-q")
        assert len(rows(good_folder / "out")) == 12


def test_results_of_another_run_are_neither_learnt_nor_scored(model, good_folder, tmp_path):
    earlier = good_folder / "earlier"
    succeed("predict", model, good_folder, "-o", earlier, "-q", "--masks")
    note = "24 pictures left out: results of an earlier run, such as"
    finished = succeed("predict", model, good_folder, "-o", tmp_path / "out")
    assert note in finished.stderr
    assert len(rows(tmp_path / "out")) == 12
    told = json.loads(succeed("predict", model, good_folder, "-o", tmp_path / "out", "--json").stdout)
    assert (told["n_images"], told["n_results_left_out"]) == (12, 24)
    finished = succeed("fit", good_folder, "-o", tmp_path / "again.flawmap", *FIT)
    assert note in finished.stderr
    assert "Learnt from 12 good images" in finished.stderr


def test_photos_beside_the_results_are_scored(model, scratched, tmp_path):
    for name in ("new", "new/overlays"):
        (tmp_path / name).mkdir()
        Image.fromarray(scratched).save(tmp_path / name / "a.png")
    said = succeed("predict", model, tmp_path / "new", "-o", tmp_path / "new").stderr
    assert [Path(row["path"]).parent.name for row in rows(tmp_path / "new")] == ["new"]
    assert "1 image left out: in the folders of results" in said
    assert "1 picture left out: results of an earlier run" in fail(
        "predict", model, tmp_path / "new/overlays", "-o", tmp_path / "new"
    ).stderr.replace("\n", " ")


def test_no_result_leaves_the_output_folder_or_replaces_another(model, good_images, tmp_path, monkeypatch):
    for name in ("a/x.jpg.png", "a/x.png", "a/x.jpg", "b/y.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(good_images[0]).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    before = (tmp_path / "b/y.png").read_bytes()
    succeed("predict", model, "a/x.jpg.png", "a/x.png", "a/x.jpg", "a/../b/y.png", "-o", "out", "-q")
    assert (tmp_path / "b/y.png").read_bytes() == before
    found = {row["overlay"] for row in rows(tmp_path / "out")}
    assert len(found) == 4
    assert all((tmp_path / "out" / name).is_file() for name in found)


def test_a_loop_of_links_is_a_bad_image_like_others(model, good_folder, tmp_path):
    (good_folder / "loop.png").symlink_to("loop.png")
    said = fail("predict", model, good_folder, "-o", tmp_path / "out", "-q").stderr
    assert "loop.png" in said
    assert len(rows(tmp_path / "out")) == 12


def test_brackets_in_names_are_no_markup(model, dataset, tmp_path):
    odd = tmp_path / "a[" / "b] [red].flawmap"
    odd.parent.mkdir()
    model.rename(odd)
    (dataset / "test/spot").rename(dataset / "test/[red]spot")
    assert "a[/b][red].flawmap" in "".join(succeed("info", odd).stdout.split())
    assert "[red]spot" in succeed("evaluate", odd, dataset).stdout
    said = succeed("predict", odd, dataset / "test", "-o", tmp_path / "o[/ut]").stderr
    assert "o[/ut]/predictions.csv" in said
    said = succeed("fit", dataset / "test/good", "-o", tmp_path / "n[red]ew.flawmap", *FIT).stderr
    assert said.count("n[red]ew.flawmap") == 2


def test_a_model_is_not_written_over_a_photo_or_a_device(good_folder):
    photo = good_folder / "000.png"
    before = photo.read_bytes()
    assert "has the name of an image" in fail("fit", good_folder, "-o", photo, *FIT).stderr
    assert photo.read_bytes() == before
    assert "is no file" in fail("fit", good_folder, "-o", os.devnull, *FIT).stderr


def test_every_other_image_of_a_folder(good_folder, tmp_path):
    fitted = succeed("fit", good_folder, "-o", tmp_path / "m", "--stride", "2", *FIT, "--json", "-q").stdout
    assert json.loads(fitted)["n_images"] == 6


def test_a_whole_data_set_as_good_images_learns_only_the_good_ones(dataset, good_images, tmp_path):
    (dataset / "train" / "good").mkdir(parents=True)
    for i in range(3):
        Image.fromarray(good_images[i]).save(dataset / "train" / "good" / f"{i}.png")
    fitted = succeed("fit", dataset, "-o", tmp_path / "m.flawmap", *FIT, "--json", "-q")
    assert json.loads(fitted.stdout)["n_images"] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resize", "abc"], "--resize takes a number or HEIGHTxWIDTH"),
        (["--resize", "64", "--crop", "65"], "must fit into"),
        (["--n-features", "0"], "n_features must be"),
        (["--layers", "nonsense"], "has no layer 'nonsense'"),
        (["--preset", "unknown"], "unknown preset 'unknown'; there are padim-r18-rd100"),
        (["--preset", "padim-r18-rd100", "--backbone", "resnet18"], "--preset names its own backbone"),
        (["--weights", "resnet.pth"], "give either it or --weights"),
        (["--device", "quantum"], "Available: auto, cpu"),
    ],
)
def test_impossible_options(good_folder, tmp_path, options, message):
    base = ["--backbone", "resnet10t", "--random-weights", "-q"] if "--preset" not in options else []
    failed = fail("fit", good_folder, "-o", tmp_path / "m.flawmap", *base, *options)
    assert message in failed.stderr.replace("\n", " ")


def test_rectangles_crops_letterbox_and_drawn_channels(good_folder, tmp_path):
    options = ["--backbone", "resnet10t", "--random-weights", "--resize", "72x96", "--crop", "64x80", "--seed", "5"]
    options += ["--aspect", "letterbox", "--n-features", "20", "--layers", "layer1,layer3", "--regularization", "0.1"]
    succeed("fit", good_folder, "-o", tmp_path / "m.flawmap", *options, "-q")
    document = json.loads(succeed("info", tmp_path / "m.flawmap", "--json").stdout)
    assert document["preprocessing"] == {"resize": [72, 96], "crop": [64, 80], "aspect": "letterbox"}
    assert (document["seed"], len(document["channels"]), document["regularization"]["ridge"]) == (5, 20, 0.1)


def test_a_damaged_model_file(model, good_folder, tmp_path):
    model.write_bytes(model.read_bytes()[:1000])
    for command in (
        ["predict", model, good_folder, "-o", tmp_path / "out"],
        ["info", model],
        ["evaluate", model, "elpv"],
    ):
        assert "part.flawmap" in fail(*command).stderr


def test_regions_and_masks_are_columns_too(model, scratched, tmp_path):
    wide = np.ascontiguousarray(np.kron(scratched, np.ones((2, 3, 1), np.uint8)))
    Image.fromarray(wide).save(tmp_path / "wide.png")
    succeed("predict", model, tmp_path / "wide.png", "-o", tmp_path / "out", "--masks", "-q")
    (row,) = rows(tmp_path / "out")
    (region, *_) = json.loads(row["regions"])
    assert int(row["n_regions"]) == len(json.loads(row["regions"]))
    with Image.open(tmp_path / "out" / row["pred_mask"]) as picture:
        mask = np.asarray(picture)
    assert mask.shape == (128, 192)
    top, left, bottom, right = region["box"]
    assert mask[top:bottom, left:right].any()
    assert mask[48:80, 114:129].any()  # where the scratch is


def test_threshold_shows_and_changes_the_decision(model, good_folder, tmp_path):
    shown = json.loads(succeed("threshold", model, "--json").stdout)
    assert shown["n_good_images"] == 12
    assert shown["false_alarm_rate"] == shown["lowest_false_alarm_rate"] == pytest.approx(1 / 13)
    said = succeed("threshold", model, "--false-alarm-rate", "0.01").stderr.replace("\n", " ")
    assert "at least 99 good images" in said
    changed = json.loads(succeed("threshold", model, "--value", "0.001", "--json").stdout)
    assert (changed["threshold"], changed["false_alarm_rate"]) == (0.001, None)
    succeed("predict", model, good_folder, "-o", tmp_path / "out", "-q")
    assert {row["pred_label"] for row in rows(tmp_path / "out")} == {"1"}
    assert "false_alarm_rate must lie between 0 and 1" in fail("threshold", model, "--false-alarm-rate", "2").stderr


def test_fit_info_threshold_and_evaluate_state_the_bound(good_folder, dataset, tmp_path):
    """Twelve good images: on average 1 / 13, with 95 % confidence 1 - 0.05 ** (1 / 12)."""
    model, bound = tmp_path / "m.flawmap", pytest.approx(1 - 0.05 ** (1 / 12))
    fitted = json.loads(succeed("fit", good_folder, "-o", model, *FIT, "--json", "-q").stdout)
    described = json.loads(succeed("info", model, "--json").stdout)
    shown = json.loads(succeed("threshold", model, "--json").stdout)
    evaluated = json.loads(succeed("evaluate", model, dataset, "--json", "-q").stdout)
    assert fitted["false_alarm_bound_95"] == bound
    assert described["decision"]["false_alarm_bound_95"] == shown["false_alarm_bound_95"] == bound
    assert evaluated["promised_false_alarm_bound_95"] == bound
    assert evaluated["promised_confidence"] is None
    assert (described["decision"]["n_groups"], shown["n_groups"], shown["confidence"]) == (12, 12, None)
    said = succeed("fit", good_folder, "-o", model, *FIT).stderr.replace("\n", " ")
    assert "on average at most 7.69 % of good parts are flagged" in said
    assert "With 95 % confidence it is at most 22.1 %: of 12 good images with held-out scores 0 are above" in said
    assert "decision.false_alarm_bound_95" in succeed("info", model).stdout
    assert "guaranteed 0.0769 on average, 0.221 with 95 % confidence" in " ".join(
        succeed("evaluate", model, dataset, "-q").stdout.split()
    )


def test_threshold_certifies_a_rate_or_says_what_is_missing(model, dataset):
    said = fail("threshold", model, "--certify", "0.95", "--false-alarm-rate", "0.05").stderr.replace("\n", " ")
    assert "at least 59 good images with held-out scores; there are 12, which can certify 22.1 %" in said
    changed = json.loads(succeed("threshold", model, "--certify", "0.9", "--false-alarm-rate", "0.4", "--json").stdout)
    assert (changed["false_alarm_rate"], changed["confidence"]) == (0.4, 0.9)
    assert load(model).decision_.bound(0.9) <= 0.4
    again = json.loads(succeed("threshold", model, "--certify", "0.9", "--json").stdout)
    assert again == changed
    said = succeed("threshold", model, "--certify", "0.9").stderr.replace("\n", " ")
    assert "with 90 % confidence at most 40 % of good parts are flagged" in said
    assert "fit with --calibrate holdout" in said
    assert "guaranteed 0.4 with 90 % confidence" in " ".join(succeed("evaluate", model, dataset, "-q").stdout.split())
    assert "either it or --value" in fail("threshold", model, "--certify", "0.9", "--value", "3").stderr
    assert "confidence must lie between 0 and 1" in fail("threshold", model, "--certify", "95").stderr
    plain = json.loads(succeed("threshold", model, "--false-alarm-rate", "0.4", "--json").stdout)
    assert (plain["false_alarm_rate"], plain["confidence"]) == (0.4, None)


@pytest.mark.parametrize("exported_too", [False, True], ids=["model", "export"])
def test_predict_labels_a_batch_by_its_false_discovery_rate(model, good_folder, scratched, tmp_path, exported_too):
    for i in range(5):
        Image.fromarray(np.roll(scratched, 7 * i, axis=0)).save(good_folder / f"scratched{i}.png")
    if exported_too:
        succeed("export", model, "-o", tmp_path / "export", "-q")
    judge = tmp_path / "export" if exported_too else model
    p_values = [prediction.p_value for prediction in load(model).predict(good_folder)]
    for rate in (0.05, 0.5):
        done = succeed("predict", judge, good_folder, "-o", tmp_path / "out", "--fdr", rate, "--masks", "--json", "-q")
        told, wanted = json.loads(done.stdout), discover(p_values, rate)
        lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
        assert [bool(line["pred_label"]) for line in lines] == wanted.tolist()
        assert [int(row["pred_label"]) for row in rows(tmp_path / "out")] == wanted.astype(int).tolist()
        assert told["n_anomalous"] == wanted.sum()
        assert told["false_discovery"]["fewest_discoveries"] == (None if rate == 0.05 else 3)
        assert told["false_discovery"]["smallest_p_value"] == pytest.approx(1 / 13)
        assert len(list((tmp_path / "out" / "overlays").iterdir())) == 17
    assert wanted.sum() == 5
    said = succeed("predict", judge, good_folder, "-o", tmp_path / "out", "--fdr", "0.5").stderr.replace("\n", " ")
    assert "5 of them anomalous at a false-discovery rate of 50 %" in said
    assert "the smallest is 1/13 with 12 good images, and fewer than 3 anomalous images" in said
    assert "you need 33 good images" in said
    said = succeed("predict", judge, good_folder, "-o", tmp_path / "out", "--fdr", "0.05").stderr.replace("\n", " ")
    assert "no image of this batch can be labelled anomalous" in said
    assert "between 0 and 1" in fail("predict", judge, good_folder, "-o", tmp_path / "out", "--fdr", "2").stderr
    assert (
        json.loads(succeed("predict", judge, good_folder, "-o", tmp_path / "o", "--json").stdout)["false_discovery"]
        is None
    )


def test_predict_by_a_false_discovery_rate_keeps_its_exit_codes(model, good_folder, tmp_path):
    (good_folder / "003.png").write_bytes(b"no image")
    out = tmp_path / "out"
    assert "003.png" in fail("predict", model, good_folder, "-o", out, "--fdr", "0.1", "-q").stderr
    assert len(rows(out)) == 11
    succeed("predict", model, good_folder, "-o", out, "--fdr", "0.1", "-q", "--skip-bad")
    succeed("fit", good_folder, "-o", model, *FIT, "--calibrate", "none", "--skip-bad", "-q")
    assert "--fdr needs" in fail("predict", model, good_folder, "-o", out, "--fdr", "0.1", "-q").stderr.replace(
        "\n", " "
    )
    assert len(rows(out)) == 11


@pytest.fixture
def labelled_folder(tmp_path, good_images, scratched):
    """Good parts and scratched ones, in folders by type."""
    for kind, images in (("good", good_images), ("scratch", [scratched, scratched[::-1], scratched[:, ::-1]])):
        (tmp_path / "labelled" / kind).mkdir(parents=True)
        for i, image in enumerate(images):
            Image.fromarray(np.ascontiguousarray(image)).save(tmp_path / "labelled" / kind / f"{i}.png")
    return tmp_path / "labelled"


@pytest.mark.parametrize("by", ["f1", "youden", "cost"])
def test_threshold_from_labelled_images(model, labelled_folder, by):
    changed = json.loads(succeed("threshold", model, "--labelled", labelled_folder, "--by", by, "--json", "-q").stdout)
    assert changed["false_alarm_rate"] is None
    assert changed["labelled"]["threshold"] == changed["threshold"]
    assert changed["labelled"]["miss_rate"]["value"] == changed["labelled"]["false_alarm_rate"]["value"] == 0
    assert changed["labelled"]["miss_rate"]["n"] == 3
    learnt = "12 of 12 good images were learnt from: their scores are too low, leave them out; first "
    assert changed["warnings"] == [f"{learnt}{labelled_folder / 'good/0.png'}"]
    assert json.loads(succeed("threshold", model, "--json").stdout)["threshold"] == changed["threshold"]
    said = succeed("threshold", model, "--labelled", labelled_folder).stderr.replace("\n", " ")
    assert "defects missed 0.000 of 3 (95 % 0.000 to" in said
    assert learnt in said


@pytest.mark.parametrize("option", ["--miss-cost", "--false-alarm-cost", "--defect-rate"])
def test_costs_that_nothing_asks_for_are_refused(model, option):
    assert f"{option} needs --by cost" in fail("threshold", model, option, "0.5").stderr


def test_threshold_by_labels_without_labels_is_refused(model):
    assert "--labelled DATASET" in fail("threshold", model, "--by", "f1").stderr.replace("\n", " ")
    assert "give one of" in fail("threshold", model, "--by", "f1", "--labelled", "x", "--value", "1").stderr
    run("threshold", model, "--by", "luck", code=2)


def test_evaluate_plots_promised_against_realised_rates(model, labelled_folder, tmp_path):
    plot = tmp_path / "kept.png"
    figures = json.loads(succeed("evaluate", model, labelled_folder, "--json", "--reliability", plot, "-q").stdout)
    assert len(figures["reliability"]["realised"]) == len(figures["reliability"]["asked"])
    assert figures["reliability"]["realised"][0]["n"] == 12
    with Image.open(plot) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300
    assert (
        "no such folder" in fail("evaluate", model, labelled_folder, "--reliability", tmp_path / "no" / "k.png").stderr
    )


def test_near_duplicates_and_groups(good_folder, tmp_path):
    quick = [*FIT, "--n-features", "80"]
    for path in sorted(good_folder.iterdir())[:4]:
        with Image.open(path) as image:
            image.point(lambda value: min(255, value + 1)).save(path.with_name(f"{path.stem}_again.png"))
    said = succeed("fit", good_folder, "-o", tmp_path / "m.flawmap", *quick, "--groups", "none").stderr
    assert "images that nearly equal others: 4, such as" in said.replace("\n", " ")
    assert "--groups" in said
    said = succeed("fit", good_folder, "-o", tmp_path / "m.flawmap", *quick).stderr.replace("\n", " ")
    assert "8 images are alike, in 4 groups of up to 2, such as" in said
    assert (
        "12 groups can guarantee 7.7 % false alarms at the lowest; 16 independent images could guarantee 5.9 %" in said
    )
    for groups in (r"(\d+)(_again)?\.png", "auto"):
        options = [*quick, "--groups", groups, "--json", "-q"]
        fitted = json.loads(succeed("fit", good_folder, "-o", tmp_path / "m.flawmap", *options).stdout)
        assert fitted["near_duplicates"] == []
        assert fitted["false_alarm_rate"] == fitted["lowest_false_alarm_rate"] == pytest.approx(1 / 13)
        assert fitted["n_groups"] == 12
        assert [len(group) for group in fitted["found_groups"]] == ([2] * 4 if groups == "auto" else [])
    assert json.loads(succeed("info", tmp_path / "m.flawmap", "--json").stdout)["decision"]["n_groups"] == 12


def test_a_fit_that_cannot_decide_says_why(good_folder, tmp_path):
    said = succeed("fit", good_folder, "-o", tmp_path / "m.flawmap", *FIT, "--groups", "folder").stderr
    assert "too few good images, or groups of them, for a threshold" in said.replace("\n", " ")


@pytest.mark.parametrize(("given", "expected"), [("paper", (0, 0.01)), ("0.5", (0, 0.5)), ("0.2,0.5", (0.2, 0.5))])
def test_regularization_as_given(good_folder, tmp_path, given, expected):
    options = [*FIT[:-1], given, "--json", "-q"]
    fitted = json.loads(succeed("fit", good_folder, "-o", tmp_path / "m.flawmap", *options).stdout)
    assert (fitted["regularization"]["sharing"], fitted["regularization"]["ridge"]) == expected


def test_regularization_that_is_none(good_folder, tmp_path):
    assert "--regularization must" in fail("fit", good_folder, "-o", tmp_path / "m", *FIT[:-1], "strong").stderr


def test_copies_among_the_good_images_are_told(good_folder, tmp_path):
    (good_folder / "copy.png").write_bytes((good_folder / "002.png").read_bytes())
    options = [*FIT, "--groups", "none"]
    said = succeed("fit", good_folder, "-o", tmp_path / "m.flawmap", *options).stderr.replace("\n", " ")
    assert "copies of other images: 1, such as" in said
    fitted = json.loads(succeed("fit", good_folder, "-o", tmp_path / "m.flawmap", *options, "--json", "-q").stdout)
    assert [Path(name).name for name in fitted["copies"]] == ["copy.png"]


def test_a_fit_without_calibration_makes_no_decision(good_folder, tmp_path):
    succeed("fit", good_folder, "-o", tmp_path / "m.flawmap", *FIT, "--calibrate", "none", "-q")
    succeed("predict", tmp_path / "m.flawmap", good_folder, "-o", tmp_path / "out", "-q")
    assert {row["pred_label"] for row in rows(tmp_path / "out")} == {""}
    assert "not calibrated" in fail("threshold", tmp_path / "m.flawmap").stderr


def test_usage_version_and_help():
    run("fit", code=2)
    run("fit", "x", code=2)
    assert succeed("--version").stdout.strip()
    for command in ("fit", "predict", "evaluate", "info", "threshold", "export", "demo"):
        assert command in succeed("--help").stdout
        assert "--json" in succeed(command, "--help").stdout


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "flawmap", *map(str, arguments)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_fit_leaves_nothing(good_folder, tmp_path, number, code):
    target = tmp_path / "models" / "m.flawmap"
    target.parent.mkdir()
    for i in range(400):
        os.link(good_folder / "000.png", good_folder / f"copy{i}.png")
    process = start("fit", good_folder, "-o", target, "--resize", "512", "--backbone", "resnet10t", "--random-weights")
    wait_until(lambda: process.poll() is None and open_files(process, good_folder))
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in errors
    assert list(target.parent.iterdir()) == []


def test_an_interrupted_predict_leaves_nothing(model, good_folder, tmp_path):
    out = tmp_path / "out"
    for i in range(600):
        os.link(good_folder / "000.png", good_folder / f"copy{i}.png")
    process = start("predict", model, good_folder, "-o", out)
    wait_until(lambda: len(list(tmp_path.glob(".out.*.partial/overlays/*.png"))) > 3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert not out.exists()
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize(("lost", "code"), [("KeyboardInterrupt", 130), ("SystemExit(143)", 143)])
def test_an_interrupt_within_a_destructor_is_not_lost(lost, code):
    script = f"""
import time
from flawmap.cli import app, main

class Dropped:
    def __del__(self):
        raise {lost}

def command():
    Dropped()
    for _ in range(200):
        time.sleep(0.1)

app.app = command
main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=25, check=False)
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def open_files(process, folder):
    """Whether the process is reading images of the folder."""
    return any(str(folder) in str(fd.readlink()) for fd in Path(f"/proc/{process.pid}/fd").iterdir())


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except OSError:
            pass
        time.sleep(0.01)
    pytest.fail("it did not come so far in time")


def test_parts_that_move_are_aligned_on_request(tmp_path):
    for i in range(14):
        folder = tmp_path / ("good" if i < 12 else "new")
        folder.mkdir(exist_ok=True)
        Image.fromarray(photo(angle=i * 33.0, seed=i)).save(folder / f"{i:02}.png")
    Image.new("RGB", (128, 128), "white").save(tmp_path / "new" / "blank.png")
    fitted = succeed("fit", tmp_path / "good", "-o", tmp_path / "m.flawmap", *FIT, "--align", "auto")
    assert "Parts are aligned (rigid, turned by -180 to 180 degrees)" in fitted.output.replace("\n", " ")
    predicted = succeed("predict", tmp_path / "m.flawmap", tmp_path / "new", "-o", tmp_path / "out")
    assert "the part was not found" in predicted.output.replace("\n", " ")
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").read_text().splitlines()))
    assert [row["found"] for row in rows] == ["True", "True", "False"]
    assert rows[2]["pred_label"] == "1"
    turned = (float(rows[1]["angle"]) - float(rows[0]["angle"])) % 360
    assert turned == pytest.approx(33, abs=1)
    fail("predict", tmp_path / "m.flawmap", tmp_path / "new", "-o", tmp_path / "out", "--strict")


def test_wrong_paths_are_told_of_by_what_they_are(model, good_folder, tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("nothing that a model file begins with")
    missing = tmp_path / "none.flawmap"

    def said(*arguments):
        return " ".join(fail(*arguments).stderr.split())

    assert "no such model file" in said("info", missing)
    assert "is not a flawmap model file" in said("threshold", text)
    assert "is not a flawmap model file" in said("info", text)
    assert "is a file; -o takes a folder" in said("predict", model, good_folder, "-o", text)
    cut = tmp_path / "cut.flawmap"
    cut.write_bytes(model.read_bytes()[:2000])
    assert "is damaged" in said("info", cut)
    failed = fail("predict", model, tmp_path / "no.png", "-o", tmp_path / "out", "--json")
    assert failed.stdout == ""


def test_a_fit_says_that_all_images_are_of_one_group(good_folder, tmp_path):
    finished = succeed("fit", good_folder, "-o", tmp_path / "m.flawmap", *FIT, "--groups", "folder")
    assert "all good images fell into one group" in " ".join(finished.stderr.split())


def test_a_fit_says_that_few_images_take_longer(good_folder, tmp_path):
    fit = ["fit", good_folder, "-o", tmp_path / "m.flawmap", *FIT, "--n-features", "20", "--refit-below"]
    note = "fewer than 13 good images: flawmap fits again without each of the 12"
    assert note in " ".join(succeed(*fit, "13").stderr.split())
    assert "fits again" not in succeed(*fit, "12").stderr
    assert "fits again" not in succeed(*fit, "13", "-q").output
