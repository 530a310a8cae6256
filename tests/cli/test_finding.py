"""What the commands do with files that are no images, with pages, videos, cameras and empty arguments."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from commands import FIT, run
from videos import write_video


@pytest.fixture(scope="module")
def model(good_images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted")
    for i, image in enumerate(good_images):
        Image.fromarray(image).save(folder / f"{i:03}.png")
    run("fit", folder, "-o", folder / "part.flawmap", *FIT, "-q")
    return folder / "part.flawmap"


@pytest.fixture
def mixed(good_images, scratched, tmp_path):
    """One good .png, five defective images of other endings, and four files that are none."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    Image.fromarray(good_images[0]).save(folder / "a.png")
    for name, kind in {"b.jfif": "JPEG", "c.avif": "AVIF", "d.tga": "TGA", "e.j2k": "JPEG2000", "f": "PNG"}.items():
        Image.fromarray(scratched).save(folder / name, kind)
    for name in ("1.txt", "2.txt", "3.txt", "4.csv", ".hidden", "Thumbs.db"):
        (folder / name).write_text("none")
    return folder


def rows(output):
    with (output / "predictions.csv").open(newline="", encoding="utf-8") as table:
        return list(csv.DictReader(table))


def test_no_defective_image_is_passed_over(model, mixed, tmp_path):
    out = tmp_path / "out"
    result = run("predict", model, mixed, "-o", out)
    assert "Scored 6 images, 5 of them anomalous" in result.stderr
    assert "note: 4 files passed over: 3 .txt, 1 .csv" in result.stderr
    assert [Path(row["path"]).name for row in rows(out)] == ["a.png", "b.jfif", "c.avif", "d.tga", "e.j2k", "f"]
    told = json.loads(run("predict", model, mixed, "-o", out, "--json").stdout)
    assert [Path(path).name for path in told["passed_over"]] == ["1.txt", "2.txt", "3.txt", "4.csv"]
    assert "passed over" not in run("predict", model, mixed, "-o", out, "-q").output


def test_strict_stops_before_the_work(model, mixed, tmp_path, monkeypatch):
    monkeypatch.setattr("flawmap.detectors.Detector.fit", None)
    for command in (("predict", model, mixed, "-o", tmp_path / "out"), ("fit", mixed, "-o", tmp_path / "m", *FIT)):
        result = run(*command, "--strict", code=1)
        assert "4 files passed over: 3 .txt, 1 .csv; the first is" in result.stderr.replace("\n", " ")
        assert not (tmp_path / "out").exists()
        assert not (tmp_path / "m").exists()


def test_strict_without_other_files_changes_nothing(model, good_folder, tmp_path):
    (good_folder / ".DS_Store").touch()
    run("fit", good_folder, "-o", tmp_path / "m.flawmap", "--strict", *FIT)
    run("predict", model, good_folder, "-o", good_folder / "out", "--strict")
    run("predict", model, good_folder, "-o", good_folder / "out", "--strict")  # its own tables are not in the way


def test_fit_tells_what_it_passed_over(good_folder, tmp_path):
    (good_folder / "notes.txt").touch()
    result = run("fit", good_folder, "-o", tmp_path / "m.flawmap", *FIT)
    assert "1 file passed over: 1 .txt" in result.stderr
    told = json.loads(run("fit", good_folder, "-o", tmp_path / "m.flawmap", "--json", *FIT).stdout)
    assert (told["n_images"], told["passed_over"]) == (12, [str(good_folder / "notes.txt")])


def test_the_library_warns(model, mixed, good_folder):
    from flawmap import PaDiM, load
    from flawmap.errors import PassedOverWarning

    detector = load(model, runtime="torch")
    with pytest.warns(PassedOverWarning, match=r"4 files passed over: 3 \.txt, 1 \.csv") as told:
        assert len(detector.predict(mixed)) == 6
    assert told[0].filename == __file__
    with pytest.warns(PassedOverWarning, match="4 files passed over"):
        assert len(list(detector.iter_predict(mixed))) == 6
    (good_folder / "notes.txt").touch()
    with pytest.warns(PassedOverWarning, match="1 file passed over"):
        PaDiM(backbone="resnet10t", pretrained=False, resize=64, refit_below=0, regularization="paper").fit(good_folder)


def test_evaluate_and_threshold_tell_what_they_passed_over(model, good_images, scratched, tmp_path):
    for place, image in {"good/0": good_images[0], "good/1": good_images[1], "scratch/0": scratched}.items():
        (tmp_path / "data" / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "data" / f"{place}.png")
    (tmp_path / "data" / "readme.txt").touch()
    assert "passed over" not in run("evaluate", model, tmp_path / "data").output
    run("evaluate", model, tmp_path / "data", "--strict")
    (tmp_path / "data" / "scratch" / "1.heic").touch()
    message = "1 file passed over: 1 .heic; .heic cannot be read: convert them to PNG or TIFF"
    assert message in run("evaluate", model, tmp_path / "data").stderr
    assert message in run("threshold", model, "--labelled", tmp_path / "data").stderr
    assert message in run("evaluate", model, tmp_path / "data", "--strict", code=1).stderr
    told = json.loads(run("evaluate", model, tmp_path / "data", "--json").stdout)
    assert told["passed_over"] == [str(tmp_path / "data" / "scratch" / "1.heic")]


