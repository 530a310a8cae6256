from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from flawmap import SPADE, VAE, PaDiM, Prediction
from flawmap.benchmark.paper import class_images, plan
from flawmap.benchmark.paper.published import PAPER_TABLES
from flawmap.benchmark.paper.results import Results, Run, read_runs
from flawmap.benchmark.paper.run import run_plan
from flawmap.benchmark.paper.shared_features import SharedFeatures
from flawmap.benchmark.paper.systems import ABLATIONS, TRAINED, Settings, System
from flawmap.cli.app import app
from flawmap.evaluation import evaluate_classes
from flawmap.images import Preprocessing

SMALL = ["--backbone", "resnet10t", "--random-weights"]


@pytest.fixture(autouse=True)
def small_inputs(monkeypatch):
    monkeypatch.setattr("flawmap.benchmark.paper.systems.pick_device", lambda _: torch.device("cpu"))
    for dataset in class_images.INPUTS:
        monkeypatch.setitem(class_images.INPUTS, dataset, {"resize": 64, "crop": None})


@pytest.fixture(scope="module")
def parts(tmp_path_factory, good_images, scratched):
    """MVTec AD with one class of eight good parts, two good and two scratched ones to test on."""
    root = tmp_path_factory.mktemp("parts")
    folder = root / "screw"
    mask = np.zeros(scratched.shape[:2], np.uint8)
    mask[24:40, 38:43] = 255
    images = {f"train/good/{i}.png": good_images[i] for i in range(8)}
    images |= {f"test/good/{i}.png": good_images[i] for i in (8, 9)}
    for i, strength in enumerate((0.1, 1.0)):
        mixed = good_images[10 + i] + strength * (scratched.astype(float) - good_images[0])
        images[f"test/scratch/{i}.png"] = np.clip(mixed, 0, 255).astype(np.uint8)
        images[f"ground_truth/scratch/{i}_mask.png"] = mask
    for name, image in images.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name)
    return root


def run(*arguments):
    return CliRunner().invoke(app, ["benchmark", *map(str, arguments)])


def paper(data, output, *arguments):
    return run("paper", "--data", data, "-o", output, *SMALL, *arguments)


@pytest.fixture
def padims_only(monkeypatch):
    """Without large backbones, which take seconds to make, and without detectors of other kinds."""
    original = plan.systems
    monkeypatch.setattr(plan, "systems", lambda s, **k: {n: v for n, v in original(s, **k).items() if n in ABLATIONS})


@pytest.mark.usefixtures("padims_only")
def test_tables_plots_and_gallery_are_written_and_a_second_start_does_nothing(parts, tmp_path):
    options = ["--tables", "I,II,III,V,VI", "--draws", "2", "--rd-seeds", "2", "--regularization", "auto", "--json"]
    done = paper(parts, tmp_path, *options)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["n_done"] == report["n_runs"] == 11 + 4
    assert len(report["missing"]) == 14
    assert report["failures"] == {}
    assert report["left_out"].keys() >= TRAINED.keys()
    for name in ("tables.md", "tables.tex", "tables.html", "galleries/screw.jpg"):
        assert (tmp_path / name).stat().st_size > 500
    plots = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert "mvtec_ad_screw_curves.png" in plots
    assert "rd_mvtec_ad_pro_score.png" in plots
    text = (tmp_path / "tables.md").read_text()
    for name in ("I:", "II:", "III:", "V:", "VI:"):
        assert f"## Table {name}" in text
    assert "Not on disk, so that every mean they enter into is left blank: carpet, grid" in text
    page = (tmp_path / "tables.html").read_text()
    assert "galleries/screw.jpg" in page
    assert "plots/mvtec_ad_screw_curves.png" in page
    again = json.loads(paper(parts, tmp_path, *options, "--no-plots").stdout)
    assert (again["n_done"], again["n_runs"]) == (0, 15)
    more = json.loads(paper(parts / "screw", tmp_path, *options[:2], "--draws", "3", *options[6:], "--no-plots").stdout)
    assert more["n_done"] == 2 + 6  # a draw of Rd100 and Rd200; three more rotations of two systems
    (parts / "screw/test/good/8.png").rename(tmp_path / "8.png")
    fewer = json.loads(paper(parts, tmp_path, *options, "--systems", "layer1", "--no-plots").stdout)
    (tmp_path / "8.png").rename(parts / "screw/test/good/8.png")
    assert (fewer["n_done"], fewer["n_runs"]) == (1, 1)  # nothing is left of runs on the other images
    compared = run("compare", tmp_path, tmp_path, "--json")
    differences = json.loads(compared.stdout)["differences"]
    assert {one["mean"] for one in differences} == {0.0}
    assert run("compare", tmp_path, tmp_path).exit_code == 0


