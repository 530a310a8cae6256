from __future__ import annotations

import csv
import doctest
import errno
import json
import os
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import flawmap.results.writer
from flawmap.decision import find_regions
from flawmap.errors import ParameterError
from flawmap.files import hidden_path
from flawmap.images import ImagePage, Preprocessing, VideoFrame, read_image
from flawmap.prediction import Prediction
from flawmap.results import ResultsWriter, overlay, without_results, without_tables
from videos import write_video

SCALE = (0.0, 4.0)


@pytest.fixture
def photos(tmp_path):
    """Two photos of the same name."""
    paths = [tmp_path / "photos" / folder / "part.png" for folder in ("a", "b")]
    for path in paths:
        path.parent.mkdir(parents=True)
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)).save(path)
    return paths


def prediction_of(path, *, calibrated=True):
    anomaly_map = np.zeros((16, 16), np.float32)
    anomaly_map[4:8, 5:9] = 3
    placement, mask = Preprocessing.of(20, 16).place((40, 30)), anomaly_map > 1
    decided = {"pred_label": 1, "p_value": 0.1, "pred_mask": mask}
    regions = find_regions(mask, anomaly_map, placement)
    return Prediction(str(path), 3.0, anomaly_map, placement, **(decided | {"regions": regions} if calibrated else {}))


def test_tables_and_files_hold_the_predictions(photos, tmp_path):
    out = tmp_path / "out"
    with ResultsWriter(out, photos, map_scale=SCALE, maps=True, masks=True) as results:
        written = [results.write(prediction_of(path)) for path in photos]
        assert not (out / "predictions.csv").exists()
    assert results.n_anomalous == 2
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    with (out / "predictions.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert lines == json.loads(json.dumps(written))
    assert [row["path"] for row in table] == [str(path) for path in photos]
    assert [row["overlay"] for row in table] == ["overlays/a/part.png", "overlays/b/part.png"]
    for path, row in zip(photos, lines, strict=True):
        prediction = prediction_of(path)
        assert (row["pred_label"], row["n_regions"], row["image_height"]) == (1, 1, 40)
        assert np.array_equal(np.load(out / row["anomaly_map"]), prediction.anomaly_map)
        with Image.open(out / row["overlay"]) as picture:
            assert np.array_equal(np.asarray(picture), overlay(read_image(path), prediction, SCALE))
        with Image.open(out / row["pred_mask"]) as picture:
            assert picture.size == (30, 40)
            top, left, bottom, right = row["regions"][0]["box"]
            assert np.asarray(picture)[top + 1 : bottom - 1, left + 1 : right - 1].all()


def test_only_what_is_asked_for_and_there_is_written(photos, tmp_path):
    with ResultsWriter(tmp_path / "out", photos, map_scale=None, masks=True) as results:
        row = results.write(prediction_of(photos[0], calibrated=False))
    assert (row["pred_label"], row["n_regions"], row["regions"]) == (None, None, [])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["predictions.csv", "predictions.jsonl"]
    assert results.n_anomalous == 0


def read_tables(folder):
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    with (folder / "predictions.csv").open(newline="") as file:
        return lines, list(csv.DictReader(file))


def test_a_batch_is_labelled_when_all_are_written(photos, tmp_path):
    predictions = [replace(prediction_of(path), p_value=p) for path, p in zip(photos, (0.3, 0.01), strict=True)]
    with ResultsWriter(tmp_path / "plain", photos, map_scale=SCALE, masks=True) as results:
        plain = [results.write(prediction) for prediction in predictions]
    with ResultsWriter(tmp_path / "batch", photos, map_scale=SCALE, masks=True, fdr=0.1) as results:
        assert [results.write(prediction)["pred_label"] for prediction in predictions] == [None, None]
    assert results.n_anomalous == 1
    lines, table = read_tables(tmp_path / "batch")
    for line, cells, row, label in zip(lines, table, plain, (0, 1), strict=True):
        changes = {"pred_label": label, "fdr": 0.1, "run": results.run}
        assert line == json.loads(json.dumps(row)) | changes
        assert (cells["pred_label"], cells["fdr"]) == (str(label), "0.1")
        assert json.loads(cells["regions"]) == line["regions"]
    assert names_below(tmp_path / "batch") == names_below(tmp_path / "plain")
    assert "fdr" not in read_tables(tmp_path / "plain")[1][0]


def test_a_batch_that_ends_by_an_error_leaves_nothing(photos, tmp_path):
    with (
        pytest.raises(ParameterError, match="expected one of"),
        ResultsWriter(tmp_path / "out", photos[:1], fdr=0.1) as results,
    ):
        results.write(prediction_of(photos[1]))
    assert not (tmp_path / "out").exists()
    with (
        pytest.raises(ParameterError, match="without calibration"),
        ResultsWriter(tmp_path / "out", photos, fdr=0.1) as results,
    ):
        results.write(prediction_of(photos[0], calibrated=False))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ParameterError, match="false-discovery rate"):
        ResultsWriter(tmp_path / "out", photos, fdr=1)