def test_pages_are_rows_with_overlays_of_their_own(model, good_images, scratched, tmp_path):
    first, *more = (Image.fromarray(image) for image in (good_images[0], scratched, good_images[1]))
    first.save(tmp_path / "scan.tif", save_all=True, append_images=more)
    first.save(tmp_path / "scan.png")
    out = tmp_path / "out"
    assert (
        "Scored 4 images, 1 of them anomalous" in run("predict", model, tmp_path / "scan*", "-o", out, "--maps").stderr
    )
    paths = [row["path"] for row in rows(out)]
    assert paths == [f"{tmp_path}/scan.png", *(f"{tmp_path}/scan.tif#{number}" for number in (1, 2, 3))]
    assert [row["pred_label"] for row in rows(out)] == ["0", "0", "1", "0"]
    assert [row["overlay"] for row in rows(out)] == [f"overlays/scan{part}.png" for part in ("", "-1", "-2", "-3")]
    assert [row["anomaly_map"] for row in rows(out)] == [f"maps/scan{part}.npy" for part in ("", "-1", "-2", "-3")]
    pictures = [np.asarray(Image.open(out / row["overlay"])) for row in rows(out)]
    assert (pictures[0] == pictures[1]).all()
    assert (pictures[1] != pictures[2]).any()
    scores = {row["path"]: row["pred_score"] for row in rows(out)}
    run("predict", model, paths[2], paths[0], "-o", tmp_path / "again")  # a path of the table is an input
    assert {row["path"]: row["pred_score"] for row in rows(tmp_path / "again")} == {
        path: scores[path] for path in (paths[2], paths[0])
    }


def test_a_page_in_the_library(model, good_images, scratched, tmp_path):
    from flawmap import load

    detector = load(model, runtime="torch")
    first, second = (Image.fromarray(image) for image in (good_images[0], scratched))
    first.save(tmp_path / "scan.tif", save_all=True, append_images=[second])
    both = detector.predict(tmp_path / "scan.tif")
    assert [prediction.pred_label for prediction in both] == [0, 1]
    one = detector.predict(f"{tmp_path}/scan.tif#2")
    assert (one.path, one.pred_score) == (f"{tmp_path}/scan.tif#2", both[1].pred_score)


def test_a_sample_with_several_pages_is_judged_by_its_first(model, good_images, scratched, tmp_path):
    from flawmap import load
    from flawmap.datasets import open_dataset
    from flawmap.evaluation.evaluate import score_samples

    for kind, images in {"good": good_images[:2], "scratch": (scratched, good_images[0])}.items():
        (tmp_path / "data" / kind).mkdir(parents=True)
        first, second = (Image.fromarray(image) for image in images)
        first.save(tmp_path / "data" / kind / "0.tif", save_all=True, append_images=[second])
    scored = list(score_samples(load(model, runtime="torch"), open_dataset(tmp_path / "data").test, "Scoring"))
    assert [(sample.type, prediction.pred_label) for sample, prediction in scored] == [("good", 0), ("scratch", 1)]
    assert [prediction.remarks[0] for _, prediction in scored] == ["only the first of its 2 pages is judged"] * 2
    run("evaluate", model, tmp_path / "data")


def test_frames_of_a_video(model, tmp_path):
    clip = write_video(tmp_path / "clip.avi", 8, size=(64, 64))
    run("predict", model, clip, "-o", tmp_path / "out", "--stride", 3)
    assert [row["path"] for row in rows(tmp_path / "out")] == [f"{clip}#{index}" for index in (0, 3, 6)]
    assert [row["overlay"] for row in rows(tmp_path / "out")] == [f"overlays/clip-{index}.png" for index in (0, 3, 6)]
    run("predict", model, f"{clip}#3", "-o", tmp_path / "one")
    assert rows(tmp_path / "one")[0]["pred_score"] == rows(tmp_path / "out")[1]["pred_score"]
    told = json.loads(run("fit", clip, "-o", tmp_path / "m.flawmap", "--stride", 2, "--json", *FIT).stdout)
    assert told["n_images"] == 4


def test_a_video_without_opencv_says_how_to_install_it(model, tmp_path, monkeypatch):
    clip = write_video(tmp_path / "clip.avi", 3)
    monkeypatch.setitem(sys.modules, "cv2", None)
    result = run("predict", model, clip, "-o", tmp_path / "out", code=1)
    assert "pip install 'flawmap[video]'" in result.stderr


@pytest.mark.parametrize("source", ["rtsp://camera/1", "http://example.org/a.png", "/dev/video0", "0", "-"])
def test_cameras_and_addresses_are_refused(model, source, tmp_path):
    result = run("predict", model, source, "-o", tmp_path / "out", code=1)
    assert "in Python" in result.stderr
    run("fit", source, "-o", tmp_path / "m.flawmap", *FIT, code=1)


@pytest.mark.parametrize(
    "arguments",
    [
        ("predict", "MODEL", "", "-o", "OUT"),
        ("predict", "MODEL", "OUT", "-o", ""),
        ("predict", "MODEL", "OUT", "--output="),
        ("predict", "MODEL", "a.png", " ", "-o", "OUT"),
        ("predict", "", "a.png", "-o", "OUT"),
        ("fit", "", "-o", "OUT"),
        ("fit", "OUT", "-o", ""),
        ("evaluate", "MODEL", ""),
        ("export", "MODEL", "-o", ""),
        ("datasets", "check", "mvtec_ad", ""),
    ],
)
def test_empty_arguments_are_no_folders(model, arguments, good_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(good_folder)
    places = {"MODEL": model, "OUT": tmp_path / "out"}
    result = run(*(places.get(argument, argument) for argument in arguments), code=2)
    assert "An empty argument" in result.output
    assert not (tmp_path / "out").exists()
    assert len(list(good_folder.iterdir())) == 12


def test_a_missing_image_is_named_with_what_was_meant(model, good_folder, tmp_path):
    result = run("predict", model, good_folder, f"'{good_folder}/001.png'", "-o", tmp_path / "out", code=1)
    assert f"no such file; did you mean {good_folder}/001.png?" in result.stderr.replace("\n", "")
    assert len(rows(tmp_path / "out")) == 12
