from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from flawmap import Inspector
from flawmap.cli.app import app


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
    assert inspector.inspect(scratched)[0].pred_score == pytest.approx(score, rel=1e-3)
    assert inspector.score_batch(scratched[None])[0] == pytest.approx([score], rel=0.05)


def test_what_cannot_be_exported_is_said_in_one_line(model_file, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("keep")
    full = run("export", model_file, "-o", tmp_path / "full")
    assert full.exit_code == 1
    assert "other files than an export" in full.stderr.replace("\n", " ")
    assert run("export", model_file, "-o", tmp_path / "part", "--format", "tflite").exit_code == 2
    assert run("export", tmp_path / "gone.flawmap", "-o", tmp_path / "part").exit_code == 1
