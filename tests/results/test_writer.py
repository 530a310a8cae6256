from __future__ import annotations

import csv
import doctest
import json

import numpy as np
import pytest
from PIL import Image

import flawmap.results.writer
from flawmap.decision import find_regions
from flawmap.errors import ParameterError
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
    with pytest.raises(ParameterError, match="1 images lie in the folders"):
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
