"""The detector of docs/your-own-detector.md through every command."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import numpy as np
import pytest
from PIL import Image
from pydantic import Field
from typer.testing import CliRunner

from flawmap import Inspector, load
from flawmap.cli.app import app
from flawmap.detectors import BUILT_IN, DETECTORS, register
from flawmap.detectors.parameters import Number
from flawmap.errors import ModelFileError, ParameterError
from own_detector import own_detector

CellColour = own_detector()


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def dataset(good_images, scratched, tmp_path):
    for folder, images in (("train/good", good_images), ("test/good", good_images[:3]), ("test/bad", [scratched])):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for i, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / "data" / folder / f"{i}.png")
    return tmp_path / "data"


def test_it_is_made_fitted_saved_loaded_evaluated_and_exported_by_the_command(dataset, scratched, tmp_path):
    model, out, export = tmp_path / "m.flawmap", tmp_path / "out", tmp_path / "export"
    fit = ["fit", dataset, "-o", model, "--detector", "cell-colour", "--resize", "64"]
    assert json.loads(run(*fit, "--cells", "16", "--json", "-q").stdout)["n_images"] == 12
    described = json.loads(run("info", model, "--json").stdout)
    assert (described["detector"], described["cells"], described["localises"]) == ("cell-colour", 16, True)
    assert json.loads(run("evaluate", model, dataset, "--json", "-q").stdout)["image_auroc"] == 1
    run("threshold", model, "--false-alarm-rate", "0.3", "-q")
    run("predict", model, dataset / "test", "-o", out, "--maps", "-q")
    assert len((out / "predictions.jsonl").read_text().splitlines()) == 4
    loaded = load(model)
    assert (type(loaded), loaded.cells, loaded.decision_.false_alarm_rate) == (CellColour, 16, 0.3)
    run("export", model, "-o", export, "-q")
    one, other = Inspector(export).predict(scratched), loaded.predict(scratched)
    assert (one.pred_label, one.p_value) == (other.pred_label, other.p_value) == (1, pytest.approx(1 / 13))
    np.testing.assert_allclose(one.anomaly_map, other.anomaly_map, rtol=1e-4, atol=1e-4)


def test_presets_and_help_know_it(dataset, tmp_path):
    model = tmp_path / "m.flawmap"
    run("fit", dataset, "-o", model, "--preset", "cell-colour-fine", "--resize", "64", "-q")
    assert load(model).cells == 16
    shown = run("fit", "--help").stdout
    assert "--cells" in shown
    assert "Number of cells along each side." in " ".join(shown.split())


@pytest.mark.parametrize(
    ("options", "message", "code"),
    [
        (["--cells", "0"], "cells must be greater than or equal to 1", 1),
        (["--cells", "many"], "cells must be a valid integer", 1),
        (["--cell", "4"], "Possible options: --cells", 2),
        (["--cells"], "'--cells' requires an argument", 2),
        (["more", "words"], "unexpected extra argument", 2),
        (["--backbone", "resnet18"], "--backbone is not for cell-colour", 1),
        (["--dtype", "float16"], "--dtype is not for cell-colour", 1),
    ],
)
def test_options_it_cannot_use_are_refused(dataset, tmp_path, options, message, code):
    fit = ["fit", dataset, "-o", tmp_path / "m", "--detector", "cell-colour", "--resize", "64", *options]
    assert message in " ".join(run(*fit, code=code).output.replace("│", " ").split())


def test_its_options_may_stand_before_the_folder(dataset, tmp_path):
    for options in (["--cells", "16"], ["--cells=16"]):
        run("fit", "--detector", "cell-colour", *options, dataset, "--resize", "64", "-o", tmp_path / "m", "-q")
        assert load(tmp_path / "m").cells == 16


class Odd(CellColour):
    """With parameters of many types."""

    name = "odd"
    robust: bool = False
    soft: bool = True
    bins: Annotated[Number, Field(description="Bins.")] = 4
    power: float = 1.0
    bands: tuple[int, ...] = ()
    mode: Literal["a", "b"] = "a"


def test_options_have_the_types_of_their_parameters(dataset, tmp_path, monkeypatch):
    monkeypatch.setitem(DETECTORS, "odd", Odd)
    options = ["--robust", "--mode", "b", "--no-soft", "--bins", "8", "--power", "2.5", "--bands", "1,2"]
    run("fit", *options, dataset, "--detector", "odd", "--resize", "64", "-o", tmp_path / "m", "-q")
    model = load(tmp_path / "m")
    found = model.robust, model.soft, model.bins, model.power, model.bands, model.mode
    assert found == (True, False, 8, 2.5, (1, 2), "b")
    shown = " ".join(run("fit", "--help").stdout.split())
    assert "--robust --no-robust" in shown
    assert "--mode a|b" in shown
    assert "is of odd" in " ".join(run("fit", dataset, "-o", tmp_path / "m", "--bins", "4", code=2).output.split())


def test_what_cannot_be_a_detector_is_refused(good_images, tmp_path):
    class Quiet(CellColour):
        """With an option of the command."""

        name = "quiet"
        quiet: bool = False

    class Mine(CellColour):
        """Would be loaded as its base."""

    with pytest.raises(ParameterError, match="has an option quiet"):
        register(Quiet)
    with pytest.raises(ParameterError, match="expected a class"):
        register("x")
    with pytest.raises(ParameterError, match="needs a `name` of its own"):
        register(Mine)
    with pytest.raises(ParameterError, match="no `name` of its own"):
        Mine(resize=64).fit(good_images).save(tmp_path / "m.flawmap")


def test_its_options_are_not_for_others(dataset, tmp_path):
    assert "No such option: --cells" in run("fit", dataset, "-o", tmp_path / "m", "--cells", "4", code=2).output


def test_a_file_of_a_detector_that_is_not_installed_says_so(dataset, tmp_path, monkeypatch):
    model = tmp_path / "m.flawmap"
    run("fit", dataset, "-o", model, "--detector", "cell-colour", "--resize", "64", "-q")
    monkeypatch.delitem(DETECTORS, "cell-colour")
    with pytest.raises(ModelFileError, match=r"unknown detector 'cell-colour'.*install"):
        load(model)


def test_a_name_is_not_given_twice():
    class Other(CellColour):
        """Another of the same name."""

        name = CellColour.name

    with pytest.raises(ParameterError, match="cell-colour already"):
        register(Other)
    assert "cell-colour" not in BUILT_IN


def test_a_detector_without_a_scale_for_pictures_says_so(good_images, monkeypatch):
    monkeypatch.delattr(CellColour, "_usual_scale")
    assert CellColour(resize=64).fit(good_images).map_scale is not None
    with pytest.raises(ParameterError, match="_usual_scale"):
        _ = CellColour(resize=64, calibrate=None).fit(good_images).map_scale
