from __future__ import annotations

import copy
import doctest
import hashlib
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import flawmap.runtime.inspector
from flawmap import Inspector
from flawmap.decision import discover
from flawmap.errors import ImageError, MissingDependencyError, ModelFileError, NotFittedError, ParameterError
from flawmap.prediction import Prediction
from flawmap.runtime.export_files import read_export

WITHOUT_TORCH = "import sys; sys.modules.update(torch=None, timm=None, torchvision=None, scipy=None); "


def python(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def inspector(exported):
    return Inspector(exported, threads=1)


def test_it_runs_without_torch(exported, small_model, scratched, tmp_path):
    Image.fromarray(scratched).save(tmp_path / "scratched.png")
    code = "from flawmap import Inspector; print(Inspector(sys.argv[1]).predict(sys.argv[2]).pred_score)"
    done = python(WITHOUT_TORCH + code, exported, tmp_path / "scratched.png")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(small_model.predict(scratched).pred_score, rel=1e-3)


def test_a_batch_is_labelled_by_its_false_discovery_rate(inspector, good_images, scratched):
    images = [*good_images, scratched]
    p_values = [one.p_value for one in inspector.predict(images)]
    for rate in (0.05, 0.2, 0.99):
        wanted = discover(p_values, rate).tolist()
        assert [bool(one.pred_label) for one in inspector.predict(images, fdr=rate)] == wanted
        assert [bool(one.pred_label) for one in inspector.iter_predict(iter(images), fdr=rate)] == wanted
    assert [inspector.predict(scratched, fdr=rate).pred_label for rate in (0.05, 0.1)] == [0, 1]
    with pytest.raises(ParameterError, match="false-discovery rate"):
        inspector.iter_predict(images, fdr=2)


def test_openvino_is_imported_without_its_reports_over_the_network():
    code = "from flawmap.openvino_module import import_openvino; import_openvino().Core(); "
    done = python("import sys; " + code + "print([name for name in sys.modules if 'telemetry' in name.split('.')[0]])")
    assert done.stdout.strip() == "[]", done.stderr


def test_every_kind_of_input_gives_the_same_scores(inspector, good_images, good_folder):
    wanted = [prediction.pred_score for prediction in inspector.predict(good_folder)]
    assert len(wanted) == 12
    paths = sorted(good_folder.iterdir())
    for images in (
        good_images,
        list(good_images),
        paths,
        [Image.fromarray(x) for x in good_images],
        f"{good_folder}/*",
    ):
        scores = [prediction.pred_score for prediction in inspector.predict(images, batch_size=5)]
        assert scores == pytest.approx(wanted, rel=1e-4)
    for single in (paths[3], str(paths[3]), good_images[3], Image.open(paths[3])):
        assert inspector.predict(single).pred_score == pytest.approx(wanted[3], rel=1e-4)
    assert inspector.predict([]) == []


def test_images_of_a_camera_are_inspected_as_they_come(inspector, good_images):
    given: list[int] = []

    def camera():
        for number in range(10**9):
            given.append(number)
            yield good_images[number % 12]

    predictions = inspector.iter_predict(camera())
    assert next(predictions).pred_label == 0
    assert given == [0]
    next(predictions)
    assert given == [0, 1]


def test_a_bad_image_is_named_or_left_out(inspector, good_images):
    images = [good_images[0], np.zeros((4, 4), np.float32), good_images[1]]
    for given in (images, iter(images)):
        with pytest.raises(ImageError, match=r"^image 2: expected uint8"):
            inspector.predict(given)
    for given in (images, iter(images)):
        bad: list[ImageError] = []
        assert len(inspector.predict(given, on_bad=bad.append)) == 2
        assert len(bad) == 1


def test_one_image_gives_a_prediction_and_many_give_a_list(inspector, good_images, good_folder):
    path = next(good_folder.iterdir())
    for one in (path, str(path), good_images[0], Image.fromarray(good_images[0])):
        assert isinstance(inspector.predict(one), Prediction)
    for many in ([path], good_images[:1], good_folder, iter([path])):
        assert all(isinstance(prediction, Prediction) for prediction in list(inspector.predict(many)))


@pytest.mark.parametrize("name", ["bad.png", "missing.png"])
def test_on_bad_turns_neither_one_image_into_a_list_nor_back(inspector, good_images, tmp_path, name):
    (tmp_path / "bad.png").write_bytes(b"no image")
    bad: list[ImageError] = []
    with pytest.raises(ImageError, match=name):
        inspector.predict(tmp_path / name, on_bad=bad.append)
    assert [error.name for error in bad] == [str(tmp_path / name)]
    assert inspector.predict([tmp_path / name], on_bad=bad.append) == []
    assert len(inspector.predict([tmp_path / name, good_images[0]], on_bad=bad.append)) == 1
    assert len(bad) == 3


def test_it_answers_to_the_names_of_a_detector(inspector, exported, small_model, tmp_path):
    assert inspector.preprocessing == small_model.preprocessing
    assert inspector.map_scale == pytest.approx(small_model.map_scale)
    assert inspector.threshold_ == inspector.decision_.threshold == small_model.threshold_
    folder = shutil.copytree(exported, tmp_path / "part")
    read_export(folder).metadata.model_copy(update={"decision": None}).write(folder)
    uncalibrated = Inspector(folder)
    assert (uncalibrated.decision_, uncalibrated.false_alarm_rate) == (None, None)
    with pytest.raises(NotFittedError, match="not calibrated"):
        _ = uncalibrated.threshold_


@pytest.mark.parametrize("spoilt", [0, 1])
def test_a_graph_whose_scores_are_not_finite_labels_nothing(exported, good_images, monkeypatch, spoilt):
    inspector = Inspector(exported)
    run = inspector._graph.run

    def wrong(images):
        results = run(images)
        return tuple(values * np.float32("nan" if i == spoilt else 1) for i, values in enumerate(results))

    monkeypatch.setattr(inspector._graph, "run", wrong)
    with pytest.raises(ModelFileError, match="not finite"):
        inspector.predict(good_images[0])
    with pytest.raises(ModelFileError, match="not finite"):
        inspector.score_batch(np.zeros((1, 72, 72, 3), np.uint8))


def test_a_graph_that_fails_or_gives_other_shapes_is_a_model_file_error(exported, good_images, monkeypatch):
    inspector = Inspector(exported)
    with pytest.raises(ModelFileError, match=r"model\.\w+: the graph fails on images of shape \(1, 7, 5, 3\)"):
        inspector._graph.run(np.zeros((1, 7, 5, 3), np.uint8))
    run = inspector._graph.run
    monkeypatch.setattr(
        inspector._graph, "run", lambda images: tuple(values[:, :9] for values in [*run(images)][:1]) * 2
    )
    with pytest.raises(ModelFileError, match="gives scores of shape"):
        inspector.predict(good_images[0])


def test_one_image_walks_through_each_file_once(inspector, good_folder):
    """A file is entered where its code is called from the code of another one."""
    root = str(Path(flawmap.__file__).parent)
    entered: list[str] = []

    def watch(frame, event, _):
        file, caller = frame.f_code.co_filename, frame.f_back
        if event != "call" or not file.startswith(root):
            return
        while caller is not None and not caller.f_code.co_filename.startswith(root):
            caller = caller.f_back
        if caller is None or caller.f_code.co_filename != file:
            entered.append(Path(file).relative_to(root).as_posix())

    path = next(good_folder.iterdir())
    inspector.predict(path)
    sys.setprofile(watch)
    try:
        inspector.predict(path)
    finally:
        sys.setprofile(None)
    assert sorted(entered) == sorted(set(entered))
    assert len(entered) <= 12


def test_the_example_runs():
    found = doctest.testmod(flawmap.runtime.inspector)
    assert found.attempted > 5
    assert found.failed == 0


def test_a_batch_that_is_ready_gives_raw_scores_and_maps(inspector, small_model, scratched):
    ready = np.asarray(Image.fromarray(scratched).resize((72, 72), Image.Resampling.BILINEAR))
    wanted = small_model.predict(scratched)
    for n_images in (1, 3):
        scores, maps = inspector.score_batch(np.stack([ready] * n_images))
        assert maps.shape == (n_images, 64, 64)
        assert scores == pytest.approx([wanted.pred_score] * n_images, rel=1e-3)
        np.testing.assert_allclose(maps[0], wanted.anomaly_map, rtol=1e-3)
    kept = maps.copy()
    inspector.score_batch(np.zeros((3, 72, 72, 3), np.uint8))
    assert np.array_equal(maps, kept)  # a result is not overwritten by the next call
    inspector.score_batch(np.stack([ready] * 2)[:, ::-1, ::-1])  # memory in any order


def test_several_threads_may_share_an_inspector(inspector, good_images):
    wanted = [prediction.pred_score for prediction in inspector.predict(good_images)]
    with ThreadPoolExecutor(4) as pool:
        found = [result.pred_score for result in pool.map(inspector.predict, good_images)]
    assert found == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 64, 64, 3), np.uint8), r"\(72, 72\) \(height, width\).* got shape \(1, 64, 64, 3\)"),
        (np.zeros((1, 72, 72, 3), np.float32), "uint8 array .* got float32"),
        (np.zeros((1, 72, 72, 1), np.uint8), "RGB images .* got shape"),
        (np.zeros((1, 3, 72, 72), np.uint8), "RGB images .* got shape"),
        (np.zeros((72, 72, 3), np.uint8), "RGB images .* got shape"),
        (np.zeros((0, 72, 72, 3), np.uint8), "at least one; got shape"),
        ([[1, 2, 3]], "uint8 array .* got list"),
    ],
)
def test_other_arrays_are_refused(inspector, images, message):
    with pytest.raises(ParameterError, match=message):
        inspector.score_batch(images)