def test_a_batch_of_no_images_has_empty_tables(photos, tmp_path):
    with ResultsWriter(tmp_path / "out", photos, fdr=0.1) as results:
        pass
    assert (results.n_anomalous, read_tables(tmp_path / "out")) == (0, ([], []))


def names_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def write_run(out, photos, **options):
    with ResultsWriter(out, photos, map_scale=SCALE, **options) as results:
        for path in photos:
            results.write(prediction_of(path))
    return results.run


def runs_of(out):
    """The runs that tables and pictures of a folder name."""
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    with (out / "predictions.csv").open(newline="") as file:
        found = {row["run"] for row in (*lines, *csv.DictReader(file))}
    for name in (row[column] for row in lines for column in ("overlay", "pred_mask") if row.get(column)):
        with Image.open(out / name) as picture:
            found.add(picture.text["run"])
    return found


def test_a_run_is_named_in_its_tables_and_pictures(photos, tmp_path):
    runs = [write_run(tmp_path / f"out-{i}", photos, masks=True) for i in range(2)]
    assert len(set(runs)) == 2
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ-[0-9a-f]{6}", runs[0])
    for i, run in enumerate(runs):
        assert runs_of(tmp_path / f"out-{i}") == {run}
    tables = [(tmp_path / f"out-{i}" / "predictions.csv").read_text().replace(runs[i], "") for i in range(2)]
    assert tables[0] == tables[1]


def test_nothing_but_results_is_replaced_as_a_whole(photos, tmp_path):
    out = tmp_path / "out"
    write_run(out, photos, maps=True, masks=True)
    out.chmod(0o750)
    before = out.stat().st_ino
    run = write_run(out, photos[:1])
    assert names_below(out) == ["overlays", "overlays/part.png", "predictions.csv", "predictions.jsonl"]
    assert runs_of(out) == {run}
    assert out.stat().st_ino != before
    assert out.stat().st_mode & 0o777 == 0o750
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "photos"]


def add_file(out):
    (out / "notes.txt").write_text("keep")


def add_picture(out):
    (out / "overlays" / "mine.png").write_text("keep")


def add_folder(out):
    (out / "mine").mkdir()


def add_link(out):
    (out / "masks").symlink_to(out.parent / "photos")


def spoil_table(out):
    (out / "predictions.jsonl").write_text("[1]\n")


def name_a_file_of_mine(out):
    (out / "notes.txt").write_text("keep")
    with (out / "predictions.jsonl").open("a") as lines:
        lines.write(json.dumps({"overlay": "notes.txt"}) + "\n")


@pytest.mark.parametrize("change", [add_file, add_picture, add_folder, add_link, spoil_table, name_a_file_of_mine])
def test_what_else_lies_in_the_folder_stays(photos, tmp_path, change):
    out = tmp_path / "out"
    write_run(out, photos, maps=True)
    change(out)
    before = out.stat().st_ino
    others = [name for name in names_below(out) if not name.startswith("predictions")]
    (out / "overlays" / "a" / "part.png").chmod(0o640)
    run = write_run(out, photos)
    assert out.stat().st_ino == before
    assert runs_of(out) == {run}
    assert [name for name in names_below(out) if not name.startswith("predictions")] == others
    assert (out / "overlays" / "a" / "part.png").stat().st_mode & 0o777 == 0o640
    for name in ("notes.txt", "overlays/mine.png"):
        assert not (out / name).exists() or (out / name).read_text() == "keep"


