"""Model files and exports that flawmap 0.1 wrote (format 1) load and predict as they did."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from flawmap import Inspector, load
from flawmap.cli.app import app
from flawmap.errors import ModelFileError
from flawmap.model_file import ModelFile

FOLDER = Path(__file__).parent / "fixtures" / "format-1"
DESCRIBED = json.loads((FOLDER / "described.json").read_text())
EXPORTS = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())


@pytest.fixture(scope="module")
def written():
    """Images, and what flawmap 0.1 said of them."""
    with np.load(FOLDER / "predictions.npz") as file:
        return dict(file)


def check(predictions, written, name):
    rel = 1e-2 if name == "patch-svdd" else 1e-5  # hardly trained: few digits of its distances are kept
    for number, prediction in enumerate(predictions):
        key = f"{name}.{number}"
        assert prediction.pred_score == pytest.approx(float(written[f"{key}.score"]), rel=rel)
        assert (-1 if prediction.pred_label is None else prediction.pred_label) == written[f"{key}.label"]
        assert (-1 if prediction.p_value is None else prediction.p_value) == written[f"{key}.p_value"]
        assert (prediction.anomaly_map is not None) == (f"{key}.map" in written)
        if prediction.anomaly_map is not None:
            np.testing.assert_allclose(prediction.anomaly_map, written[f"{key}.map"], rtol=10 * rel, atol=10 * rel)


@pytest.mark.parametrize("name", DESCRIBED)
def test_a_model_predicts_as_it_did_and_is_saved_in_the_new_format(name, written, tmp_path):
    model = load(FOLDER / f"{name}.flawmap", runtime="torch")
    images = [written["good"], written["bad"]]
    check(model.predict(images), written, name)
    model.save(tmp_path / "new.flawmap")
    assert ModelFile(tmp_path / "new.flawmap").document["format_version"] == 3
    again = load(tmp_path / "new.flawmap", runtime="torch")
    check(again.predict(images), written, name)
    assert again.describe() == model.describe()


@pytest.mark.parametrize("name", DESCRIBED)
def test_its_description_says_the_same(name):
    now, then = load(FOLDER / f"{name}.flawmap", runtime="torch").describe(), DESCRIBED[name]["describe"]
    training = then.pop("training", None)
    if training is not None:
        assert {key: now[key] for key in ("epochs", "batch_size", "learning_rate")}.items() <= training.items()
        assert now["training"].items() <= training.items()
    then.pop("format_version")
    then.pop("factor_dtype", None)  # it was said to be float32 of every file
    if "regularization" in then:
        then["regularization"].pop("chosen")
    if then["decision"] is not None:  # of which later versions say more
        now["decision"] = {key: now["decision"][key] for key in then["decision"]}
    assert {key: now.get(key) for key in then if key != "versions"} == {
        key: value for key, value in then.items() if key != "versions"
    }


@pytest.mark.parametrize("name", EXPORTS)
def test_an_export_inspects_as_it_did(name, written):
    check(Inspector(FOLDER / name).predict([written["good"], written["bad"]]), written, name)


def test_the_command_reads_and_changes_an_old_file(tmp_path):
    from typer.testing import CliRunner

    path = tmp_path / "part.flawmap"
    shutil.copy(FOLDER / "padim.flawmap", path)
    for arguments in (["info", str(path), "--json"], ["threshold", str(path), "--false-alarm-rate", "0.5", "--json"]):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
    assert ModelFile(path).document["format_version"] == 3
    assert load(path, runtime="torch").decision_.false_alarm_rate == 0.5


@pytest.mark.parametrize("change", [{"surprise": 1}, {"decision": 3}, {"preprocessing": []}, {"seed": "x"}])
def test_an_old_file_that_contradicts_itself_is_refused(tmp_path, change):
    from safetensors.torch import load_file, save_file

    source, path = FOLDER / "padim.flawmap", tmp_path / "part.flawmap"
    document = {**ModelFile(source).document, **change}
    save_file(load_file(source), path, {"flawmap": json.dumps(document)})
    with pytest.raises(ModelFileError, match=r"part\.flawmap"):
        load(path)
