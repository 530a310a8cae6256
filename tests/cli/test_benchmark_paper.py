from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, replace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from flawmap import SPADE, VAE, PaDiM, Prediction
from flawmap.benchmark.paper.plan import Plan
from flawmap.benchmark.paper.published import PAPER_TABLES
from flawmap.benchmark.paper.report import write_report
from flawmap.benchmark.paper.results import Results, Run, read_runs
from flawmap.benchmark.paper.run import run_plan
from flawmap.benchmark.paper.shared_features import SharedFeatures
from flawmap.benchmark.paper.systems import TRAINED, Settings, System, systems
from flawmap.benchmark.paper.tables import absent_classes, build_tables
from flawmap.cli.app import app
from flawmap.evaluation import evaluate_classes
from flawmap.images import Preprocessing

SMALL = ["--backbone", "resnet10t", "--random-weights"]


SETTINGS = Settings("resnet10t", pretrained=False)
ABLATIONS = {*PAPER_TABLES["I"].rows, *PAPER_TABLES["II"].rows}
INPUTS = {name: {"resize": 64, "crop": None} for name in ("mvtec_ad", "rd_mvtec_ad", "stc")}


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    """Trained systems are left out without a budget, as on a machine without a GPU."""
    monkeypatch.setattr("flawmap.benchmark.paper.systems.pick_device", lambda _: torch.device("cpu"))


def padims(settings=SETTINGS, names=ABLATIONS):
    """Without large backbones, which take seconds to make, and without detectors of other kinds."""
    return {name: system for name, system in systems(settings).items() if name in names}


def benchmark(data, output, tables, *, settings=SETTINGS, dataset="mvtec_ad", on_bad=None, plots=False, **options):
    """What the command does, with small inputs and some systems alone."""
    options = {"inputs": INPUTS, "known": padims(settings)} | options
    plan = Plan(data, dataset, tables, output, settings, **options)
    with Results(output, asdict(settings)) as results:
        outcome = run_plan(plan, results, on_bad=on_bad)
        write_report(output, build_tables(tables, outcome, settings), outcome.runs, plots=plots)
    return outcome


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


def test_tables_plots_and_gallery_are_written_and_a_second_start_does_nothing(parts, tmp_path):
    tables, settings = ["I", "II", "III", "V", "VI"], replace(SETTINGS, regularization="likelihood")
    options = {"settings": settings, "rd_seeds": 2, "draws": 2}
    done = benchmark(parts, tmp_path, tables, **options, plots=True)
    assert done.n_done == len(done.runs) == 11 + 4
    assert len(absent_classes(PAPER_TABLES["I"], done)[0]) == 14
    assert done.failures == {}
    assert done.left_out.keys() >= TRAINED.keys()
    for name in ("tables.md", "tables.tex", "tables.html", "galleries/screw.jpg"):
        assert (tmp_path / name).stat().st_size > 500
    plots = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert "mvtec_ad_screw_curves.png" in plots
    assert "rd_mvtec_ad_pro_score.png" in plots
    text = (tmp_path / "tables.md").read_text()
    for name in tables:
        assert f"## Table {name}:" in text
    assert "Not on disk, so that every mean over them is blank: carpet, grid" in text
    page = (tmp_path / "tables.html").read_text()
    assert "galleries/screw.jpg" in page
    assert "plots/mvtec_ad_screw_curves.png" in page
    again = benchmark(parts, tmp_path, tables, **options)
    assert (again.n_done, len(again.runs)) == (0, 15)
    more = benchmark(parts / "screw", tmp_path, tables, settings=settings, draws=3)
    assert more.n_done == 2 + 6  # a draw of Rd100 and Rd200; three more rotations of two systems
    (parts / "screw/test/good/8.png").rename(tmp_path / "8.png")
    fewer = benchmark(parts, tmp_path, tables, **options, systems=["layer1"])
    (tmp_path / "8.png").rename(parts / "screw/test/good/8.png")
    assert (fewer.n_done, len(fewer.runs)) == (1, 1)  # nothing is left of runs on the other images
    compared = run("compare", tmp_path, tmp_path, "--json")
    differences = json.loads(compared.stdout)["differences"]
    assert {one["mean"] for one in differences} == {0.0}
    assert run("compare", tmp_path, tmp_path).exit_code == 0