@pytest.mark.parametrize("options", [{"device": "quantum"}, {"threads": 0}, {"threads": 1.5}])
def test_impossible_options_are_refused(exported, options):
    with pytest.raises(ParameterError, match=r"not available|threads must be"):
        Inspector(exported, **options)


def test_a_damaged_graph_is_refused(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "part")
    graph = next(path for path in folder.iterdir() if path.name in {"model.bin", "model.onnx"})
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    with pytest.raises(ModelFileError, match=f"{graph.name}: is damaged or of another export"):
        Inspector(folder)
    graph.unlink()
    with pytest.raises(ModelFileError, match=f"{graph.name}: cannot be read"):
        Inspector(folder)


def test_a_graph_of_something_else_is_refused(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "part")
    for content in (b"no graph", b"<net></net>", b""):
        metadata = read_export(exported).metadata
        name = next(iter(metadata.graph.files))
        (folder / name).write_bytes(content)
        files = {**metadata.graph.files, name: hashlib.sha256(content).hexdigest()}
        metadata.model_copy(update={"graph": metadata.graph.model_copy(update={"files": files})}).write(folder)
        with pytest.raises(ModelFileError, match="not a graph of `flawmap export`"):
            Inspector(folder)


@pytest.mark.parametrize("folder", [None, 3, b"part", "a\0b"])
def test_what_is_no_folder_is_a_parameter_error(folder):
    with pytest.raises(ParameterError, match="expected a path"):
        Inspector(folder)


