"""`resize="long:768"`: a canvas in the proportions of the good photos."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from commands import run
from flawmap import SPADE, VAE, Inspector, MahalanobisAD, PaDiM, export_model, load
from flawmap.detectors import describe_file
from flawmap.detectors.canvas import LOOKED_AT
from flawmap.errors import ImageError, ModelFileError, NotFittedError, ParameterError, TrainingSetError
from model_files import assemble, contents
from own_detector import own_detector

CellColour = own_detector()
RESNET = {"backbone": "resnet10t", "pretrained": False}
DETECTORS = {
    "padim": (PaDiM, {**RESNET, "refit_below": 0}),
    "spade": (SPADE, RESNET),
    "mahalanobis-ad": (MahalanobisAD, RESNET),
    "vae": (VAE, {"width": 2, "batch_size": 2, "steps": 1}),
    "your-own": (CellColour, {}),
}


def photos(count=6, size=(48, 96), seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, *size, 3), dtype=np.uint8))


def make(resize="long:64", **changes):
    return PaDiM(
        **{**RESNET, "layers": ["layer1"], "n_features": 4, "refit_below": 0, "align": "none", **changes}, resize=resize
    )


def write(folder, images):
    folder.mkdir(exist_ok=True, parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:02}.png")
    return folder


@pytest.mark.parametrize("kind", DETECTORS)
def test_every_detector_has_the_canvas_and_the_file_keeps_it(kind, tmp_path):
    detector, options = DETECTORS[kind]
    model = detector(**options, resize="long:64").fit(photos(seed=1))
    assert (model.resize, model.resize_, model.preprocessing.resize) == ("long:64", (32, 64), (32, 64))
    model.save(tmp_path / "part.flawmap")
    loaded = load(tmp_path / "part.flawmap")
    assert (loaded.resize, loaded.resize_) == ("long:64", (32, 64))
    for described in (model.describe(), describe_file(tmp_path / "part.flawmap")):
        assert described["preprocessing"]["resize"] == [32, 64]
        assert described["preprocessing"]["resize_rule"] == "long:64"
        assert "resize" not in described
    new = photos(1, seed=2)[0]
    assert loaded.predict(new).pred_score == pytest.approx(model.predict(new).pred_score, rel=1e-5)
    same = detector(**options, resize=(32, 64)).fit(photos(seed=1))
    assert same.resize_ is None
    assert same.predict(new).pred_score == pytest.approx(model.predict(new).pred_score, rel=1e-6)


def test_exports_letterbox_crop_and_bits_keep_working(tmp_path):
    rng = np.random.default_rng(0)
    deep = list(rng.integers(0, 4096, (6, 48, 96), dtype=np.uint16))
    model = make(aspect="letterbox", crop=(32, 48), bits=12).fit(deep)
    assert (model.preprocessing.resize, model.preprocessing.input_size) == ((32, 64), (32, 48))
    assert model.predict(deep[0][:, :48]).placement.resized_size == (32, 32)  # of other proportions: padded
    for kind in ("openvino", "onnx"):
        inspector = Inspector(export_model(model, tmp_path / kind, format=kind))
        assert inspector.preprocessing == model.preprocessing
        assert inspector.predict(deep[0]).pred_score == pytest.approx(model.predict(deep[0]).pred_score, rel=1e-3)


def test_transformers_get_multiples_of_their_patch():
    model = make(backbone="vit_tiny_patch16_224", layers=["blocks.0"], resize="long:96").fit(photos(size=(48, 64)))
    assert model.resize_ == (80, 96)
    assert model.shapes_ == [(192, (5, 6))]


def test_the_most_frequent_size_of_the_first_photos_counts_and_of_equal_ones_the_first():
    wide, tall, square = photos(), photos(size=(96, 48)), photos(size=(48, 48))
    assert make().fit([tall[0], *wide[:2], square[0]]).resize_ == (32, 64)
    assert make().fit([tall[0], wide[0], wide[1], tall[1]]).resize_ == (64, 32)
    many = [*wide * 2, *square[:4], *tall * 4]
    assert many[LOOKED_AT - 1].shape[:2] == (48, 48)
    assert make().fit(many).resize_ == (32, 64)  # later ones are not looked at


def test_photos_of_other_proportions_are_remarked_on():
    remarks = [*make().fit([*photos(), *photos(1, (96, 48))]).remarks_]
    [remark] = [text for text in remarks if "squashed" in text]
    assert "48 x 96 and 96 x 48 (height x width) are squashed" in remark
    assert make(aspect="letterbox").fit([*photos(), *photos(1, (96, 48))]).remarks_ == {}


def test_no_photo_of_an_iterator_is_lost():
    for count in (5, 40):
        images = photos(count)
        one, other = make(calibrate=None).fit(iter(images)), make((32, 64), calibrate=None).fit(images)
        assert one.n_images_ == count
        assert one.predict(images[0]).pred_score == pytest.approx(other.predict(images[0]).pred_score, rel=1e-4)


def test_bad_photos_are_told_of_once(tmp_path):
    folder = write(tmp_path / "good", photos())
    (folder / "00.png").write_bytes(b"no image")
    bad = []
    assert make().fit(folder, on_bad=bad.append).resize_ == (32, 64)
    assert [error.name for error in bad] == [str(folder / "00.png")]
    with pytest.raises(ImageError, match=r"00\.png"):
        make().fit(folder)
    for path in folder.iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(TrainingSetError, match="none of the first 6 can be read; give a size in pixels"):
        make().fit(folder, on_bad=bad.append)


def test_a_second_fit_looks_at_its_own_photos():
    model = make().fit(photos())
    model.crop = 64
    with pytest.raises(ParameterError, match="must fit into"):  # the canvas is 32 high
        model.fit(photos())
    model.crop = None
    model.resize_ = (64, 64)
    with pytest.raises(ParameterError, match="resize_ was changed after the fit"):
        model.predict(photos()[0])
    assert model.fit(photos(size=(96, 48))).resize_ == (64, 32)


def test_without_photos_there_is_no_size():
    with pytest.raises(NotFittedError, match="has learnt nothing yet"):
        make().predict(photos()[0])
    with pytest.raises(ParameterError, match="before `fit`; got 'long:64'"):
        _ = make().preprocessing


def test_wrong_parameters_are_refused_before_a_network_is_loaded(monkeypatch):
    monkeypatch.setattr("flawmap.detectors.feature_detector.load_backbone", lambda *_, **__: pytest.fail("loaded one"))
    with pytest.raises(ParameterError, match="must fit into resize"):
        make(crop=48).fit(photos())
    with pytest.raises(ParameterError, match=r"makes 512 x 32768 of photos of 1 x 64"):
        make("short:512").fit(photos(size=(1, 64)))


def test_a_file_whose_rule_and_size_contradict_each_other_is_refused(tmp_path):
    path = tmp_path / "part.flawmap"
    make().fit(photos()).save(path)
    document, tensors = contents(path)
    assert document["resize"] == [32, 64]
    older = {**document, "parameters": {**document["parameters"], "resize": [32, 64]}}
    del older["resize"]
    assemble(path, older, tensors)  # as files without such rules are
    assert load(path).preprocessing.resize == (32, 64)
    for change in ({"resize": None}, {"resize": [0, 64]}, {"parameters": older["parameters"]}):
        assemble(path, {**document, **change}, tensors)
        with pytest.raises(ModelFileError):
            load(path)


def test_the_command_tells_of_the_rule_and_the_size(tmp_path):
    folder, options = write(tmp_path / "good", photos()), ["--backbone", "resnet10t", "--random-weights"]
    path = tmp_path / "part.flawmap"
    done = run("fit", folder, "-o", path, *options, "--resize", "LONG:64", "--refit-below", "0")
    assert "resized to 32 x 64 (height x width), by --resize long:64" in done.output.replace("\n", " ")
    told = json.loads(run("fit", folder, "-o", path, *options, "--resize", "short:32", "--json", "-q").stdout)
    assert told["resize"] == [32, 64]
    described = json.loads(run("info", path, "--json").stdout)["preprocessing"]
    assert (described["resize"], described["resize_rule"]) == ([32, 64], "short:32")
    assert "short:32" in run("info", path).stdout


@pytest.mark.parametrize("text", ["long:", "long:0", "long:99999", "wide:64"])
def test_the_command_refuses_other_rules_before_it_reads(tmp_path, text):
    failed = run("fit", tmp_path / "nowhere", "-o", tmp_path / "m.flawmap", "--resize", text, code=1)
    message = " ".join(failed.stderr.split())
    assert "'long:768' or 'short:512'" in message
    assert f"got '{text}'" in message