LAYERS = ("--tables", "I", "--systems", "layer1,layer2", "--no-plots")


def test_the_command_says_what_it_did_and_a_second_start_does_nothing(parts, tmp_path):
    for n_done in (2, 0):
        done = paper(parts, tmp_path, *LAYERS, "--json")
        assert done.exit_code == 0, done.output
        report = json.loads(done.stdout)
        assert (report["n_done"], report["n_runs"]) == (n_done, 2)
        assert len(report["missing"]) == 14
        assert report["failures"] == {}
        assert "layer3" in report["left_out"]
        assert {name.rpartition("/")[2] for name in report["written"]} == {"tables.md", "tables.tex", "tables.html"}
    shown = paper(parts, tmp_path, *LAYERS)
    assert "layer1" in shown.stdout
    assert "Not on disk" in shown.stderr


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
    done = benchmark(root, output, ["IV"], dataset="stc", draws=1, limit_gb=0.0)
    assert done.failures == {}
    assert len(absent_classes(PAPER_TABLES["IV"], done)[0]) == 10  # scene 13 has no test clips
    options = {"backbone": "resnet10t", "pretrained": False, "resize": 64, "calibrate": None, "runtime": "torch"}
    wanted = evaluate_classes(f"stc:{root}", lambda: PaDiM(**options, n_features=100, regularization="paper"))
    runs = {one.category: one.figures for one in read_runs(output)[1]}
    for scene, figures in wanted.by_class.items():
        assert runs[scene]["image_auroc"] == pytest.approx(figures.image_auroc)
        assert runs[scene]["pixel_auroc"] == pytest.approx(figures.pixel_auroc, abs=1e-4)


def small_footprints():
    """Systems at 64 x 64."""

    def small(size):
        return {"resize": 64, "crop": None} if size else {}

    backbone = {"backbone": "resnet10t", "pretrained": False, "calibrate": None}
    return {
        "PaDiM-R18-Rd100": System("PaDiM-R18-Rd100", lambda _, size: [PaDiM(**small(size), **backbone)]),
        "SPADE": System("SPADE", lambda _, size: [SPADE(**small(size), **backbone, n_neighbors=2)]),
        "VAE": System("VAE", lambda *_: [VAE(resize=64, steps=1, batch_size=2, width=8, calibrate=None)]),
    }


def test_time_and_memory_are_measured_once_and_against_the_number_of_images(parts, tmp_path):
    options = {"known": small_footprints(), "n_images": 4, "growth": (8,), "plots": True}
    for n_done in (5, 0):
        assert benchmark(parts, tmp_path, ["VIII"], **options).n_done == n_done
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
    decision_ = None

    def fit(self, images, **_):
        self.mean = np.mean([np.asarray(Image.open(path)) for path in images])
        return self

    def iter_predict(self, images, **_):
        for path in images:
            image = np.asarray(Image.open(path))
            yield Prediction(str(path), abs(image.mean() - self.mean), None, self.preprocessing.place((64, 64)))


def test_any_detector_is_one_entry_of_the_registry(parts, tmp_path):
    system = System("MahalanobisAD", lambda _seed, _size: [Brightness()])
    assert benchmark(parts, tmp_path, ["V"], known={system.name: system}).failures == {}
    [found] = read_runs(tmp_path)[1]
    assert found.figures["image_auroc"] == 1.0
    assert found.figures["pixel_auroc"] is None


