"""Model files of format 2, which have no checksums, load and predict as they did."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from flawmap import load
from flawmap.cli.app import app
from flawmap.model_file import ModelFile

FOLDER = Path(__file__).parent / "fixtures" / "format-2"


@pytest.fixture(scope="module")
def written():
    """Images, and what was said of them."""
    with np.load(FOLDER / "predictions.npz") as file:
        return dict(file)


def check(model, written, name):
    for number, prediction in enumerate(model.predict([written["good"], written["bad"]])):
        wanted = {field: written[f"{name}.{number}.{field}"] for field in ("pred_score", "pred_label", "p_value")}
        for field, value in wanted.items():
            assert getattr(prediction, field) == pytest.approx(float(value), rel=1e-5)
        np.testing.assert_allclose(
            prediction.anomaly_map, written[f"{name}.{number}.anomaly_map"], rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("name", ["padim", "spade"])
def test_a_model_predicts_as_it_did_and_gets_checksums_when_it_is_saved(name, written, tmp_path):
    old = load(FOLDER / f"{name}.flawmap", runtime="torch")
    check(old, written, name)
    old.save(tmp_path / "new.flawmap")
    assert ModelFile(FOLDER / f"{name}.flawmap").checksums is None
    assert ModelFile(tmp_path / "new.flawmap").has_right_checksums()
    check(load(tmp_path / "new.flawmap", runtime="torch"), written, name)


def test_info_says_whether_there_are_checksums(tmp_path):
    load(FOLDER / "padim.flawmap").save(tmp_path / "new.flawmap")
    for path, wanted in (
        (FOLDER / "padim.flawmap", "none: written by an older flawmap"),
        (tmp_path / "new.flawmap", "right"),
    ):
        result = CliRunner().invoke(app, ["info", str(path), "--json"])
        assert json.loads(result.output)["checksums"].startswith(wanted)


def test_info_names_a_damaged_file(tmp_path):
    path = tmp_path / "new.flawmap"
    load(FOLDER / "padim.flawmap").save(path)
    changed = bytearray(path.read_bytes())
    changed[-3] ^= 1
    path.write_bytes(bytes(changed))
    result = CliRunner().invoke(app, ["info", str(path)])
    assert result.exit_code == 1
    assert "new.flawmap is damaged: the checksum of tensor" in result.output.replace("\n", "")