@pytest.mark.usefixtures("padims_only")
def test_each_scene_of_a_campus_is_measured_as_by_evaluate_classes(good_images, scratched, tmp_path):
    root = tmp_path / "campus"
    for folder in ("training/videos", "testing/frames", "testing/test_pixel_mask", "testing/test_frame_mask"):
        (root / folder).mkdir(parents=True)
    masks = np.zeros((6, 64, 64), np.uint8)
    masks[2:5, 24:40, 38:43] = 1
    for scene, strength in (("01", 1.0), ("02", 0.05)):
        video = root / f"training/videos/{scene}_001.avi"
        writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"MJPG"), 25, (64, 64))
        for image in good_images:
            writer.write(image[..., ::-1])
        writer.release()
        clip = root / f"testing/frames/{scene}_0001"
        clip.mkdir()
        for i in range(6):
            mixed = good_images[i] + strength * (scratched.astype(float) - good_images[0]) * masks[i, ..., None]
            Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8)).save(clip / f"{i:03}.jpg", quality=95)
        np.save(root / f"testing/test_pixel_mask/{clip.name}.npy", masks)
        np.save(root / f"testing/test_frame_mask/{clip.name}.npy", masks.any(axis=(1, 2)))
    output = tmp_path / "out"
    done = paper(root, output, "--dataset", "stc", "--draws", "1", "--cache-gb", "0", "--no-plots", "--json")
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.stdout)["missing"]) == 10  # scene 13 has no test clips
    options = {"backbone": "resnet10t", "pretrained": False, "resize": 64, "calibrate": None, "runtime": "torch"}
    wanted = evaluate_classes(f"stc:{root}", lambda: PaDiM(**options, n_features=100, regularization="paper"))
    runs = {one.category: one.figures for one in read_runs(output)[1]}
    for scene, figures in wanted.by_class.items():
        assert runs[scene]["image_auroc"] == pytest.approx(figures.image_auroc)
        assert runs[scene]["pixel_auroc"] == pytest.approx(figures.pixel_auroc, abs=1e-4)


def small_footprints(monkeypatch, table):
    """Systems at 64 x 64, with few images; the table alone."""

    def small(size):
        return {"resize": 64, "crop": None} if size else {}

    backbone = {"backbone": "resnet10t", "pretrained": False, "calibrate": None}
    known = {
        "PaDiM-R18-Rd100": System("PaDiM-R18-Rd100", lambda _, size: [PaDiM(**small(size), **backbone)]),
        "SPADE": System("SPADE", lambda _, size: [SPADE(**small(size), **backbone, n_neighbors=2)]),
        "VAE": System("VAE", lambda *_: [VAE(resize=64, steps=1, batch_size=2, width=8, calibrate=None)]),
    }
    monkeypatch.setattr("flawmap.benchmark.paper.run.systems_without_data", lambda: known)
    monkeypatch.setattr("flawmap.benchmark.paper.run.N_IMAGES", 4)
    monkeypatch.setattr("flawmap.benchmark.paper.run.GROWTH", (8,))
    rows = replace(PAPER_TABLES[table], rows=tuple(known))
    monkeypatch.setitem(PAPER_TABLES, table, rows)


def test_time_and_memory_are_measured_once_and_against_the_number_of_images(parts, tmp_path, monkeypatch):
    small_footprints(monkeypatch, "VIII")
    for n_done in (5, 0):
        done = paper(parts, tmp_path, "--tables", "VIII", "--json")
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["n_done"] == n_done
    found = {(one.system, one.n_train): one.figures for one in read_runs(tmp_path)[1]}
    assert all(0 < figures["seconds"] < 10 for figures in found.values())
    padim, spade = ([found[name, n]["gigabytes"] for n in (4, 8)] for name in ("PaDiM-R18-Rd100", "SPADE"))
    assert padim[0] == pytest.approx(padim[1], rel=0.01)
    assert spade[1] - spade[0] > 0.4 * spade[1]
    tables = (tmp_path / "tables.md").read_text()
    assert "| SPADE | MVTec AD | 1.40 | 0." in tables
    assert "| SPADE | 8 | 0." in tables
    assert (tmp_path / "plots" / "growth.png").stat().st_size > 5000