def test_what_cannot_be_run_is_said_and_the_rest_goes_on(parts, tmp_path, monkeypatch):
    monkeypatch.delenv("FLAWMAP_WEIGHTS", raising=False)
    settings = Settings("efficientnet_lite0", pretrained=False)
    known = padims(settings, ("Rd200", "Rd100"))
    done = benchmark(parts, tmp_path, ["II"], settings=settings, known=known, draws=1)
    assert done.n_done == 1
    assert "between 1 and 176" in done.failures["Rd200, screw"]
    assert "between 1 and 176" in (tmp_path / "tables.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tables", "IX"], "unknown table 'IX'"),
        (["--tables", "IV"], "table IV is of stc, not of mvtec_ad"),
        (["--dataset", "btad"], "mvtec_ad and stc, got 'btad'"),
        (["--draws", "0"], "1 to 1000"),
        (["--classes", "tile"], "holds no class of MVTec AD"),
        (["--regularization", "some"], "auto, likelihood, paper"),
        (["--backbone", "resnet9000"], "unknown backbone"),
        (["--cache-gb", "nan"], "finite number of GB"),
        (["--cache-gb", "-5"], "finite number of GB"),
        (["--budget", "nan"], "finite number of minutes"),
        (["--regularization", "nan"], "finite number >= 0"),
        (["--regularization", "1e400"], "finite number >= 0"),
        (["--draws", "999999999999"], "1 to 1000"),
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


def test_a_damaged_image_is_met_once_and_skipped_on_request(damaged, tmp_path, monkeypatch):
    made = []
    original = SharedFeatures.compute
    monkeypatch.setattr(SharedFeatures, "compute", lambda *a: (made.append(1), original(*a)))
    wanted = {"systems": ["layer1", "layer2"]}
    done = benchmark(damaged, tmp_path / "out", ["I"], **wanted)
    assert "cut short" in done.failures["mvtec_ad screw"]
    assert len(made) == 1
    done = benchmark(damaged, tmp_path / "out", ["I"], **wanted, on_bad=lambda _: None)
    assert done.failures == {}
    assert len(made) == 3
    found = read_runs(tmp_path / "out")[1]
    assert [(run.n_skipped, run.n_without_mask, run.n_test) for run in found] == [(1, 3, 5)] * 2
    text = (tmp_path / "out/tables.md").read_text()
    assert "cannot be read, and are left out: 1 of screw" in text
    assert "pixel figures leave out: 3 of screw" in text


def test_progress_ends_exactly_full(damaged, parts, tmp_path):
    for root, on_bad in ((parts, None), (damaged, None), (damaged, lambda _: None)):
        seen, output = [], tmp_path / f"out{root.name}"
        options = {"draws": 1, "rd_seeds": 1, "inputs": INPUTS, "known": padims()}
        plan = Plan(root, "mvtec_ad", ["I", "VI"], output, SETTINGS, **options)
        with Results(output, {}) as results:
            run_plan(plan, results, progress=lambda done, total, seen=seen: seen.append((done, total)), on_bad=on_bad)
        assert seen[-1][0] == seen[-1][1]
        assert all(done <= total for done, total in seen)


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


def test_a_class_not_asked_for_is_not_called_missing(parts, tmp_path):
    root = tmp_path / "two"
    for name in ("screw", "tile"):
        shutil.copytree(parts / "screw", root / name)
    for name, unasked, n_missing in (("tile", ["screw"], 13), ("screw", [], 13)):
        done = benchmark(root, tmp_path / "out", ["I"], systems=["layer1"], classes=[name])
        missing, not_asked = absent_classes(PAPER_TABLES["I"], done)
        assert not_asked == unasked
        assert len(missing) == n_missing


def test_a_backbone_that_cannot_take_the_size_is_said(parts, tmp_path):
    settings = Settings("vit_small_patch14_dinov2", pretrained=False)
    done = benchmark(parts, tmp_path, ["I"], settings=settings, systems=["layer1", "layer2"])
    assert any("64 x 64" in reason for reason in done.failures.values())
