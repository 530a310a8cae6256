from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from flawmap import Inspector
from flawmap.errors import ImageError, MissingDependencyError, ModelFileError, ParameterError

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
    code = "from flawmap import Inspector; [p] = Inspector(sys.argv[1]).inspect(sys.argv[2]); print(p.pred_score)"
    done = python(WITHOUT_TORCH + code, exported, tmp_path / "scratched.png")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(small_model.predict(scratched).pred_score, rel=1e-3)


def test_openvino_is_imported_without_its_reports_over_the_network():
    code = "from flawmap.openvino_module import import_openvino; import_openvino().Core(); "
    done = python("import sys; " + code + "print([name for name in sys.modules if 'telemetry' in name.split('.')[0]])")
    assert done.stdout.strip() == "[]", done.stderr


def test_every_kind_of_input_gives_the_same_scores(inspector, good_images, good_folder):
    wanted = [prediction.pred_score for prediction in inspector.inspect(good_folder)]
    assert len(wanted) == 12
    paths = sorted(good_folder.iterdir())
    for images in (
        good_images,
        list(good_images),
        paths,
        [Image.fromarray(x) for x in good_images],
        f"{good_folder}/*",
    ):
        scores = [prediction.pred_score for prediction in inspector.inspect(images, batch_size=5)]
        assert scores == pytest.approx(wanted, rel=1e-4)
    for single in (paths[3], str(paths[3]), good_images[3], Image.open(paths[3])):
        assert [p.pred_score for p in inspector.inspect(single)] == pytest.approx([wanted[3]], rel=1e-4)
    assert inspector.inspect([]) == []


def test_images_of_a_camera_are_inspected_as_they_come(inspector, good_images):
    given: list[int] = []

    def camera():
        for number in range(10**9):
            given.append(number)
            yield good_images[number % 12]

    predictions = inspector.iter_inspect(camera())
    assert next(predictions).pred_label == 0
    assert given == [0]
    next(predictions)
    assert given == [0, 1]


def test_a_bad_image_is_named_or_left_out(inspector, good_images):
    images = [good_images[0], np.zeros((4, 4), np.float32), good_images[1]]
    for given in (images, iter(images)):
        with pytest.raises(ImageError, match=r"^image 2: expected uint8"):
            inspector.inspect(given)
    for given in (images, iter(images)):
        bad: list[ImageError] = []
        assert len(inspector.inspect(given, on_bad=bad.append)) == 2
        assert len(bad) == 1


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
    wanted = [prediction.pred_score for prediction in inspector.inspect(good_images)]
    with ThreadPoolExecutor(4) as pool:
        found = [result[0].pred_score for result in pool.map(inspector.inspect, good_images)]
    assert found == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 64, 64, 3), np.uint8), r"images of \(72, 72\) \(height, width\), got \(64, 64\)"),
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
    with pytest.raises(ParameterError, match=r"not to be had|threads must be"):
        Inspector(exported, **options)
    with pytest.raises(ParameterError, match="batch_size must be"):
        Inspector(exported).inspect([], batch_size=0)


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
    from flawmap.runtime.metadata import Metadata, digest

    folder = shutil.copytree(exported, tmp_path / "part")
    for content in (b"no graph", b"<net></net>", b""):
        metadata = Metadata.read(exported)
        name = next(iter(metadata.graph.files))
        (folder / name).write_bytes(content)
        files = {**metadata.graph.files, name: digest(folder / name)}
        metadata.model_copy(update={"graph": metadata.graph.model_copy(update={"files": files})}).write(folder)
        with pytest.raises(ModelFileError, match="is no graph of `flawmap export`"):
            Inspector(folder)


def test_a_missing_package_is_named(exported, monkeypatch):
    name = "openvino" if (exported / "model.xml").exists() else "onnxruntime"
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=r"pip install (openvino|onnxruntime)"):
        Inspector(exported)