def test_systems_that_train_need_a_budget(parts, tmp_path):
    options = ("--tables", "V", "--systems", "GANomaly", "--no-plots", "--json")
    done = paper(parts, tmp_path / "a", *options)
    assert done.exit_code == 1
    assert "--budget MINUTES" in done.output
    done = paper(parts, tmp_path / "b", *options, "--budget", "0.02", "--trained-size", "32")
    assert done.exit_code == 0, done.output
    [found] = read_runs(tmp_path / "b")[1]
    assert found.system == "GANomaly"
    assert 0 <= found.figures["image_auroc"] <= 1
    assert found.figures["pixel_auroc"] is None


def test_a_row_that_no_table_has_is_refused(parts, tmp_path):
    done = paper(parts, tmp_path, "--tables", "V", "--systems", "PatchCore")
    assert done.exit_code == 1
    assert "no row 'PatchCore'" in " ".join(done.output.split())


class Brightness:
    """A detector of whole images that keeps to the protocol."""

    preprocessing = Preprocessing.of(64)

    def fit(self, images, **_):
        self.mean = np.mean([np.asarray(Image.open(path)) for path in images])
        return self

    def iter_predict(self, images, **_):
        for path in images:
            image = np.asarray(Image.open(path))
            yield Prediction(str(path), abs(image.mean() - self.mean), None, self.preprocessing.place((64, 64)))


def test_any_detector_is_one_entry_of_the_registry(parts, tmp_path, monkeypatch):
    system = System("MahalanobisAD", lambda _seed, _size: [Brightness()])
    monkeypatch.setattr(plan, "systems", lambda _, **__: {system.name: system})
    done = paper(parts, tmp_path, "--tables", "V", "--no-plots", "--json")
    assert done.exit_code == 0, done.output
    [found] = read_runs(tmp_path)[1]
    assert found.figures["image_auroc"] == 1.0
    assert found.figures["pixel_auroc"] is None


def test_what_cannot_be_run_is_said_and_the_rest_goes_on(parts, tmp_path, monkeypatch):
    monkeypatch.delenv("FLAWMAP_WEIGHTS", raising=False)
    original = plan.systems
    monkeypatch.setattr(
        plan, "systems", lambda s, **k: {n: v for n, v in original(s, **k).items() if n in ("Rd200", "Rd100")}
    )
    options = ["--backbone", "efficientnet_lite0", "--tables", "II", "--draws", "1", "--no-plots", "--json"]
    done = run("paper", "--data", parts, "-o", tmp_path, *options)
    assert done.exit_code == 1, done.output
    report = json.loads(done.stdout)
    assert report["n_done"] == 1
    assert "between 1 and 176" in report["failures"]["Rd200, screw"]
    assert "between 1 and 176" in (tmp_path / "tables.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tables", "IX"], "unknown table 'IX'"),
        (["--tables", "IV"], "table IV is of stc, not of mvtec_ad"),
        (["--dataset", "btad"], "mvtec_ad and stc, got 'btad'"),
        (["--draws", "0"], "at least one draw"),
        (["--classes", "tile"], "holds no class of MVTec AD"),
        (["--regularization", "some"], "takes auto, paper"),
        (["--backbone", "resnet9000"], "unknown backbone"),
        (["--cache-gb", "nan"], "finite number of GB"),
        (["--cache-gb", "-5"], "finite number of GB"),
        (["--budget", "nan"], "finite number of minutes"),
        (["--regularization", "nan"], "finite number >= 0"),
        (["--regularization", "1e400"], "finite number >= 0"),
        (["--draws", "999999999999"], "at most 1000"),
        (["--weights", "w.pth"], "give one or the other"),
    ],
)
def test_impossible_wishes_are_refused(parts, tmp_path, arguments, message):
    done = paper(parts, tmp_path, *arguments)
    assert done.exit_code == 1
    assert message in " ".join(done.output.split())
    assert "Traceback" not in done.output


def test_a_folder_that_is_not_there_or_in_use_is_refused(parts, tmp_path):
    assert "no such folder" in paper(tmp_path / "nowhere", tmp_path / "out").output
    settings = {"dataset": "mvtec_ad"}
    with Results(tmp_path / "busy", settings):
        assert "another benchmark" in " ".join(paper(parts, tmp_path / "busy").output.split())
    assert "other settings" in " ".join(paper(parts, tmp_path / "busy").output.split())
    assert "no such results" in run("compare", tmp_path, tmp_path).output


