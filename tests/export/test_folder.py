"""Exports in every format against PaDiM.predict, and the folder they are written into."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

import flawmap.export.folder
import flawmap.export.onnx
from flawmap import Inspector, PaDiM, export_model
from flawmap.errors import MissingDependencyError, ModelFileError, NotFittedError, ParameterError
from flawmap.files import hidden_path
from flawmap.images import Preprocessing, stream

FORMATS = ["openvino", "onnx"]


def assert_same(predictions, wanted, rtol):
    assert len(predictions) == len(wanted)
    for got, want in zip(predictions, wanted, strict=True):
        np.testing.assert_allclose(got.anomaly_map, want.anomaly_map, rtol=rtol, atol=rtol * want.pred_score)
        assert got.pred_score == pytest.approx(want.pred_score, rel=rtol)
        assert (got.path, got.placement, got.pred_label) == (want.path, want.placement, want.pred_label)


def test_an_export_predicts_what_the_model_does(exported, small_model, good_folder, scratched):
    Image.fromarray(np.kron(scratched, np.ones((3, 2, 1), np.uint8))).save(good_folder / "scratched.png")
    wanted = small_model.predict(good_folder)
    found = Inspector(exported).predict(good_folder)
    assert_same(found, wanted, 1e-3)
    assert found[-1].pred_label == 1
    assert found[-1].p_value == wanted[-1].p_value
    assert np.mean(found[-1].pred_mask == wanted[-1].pred_mask) > 0.999
    assert found[-1].regions[0].box == wanted[-1].regions[0].box


@pytest.mark.parametrize("format", FORMATS)
def test_labels_and_p_values_are_outputs_of_the_graph(small_model, good_images, scratched, tmp_path, format):
    folder = export_model(small_model, tmp_path / "part", format=format)
    wanted = small_model.predict([scratched, *good_images[:3]])
    whole = Preprocessing.of(small_model.resize, None, small_model.aspect)
    images = np.stack([loaded.pixels for loaded in stream([scratched, *good_images[:3]], whole)])
    if format == "onnx":
        session = pytest.importorskip("onnxruntime").InferenceSession(folder / "model.onnx")
        names = [output.name for output in session.get_outputs()]
        results = dict(zip(names, session.run(None, {"images": images}), strict=True))
    else:
        graph = pytest.importorskip("openvino").Core().compile_model(folder / "model.xml", "CPU")
        results = {name: value for output, value in graph(images).items() for name in output.names}
    assert {"anomaly_map", "pred_score", "p_value", "pred_label"} <= results.keys()
    assert results["pred_label"].tolist() == [prediction.pred_label for prediction in wanted]
    assert results["pred_label"][0] == 1
    assert results["p_value"][0] == pytest.approx(wanted[0].p_value)
    assert np.all(results["p_value"] > 0)
    assert np.all(results["p_value"] <= 1)


@pytest.mark.parametrize("format", FORMATS)
def test_the_resize_inside_and_16_bits(small_model, good_images, scratched, tmp_path, format):
    folder = export_model(small_model, tmp_path / "part", format=format, dtype="float16", resize_inside=True)
    inspector = Inspector(folder)
    large = np.kron(np.stack([scratched, *good_images[:2]]), np.ones((1, 3, 2, 1), np.uint8))
    wanted = small_model.predict(large)
    scores, maps = inspector.score_batch(large)
    assert scores == pytest.approx([prediction.pred_score for prediction in wanted], rel=0.02)
    np.testing.assert_allclose(maps, [prediction.anomaly_map for prediction in wanted], rtol=0.05)
    assert_same(inspector.predict(large), wanted, 0.02)
    assert inspector.score_batch(good_images[:1])[0].shape == (1,)  # another size, another number
    n_bytes = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in {".bin", ".onnx"})
    stored = [*small_model.factor_.mean, *small_model.factor_.cross, *small_model.factor_.own]
    weights = small_model.backbone_.network.state_dict().values()
    assert n_bytes < 0.6 * 4 * sum(tensor.numel() for tensor in [*stored, *weights])


@pytest.mark.parametrize("format", FORMATS)
def test_odd_sizes_letterbox_and_no_calibration(good_images, scratched, tmp_path, format):
    model = PaDiM(
        backbone="resnet10t", pretrained=False, resize=(61, 83), aspect="letterbox", n_features=40, calibrate=None
    ).fit(good_images)
    folder = export_model(model, tmp_path / "part", format=format)
    images = [scratched[:40], good_images[1][:, :30], good_images[0]]
    predictions = Inspector(folder).predict(images)
    assert_same(predictions, model.predict(images), 1e-3)
    assert (predictions[0].p_value, predictions[0].pred_mask, predictions[0].regions) == (None, None, ())
    with pytest.raises(ParameterError, match="letterbox depends on each image"):
        export_model(model, tmp_path / "other", format=format, resize_inside=True)


def test_constants_that_one_onnx_file_cannot_hold_go_into_another(small_model, scratched, tmp_path, monkeypatch):
    monkeypatch.setattr(flawmap.export.onnx, "ONE_FILE_BYTES", 2**16)
    folder = export_model(small_model, tmp_path / "part", format="onnx")
    assert (folder / "model.onnx").stat().st_size < 2**20 < (folder / "model.onnx.data").stat().st_size
    assert_same([Inspector(folder).predict(scratched)], [small_model.predict(scratched)], 1e-3)
    (folder / "model.onnx.data").write_bytes(b"short")
    with pytest.raises(ModelFileError, match=r"model\.onnx\.data: is damaged"):
        Inspector(folder)


def test_only_an_earlier_export_is_replaced(exported, small_model, tmp_path, monkeypatch):
    monkeypatch.setattr(flawmap.export.folder, "WRITERS", dict.fromkeys(FORMATS, fake_writer))
    folder = shutil.copytree(exported, tmp_path / "part")
    export_model(small_model, folder, format="onnx")
    assert sorted(path.name for path in folder.iterdir()) == ["metadata.json", "model.onnx"]
    (folder / "notes.txt").write_text("keep")
    with pytest.raises(ParameterError, match=r"other files than an export \(notes\.txt\)"):
        export_model(small_model, folder)
    with pytest.raises(ParameterError, match="is a file or a link"):
        export_model(small_model, folder / "notes.txt")
    with pytest.raises(ModelFileError, match="cannot be written"):
        export_model(small_model, tmp_path / "no" / "part")
    (tmp_path / "empty").mkdir()
    export_model(small_model, tmp_path / "empty", format="onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "part"]


def fake_writer(_program, folder, **_):
    (folder / "model.onnx").write_bytes(b"graph")


def test_a_failed_export_leaves_the_earlier_one(exported, small_model, tmp_path, monkeypatch):
    folder = shutil.copytree(exported, tmp_path / "part")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(flawmap.export.folder, "WRITERS", dict.fromkeys(FORMATS, fail))
    with pytest.raises(ModelFileError, match="No space left on device"):
        export_model(small_model, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


def test_files_that_are_put_into_the_folder_meanwhile_are_kept(exported, small_model, tmp_path, monkeypatch):
    folder = shutil.copytree(exported, tmp_path / "part")

    def slow_writer(_program, temporary, **_):
        (temporary / "model.onnx").write_bytes(b"graph")
        (folder / "notes.txt").write_text("keep")

    monkeypatch.setattr(flawmap.export.folder, "WRITERS", dict.fromkeys(FORMATS, slow_writer))
    with pytest.raises(ParameterError, match=r"other files than an export \(notes\.txt\)"):
        export_model(small_model, folder, format="onnx")
    assert (folder / "notes.txt").read_text() == "keep"
    assert list(tmp_path.iterdir()) == [folder]


def test_an_export_removes_what_killed_ones_left(exported, small_model, tmp_path, monkeypatch):
    monkeypatch.setattr(flawmap.export.folder, "WRITERS", dict.fromkeys(FORMATS, fake_writer))
    folder = tmp_path / "part"
    shutil.copytree(exported, hidden_path(folder, "previous"))
    hidden_path(folder, "partial").mkdir()
    export_model(small_model, folder, format="onnx")
    assert list(tmp_path.iterdir()) == [folder]
    assert sorted(path.name for path in folder.iterdir()) == ["metadata.json", "model.onnx"]


@pytest.mark.parametrize("folder", [None, 3])
def test_what_is_no_folder_is_refused_before_any_work(small_model, tmp_path, folder):
    with pytest.raises(ParameterError, match="expected a path"):
        export_model(small_model, folder)
    with pytest.raises(ModelFileError, match=r"cannot be written \(File name too long\)"):
        export_model(small_model, tmp_path / ("n" * 300))


def test_impossible_exports_are_refused_before_any_work(small_model, tmp_path):
    with pytest.raises(ParameterError, match="format must be 'openvino' or 'onnx'"):
        export_model(small_model, tmp_path / "part", format="tflite")
    with pytest.raises(ParameterError, match="dtype must be 'float32' or 'float16'"):
        export_model(small_model, tmp_path / "part", dtype="int8")
    with pytest.raises(NotFittedError):
        export_model(PaDiM(), tmp_path / "part")


def test_missing_packages_of_the_onnx_exporter_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'flawmap\[onnx\]'"):
        flawmap.export.onnx.write_onnx(None, tmp_path, image_size=(64, 64), half=False, resize_inside=False)


def test_metadata_says_what_was_exported(exported, small_model):
    metadata = json.loads((exported / "metadata.json").read_text())
    assert metadata["decision"]["threshold"] == small_model.threshold_
    assert metadata["decision"]["pixel_threshold"] == small_model.decision_.pixel_threshold
    assert metadata["decision"]["leave_one_out_scores"] == small_model.leave_one_out_scores_.tolist()
    assert (metadata["image_size"], metadata["map_size"]) == ([72, 72], [64, 64])
    assert metadata["model"]["backbone"]["name"] == "resnet10t"
    assert "weights_path" not in metadata["model"]["backbone"]
    assert metadata["model"]["versions"]["flawmap"] == flawmap.__version__


@pytest.fixture(scope="module")
def screws(screw, resnet18_weights):
    """A model of forty real screws."""
    return PaDiM.from_preset("padim-r18-rd100", weights=resnet18_weights, refit_below=0).fit(
        sorted((screw / "train" / "good").iterdir())[:40]
    )


@pytest.mark.parametrize("format", FORMATS)
def test_real_images(screw, screws, tmp_path, format):
    model = screws
    images = sorted((screw / "test").rglob("*.png"))[::20]
    assert_same(
        Inspector(export_model(model, tmp_path / "part", format=format)).predict(images), model.predict(images), 1e-4
    )
