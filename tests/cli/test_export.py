from __future__ import annotations

import csv
import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from flawmap import Inspector, PaDiM, export_model
from flawmap.cli.app import app
from flawmap.errors import ParameterError
from flawmap.openvino_module import has_bfloat16


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def model_file(small_model, tmp_path):
    small_model.save(tmp_path / "part.flawmap")
    return tmp_path / "part.flawmap"


def test_export_writes_a_folder_that_inspects(model_file, small_model, scratched, tmp_path):
    done = run("export", model_file, "-o", tmp_path / "part", "--resize", "--json")
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["format"], result["dtype"]) == ("openvino", "float32")
    assert sorted(result["files"]) == ["metadata.json", "model.bin", "model.xml"]
    inspector = Inspector(tmp_path / "part")
    score = small_model.predict(scratched).pred_score
    assert inspector.predict(scratched).pred_score == pytest.approx(score, rel=1e-3)
    assert inspector.score_batch(scratched[None])[0] == pytest.approx([score], rel=0.05)


def test_what_cannot_be_exported_is_said_in_one_line(model_file, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("keep")
    full = run("export", model_file, "-o", tmp_path / "full")
    assert full.exit_code == 1
    assert "other files than an export" in full.stderr.replace("\n", " ")
    assert run("export", model_file, "-o", tmp_path / "part", "--format", "tflite").exit_code == 2
    assert run("export", tmp_path / "gone.flawmap", "-o", tmp_path / "part").exit_code == 1


def test_predict_takes_an_export_and_needs_no_torch_for_it(exported, small_model, good_folder, tmp_path):
    code = "import sys; sys.modules['torch'] = None; sys.modules['scipy'] = None; from flawmap.cli import main; main()"
    arguments = ["predict", str(exported), str(good_folder), "-o", str(tmp_path / "out"), "-q"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = small_model.predict(good_folder)
    assert [float(row["pred_score"]) for row in rows] == pytest.approx([one.pred_score for one in wanted], rel=1e-3)
    assert [row["p_value"] for row in rows] == [str(one.p_value) for one in wanted]
    assert len(list((tmp_path / "out" / "overlays").iterdir())) == 12


def test_without_torch_fit_says_what_to_install(good_folder, tmp_path):
    code = "import sys; sys.modules['torch'] = None; from flawmap.cli import main; main()"
    arguments = ["fit", str(good_folder), "-o", str(tmp_path / "m.flawmap")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "pip install 'flawmap[train]'" in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


def test_precision_is_a_choice_of_openvino(exported, small_model, scratched):
    score = small_model.predict(scratched).pred_score
    if json.loads((exported / "metadata.json").read_text())["graph"]["format"] == "onnx":
        with pytest.raises(ParameterError, match="ONNX Runtime computes in float32"):
            Inspector(exported, precision="bfloat16")
    else:
        (coarse,) = Inspector(exported, precision="bfloat16").predict([scratched])
        assert coarse.pred_score == pytest.approx(score, rel=0.1)
        with pytest.raises(ParameterError, match="precision must be"):
            Inspector(exported, precision="int4")


def test_a_graph_computes_in_the_precision_of_the_fit(good_images, scratched, tmp_path):
    model = PaDiM(backbone="resnet10t", pretrained=False, resize=64, precision="bfloat16").fit(good_images)
    export_model(model, tmp_path / "x")
    choices = ("auto", "bfloat16", "float32")
    scores = {p: Inspector(tmp_path / "x", precision=p).predict(scratched).pred_score for p in choices}
    assert scores["auto"] == scores["bfloat16" if has_bfloat16() else "float32"]
    assert scores["float32"] == pytest.approx(model.predict(scratched).pred_score, rel=0.05)