def test_a_file_that_comes_while_the_run_is_written_stays(photos, tmp_path):
    out = tmp_path / "out"
    write_run(out, photos)
    with ResultsWriter(out, photos, map_scale=SCALE) as results:
        results.write(prediction_of(photos[0]))
        add_file(out)
    assert (out / "notes.txt").read_text() == "keep"
    assert "overlays/part.png" not in names_below(out)
    assert runs_of(out) == {results.run, *runs_of(out)}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "photos"]


def test_links_are_followed_and_the_current_folder_stays(photos, tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to("real")
    run = write_run(tmp_path / "out", photos)
    assert (tmp_path / "out").is_symlink()
    assert runs_of(tmp_path / "real") == {run}
    monkeypatch.chdir(tmp_path / "real")
    before = os.stat(".").st_ino  # noqa: PTH116
    for folder in (".", tmp_path / "out"):
        run = write_run(folder, photos)
        assert os.stat(".").st_ino == before  # noqa: PTH116
        assert runs_of(tmp_path / "real") == {run}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "photos", "real"]


def test_results_on_another_disk_are_copied(photos, tmp_path, monkeypatch):
    add_file_to = tmp_path / "out"
    add_file_to.mkdir()
    add_file(add_file_to)
    replace = type(tmp_path).replace

    def across(path, target):
        if ".results." in str(path):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return replace(path, target)

    monkeypatch.setattr(type(tmp_path), "replace", across)
    run = write_run(tmp_path / "out", photos, masks=True)
    assert runs_of(tmp_path / "out") == {run}
    assert not list(tmp_path.rglob("*.partial"))


def test_what_a_killed_run_left_is_removed(photos, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for leftover in (hidden_path(out, "partial"), hidden_path(out / "results", "partial")):
        (leftover / "overlays").mkdir(parents=True)
    write_run(out, photos)
    assert not list(tmp_path.rglob("*.partial"))


def test_places_that_no_result_may_take_are_refused(photos, tmp_path):
    out = tmp_path / "out"
    (out / "overlays" / "a" / "part.png").mkdir(parents=True)
    with pytest.raises(OSError, match=r"is no file.*out/overlays/a/part\.png"):
        write_run(out, photos)
    (out / "predictions.csv").mkdir()
    with pytest.raises(OSError, match=r"is no file.*predictions\.csv"):
        write_run(out, photos)
    assert names_below(out) == ["overlays", "overlays/a", "overlays/a/part.png", "predictions.csv"]


def test_a_name_that_no_folder_can_have_is_an_error_before_the_work(photos, tmp_path):
    with pytest.raises(OSError, match="File name too long"):
        ResultsWriter(tmp_path / ("n" * 300), photos).__enter__()
    for nothing in (None, 3):
        with pytest.raises(ParameterError, match="expected a path"):
            ResultsWriter(nothing, photos)
    write_run(tmp_path / "new" / "folders" / "out", photos)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "photos"]


def test_every_table_is_utf_8(photos, tmp_path):
    odd = tmp_path / b"\xff=1.png".decode(errors="surrogateescape")
    photos[0].rename(odd)
    write_run(tmp_path / "out", [odd])
    assert "\\udcff=1.png" in (tmp_path / "out" / "predictions.csv").read_text(encoding="utf-8")
    line = json.loads((tmp_path / "out" / "predictions.jsonl").read_text(encoding="utf-8"))
    assert line["path"] == str(odd)
    write_run(tmp_path / "out", [odd])  # names as the table has them
    assert len(names_below(tmp_path / "out")) == 4


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t", "\r"])
def test_spreadsheets_compute_no_text(photos, tmp_path, monkeypatch, first):
    monkeypatch.chdir(tmp_path)
    name = f"{first}HYPERLINK(1).png"
    photos[0].rename(name)
    for excel in (False, True):
        write_run(tmp_path / f"out-{excel}", [name], excel=excel)
    raw = (tmp_path / "out-True" / "predictions.csv").read_bytes()
    assert raw.startswith(b"\xef\xbb\xbfpath,")
    with (tmp_path / "out-True" / "predictions.csv").open(newline="", encoding="utf-8-sig") as file:
        (row,) = csv.DictReader(file)
    assert row["path"] == f"'{name}"
    assert float(row["pred_score"]) == 3
    with (tmp_path / "out-False" / "predictions.csv").open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["path"] == name
    assert json.loads((tmp_path / "out-True" / "predictions.jsonl").read_text())["path"] == name