def test_results_without_a_common_run_are_refused(tmp_path):
    for name in ("a", "b"):
        with Results(tmp_path / name, {}):
            pass
    assert "no run in common" in run("compare", tmp_path / "a", tmp_path / "b").output


LAYERS = ("--tables", "I", "--systems", "layer1,layer2", "--no-plots")


@pytest.fixture
def damaged(parts, tmp_path):
    """A copy with a missing and an empty mask, and a test image that is cut short and whose name is no UTF-8."""
    root = tmp_path / "damaged"
    shutil.copytree(parts / "screw", root / "screw")
    (root / "screw/ground_truth/scratch/0_mask.png").unlink()
    for name in ("ground_truth/scratch/2_mask.png", "test/scratch/2.png", "ground_truth/scratch/1_mask.png"):
        Image.new("L", (64, 64)).save(root / "screw" / name)
    whole = (root / "screw/test/good/8.png").read_bytes()
    (root / "screw/test/good" / os.fsdecode(b"\xff.png")).write_bytes(whole[:200])
    return root


@pytest.mark.usefixtures("padims_only")
def test_a_damaged_image_is_met_once_and_skipped_on_request(damaged, tmp_path, monkeypatch):
    made = []
    original = SharedFeatures.compute
    monkeypatch.setattr(SharedFeatures, "compute", lambda *a: (made.append(1), original(*a)))
    done = paper(damaged, tmp_path / "out", *LAYERS, "--json")
    assert done.exit_code == 1
    assert "cut short" in done.output
    assert len(made) == 1
    done = paper(damaged, tmp_path / "out", *LAYERS, "--skip-bad", "--json")
    assert done.exit_code == 0, done.output
    assert len(made) == 3
    found = read_runs(tmp_path / "out")[1]
    assert [(run.n_skipped, run.n_without_mask, run.n_test) for run in found] == [(1, 3, 5)] * 2
    text = (tmp_path / "out/tables.md").read_text()
    assert "cannot be read, and are left out: 1 of screw" in text
    assert "pixel figures leave out: 3 of screw" in text


@pytest.mark.usefixtures("padims_only")
def test_progress_ends_exactly_full(damaged, parts, tmp_path):
    for root, on_bad in ((parts, None), (damaged, None), (damaged, lambda _: None)):
        seen = []
        settings = Settings("resnet10t", pretrained=False)
        wanted = plan.Plan(root, "mvtec_ad", ["I", "VI"], tmp_path / f"out{root.name}", settings, draws=1, rd_seeds=1)
        with Results(tmp_path / f"out{root.name}", {}) as results:
            run_plan(wanted, results, progress=lambda done, total, seen=seen: seen.append((done, total)), on_bad=on_bad)
        assert seen[-1][0] == seen[-1][1]
        assert all(done <= total for done, total in seen)


@pytest.mark.usefixtures("padims_only")
def test_names_are_whole_in_a_pipe_and_in_a_file(tmp_path):
    name = "padim_with_a_long_name_" * 8
    for folder in ("a", "b"):
        with Results(tmp_path / folder, {}) as results:
            results.append(Run("mvtec_ad", "screw", name, 0, {"image_auroc": 0.5}, 1, 1))
    done = run("compare", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "table.md")
    assert done.exit_code == 0, done.output
    assert name in done.stdout
    assert name in (tmp_path / "table.md").read_text()
    assert run("compare", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "table.csv").exit_code == 1


@pytest.mark.usefixtures("padims_only")
def test_a_class_not_asked_for_is_not_called_missing(parts, tmp_path):
    root = tmp_path / "two"
    for name in ("screw", "tile"):
        shutil.copytree(parts / "screw", root / name)
    first = json.loads(paper(root, tmp_path / "out", *LAYERS, "--classes", "tile", "--json").stdout)
    assert first["not_asked_for"] == ["screw"]
    assert "tile" not in first["missing"]
    again = json.loads(paper(root, tmp_path / "out", *LAYERS, "--classes", "screw", "--json").stdout)
    assert again["not_asked_for"] == []
    assert len(again["missing"]) == 13


@pytest.mark.usefixtures("padims_only")
def test_a_backbone_that_cannot_take_the_size_is_said(parts, tmp_path):
    options = ["--backbone", "vit_tiny_patch16_224", "--random-weights", *LAYERS, "--json"]
    done = run("paper", "--data", parts, "-o", tmp_path, *options)
    assert done.exit_code == 1
    assert "cannot take images of 64 x 64" in done.output