def test_names_that_no_system_holds_are_named(tmp_path):
    with pytest.raises(ModelFileError, match=r"nnn.*cannot be read \(File name too long\)"):
        Inspector(tmp_path / ("n" * 300))


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, "8", True, [1]])
def test_impossible_batch_sizes_are_refused(inspector, batch_size):
    for call in (inspector.predict, inspector.iter_predict):
        with pytest.raises(ParameterError, match="batch_size must be a number from 1"):
            call([], batch_size=batch_size)


def test_a_missing_package_is_named(exported, monkeypatch):
    name = "openvino" if (exported / "model.xml").exists() else "onnxruntime"
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=r"pip install (openvino|onnxruntime)"):
        Inspector(exported)


def test_a_pickled_inspector_opens_its_folder_again(exported, scratched, monkeypatch):
    monkeypatch.chdir(exported.parent)
    inspector = Inspector(exported.name, threads=1, workers=2)
    content = pickle.dumps(inspector)
    copied = copy.deepcopy(inspector)
    monkeypatch.chdir("/")
    for again in (pickle.loads(content), copied):
        assert again.predict(scratched).pred_score == inspector.predict(scratched).pred_score
        assert (again.workers, again.folder.is_absolute()) == (2, True)


def test_a_model_file_is_no_export(tmp_path):
    (tmp_path / "part.flawmap").write_bytes(b"x" * 20)
    with pytest.raises(ModelFileError, match=r"is a file, not a folder of `flawmap export`.*flawmap\.load"):
        Inspector(tmp_path / "part.flawmap")