def test_an_error_leaves_the_tables_of_the_run_before(photos, tmp_path):
    with ResultsWriter(tmp_path, photos) as results:
        results.write(prediction_of(photos[0]))
    before = (tmp_path / "predictions.csv").read_bytes()

    def interrupted():
        with ResultsWriter(tmp_path, photos) as results:
            results.write(prediction_of(photos[1]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "predictions.csv").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "predictions.csv", "predictions.jsonl"]


def test_pages_and_frames_have_files_of_their_own(tmp_path):
    pages = [Image.new("RGB", (30, 40), (grey,) * 3) for grey in (0, 100, 200)]
    pages[0].save(tmp_path / "part.tif", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "part-2.png")
    clip = write_video(tmp_path / "clip.avi", 3, size=(40, 30))
    sources = [
        tmp_path / "part-2.png",
        ImagePage(tmp_path / "part.tif", 1),
        f"{tmp_path}/part.tif#2",
        VideoFrame(clip, 2),
    ]
    with ResultsWriter(tmp_path / "out", sources, map_scale=SCALE) as results:
        rows = [results.write(prediction_of(source)) for source in sources]
    assert [row["overlay"] for row in rows] == [
        "overlays/part-2.png", "overlays/part-1.png", "overlays/part.tif-2.png", "overlays/clip-2.png",
    ]  # fmt: skip
    for source, row in zip((*sources[:2], ImagePage(tmp_path / "part.tif", 2), sources[3]), rows, strict=True):
        with Image.open(tmp_path / "out" / row["overlay"]) as picture:
            assert np.array_equal(np.asarray(picture), overlay(read_image(source), prediction_of(source), SCALE))


def test_images_in_the_folders_of_results_are_refused_or_left_out(photos, tmp_path):
    inside = tmp_path / "out" / "overlays" / "a.png"
    assert without_results(tmp_path / "out", [*photos, inside]) == photos
    assert without_results(tmp_path / "other", [*photos, inside]) == [*photos, inside]
    tables = [tmp_path / "out" / "predictions.csv", tmp_path / "out" / "predictions.jsonl"]
    own = tmp_path / "predictions.csv"
    assert without_tables(tmp_path / "out", [*tables, inside, own]) == [own]
    with pytest.raises(ParameterError, match="holds 1 image in the folders of its results"):
        ResultsWriter(tmp_path / "out", [*photos, inside])
    assert not (tmp_path / "out").exists()


def test_other_images_and_writes_outside_the_block_are_refused(photos, tmp_path):
    results = ResultsWriter(tmp_path / "out", photos[:1])
    with pytest.raises(ParameterError, match="block"):
        results.write(prediction_of(photos[0]))
    with results:
        for path in (photos[1], None):
            with pytest.raises(ParameterError, match="paths"):
                results.write(prediction_of(path))
    with pytest.raises(ParameterError, match="block"):
        results.write(prediction_of(photos[0]))


def test_the_example_runs():
    found = doctest.testmod(flawmap.results.writer)
    assert found.attempted > 5
    assert found.failed == 0


def test_two_images_of_one_name_are_refused(tmp_path):
    path = tmp_path / "m.tif"
    pages = [Image.new("L", (8, 8), grey) for grey in (0, 99)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "m.tif#1", format="PNG")
    images = [ImagePage(path, 1), ImagePage(path, 2), tmp_path / "m.tif#1"]
    with pytest.raises(ParameterError, match=r"m.tif#1: is the name of a file, and of a page or frame of .*Rename"):
        ResultsWriter(tmp_path / "out", images)
    ResultsWriter(tmp_path / "out", [*images[:2], images[1]])


def test_an_output_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(ParameterError, match=r"out is a file; name a folder for the results"):
        ResultsWriter(tmp_path / "out", [])
