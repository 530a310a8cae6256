"""One contract for the detectors that train a network, and what each of them promises."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

from flawmap import Inspector, export_model
from flawmap.cli.app import app
from flawmap.detectors import ITAE, VAE, GANomaly, PatchSVDD, load
from flawmap.detectors.trained.patch_svdd import PatchSVDDScorer
from flawmap.errors import (
    FlawmapError,
    ImageError,
    ModelFileError,
    NotFittedError,
    ParameterError,
    TrainingError,
    TrainingSetError,
)
from flawmap.evaluation.metrics import image_auroc
from flawmap.images import LEARNT
from model_files import assemble, contents
from parts import generate_parts

KINDS = {
    VAE: {"width": 4, "batch_size": 4},
    PatchSVDD: {"width": 8, "batch_size": 4},
    GANomaly: {"width": 4, "batch_size": 4},
    ITAE: {"width": 4, "batch_size": 4},
}


def make(kind, **changes):
    return kind(**{"resize": 64, "steps": 2, "device": "cpu"} | KINDS[kind] | changes)


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.name)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(kind, good_images):
    return make(kind).fit(good_images)


@pytest.fixture
def path(model, tmp_path):
    model.save(tmp_path / "part.flawmap")
    return tmp_path / "part.flawmap"


def scores(predictions):
    return [prediction.pred_score for prediction in predictions]


def test_a_quarter_is_held_out_and_decides(model, good_images):
    assert (model.n_images_, len(model.decision_.scores)) == (9, 3)
    assert model.decision_.localises == model.localises
    prediction = model.predict(good_images[0])
    assert prediction.pred_label in (0, 1)
    assert (prediction.anomaly_map is not None) == (prediction.pred_mask is not None) == model.localises
    assert (model.map_scale is not None) == model.localises
    if model.localises:
        assert prediction.anomaly_map.shape == (64, 64)
        assert prediction.pred_score == prediction.anomaly_map.max()
    record = model.describe()
    assert record["decision"]["method"] == "holdout"
    assert (record["training"]["steps"], record["training"]["stopped"]) == (2, "schedule")


def test_scores_of_held_out_images_are_those_of_prediction(model, good_images):
    again = scores(model.predict(good_images))
    for score in model.decision_.scores:
        assert min(abs(score - value) for value in again) <= 1e-4 * score


def test_an_image_that_was_learnt_from_has_a_remark_whatever_the_crop(kind, good_images, scratched):
    model = make(kind, resize=72, crop=64).fit(good_images)
    assert [prediction.remarks for prediction in model.predict([good_images[3], scratched])] == [(LEARNT,), ()]


def test_the_same_seed_gives_the_same_model(kind, model, good_images):
    state = torch.random.get_rng_state()
    again = make(kind).fit(good_images)
    assert torch.equal(torch.random.get_rng_state(), state)  # the caller's generator is left alone
    assert scores(again.predict(good_images)) == scores(model.predict(good_images))
    assert scores(make(kind, seed=1).fit(good_images).predict(good_images)) != scores(model.predict(good_images))


def test_a_model_comes_back_from_its_file(model, path, good_images, scratched):
    again = load(path)
    assert type(again) is type(model)
    for one, other in zip(again.predict(good_images), model.predict(good_images), strict=True):
        assert (one.pred_score, one.pred_label, one.p_value) == (other.pred_score, other.pred_label, other.p_value)
    assert again.describe() == model.describe()
    assert again.map_scale == model.map_scale
    again.set_threshold(value=1e9).save(path)
    assert load(path).predict(scratched).pred_label == 0
    with pytest.raises(ParameterError, match="either"):
        again.set_threshold(value=1, false_alarm_rate=0.1)


def test_paths_arrays_and_pictures_score_the_same(model, good_images, good_folder):
    path = sorted(good_folder.iterdir())[3]
    expected = model.predict(path).pred_score
    for single in (str(path), good_images[3], Image.open(path)):
        assert model.predict(single).pred_score == pytest.approx(expected, rel=1e-4)
    assert len(model.predict(good_folder)) == 12


def test_without_calibration_all_images_are_learnt(kind, good_images, tmp_path):
    model = make(kind, calibrate=None).fit(good_images)
    assert (model.n_images_, model.decision_) == (12, None)
    model.save(tmp_path / "m.flawmap")
    prediction = load(tmp_path / "m.flawmap").predict(good_images[0])
    assert (prediction.pred_label, prediction.pred_mask) == (None, None)
    with pytest.raises(NotFittedError, match="calibrate='holdout'"):
        model.set_threshold(value=3)
    with pytest.raises(NotFittedError, match="learnt nothing yet"):
        make(kind).predict(good_images)


def test_few_images_fill_a_batch_and_one_is_refused(kind, good_images):
    assert make(kind, batch_size=8, steps=1).fit(good_images[:3]).n_images_ in (2, 3)
    for n_images in (0, 1):
        with pytest.raises(TrainingSetError, match=f"at least 2 good images, got {n_images} usable"):
            make(kind).fit(good_images[:n_images])


def test_bad_images_are_named_or_left_out(kind, model, good_images):
    images = [*good_images, np.zeros((4, 4), np.float32)]
    with pytest.raises(ImageError, match=r"^image 13: expected uint8"):
        make(kind).fit(images)
    bad: list[ImageError] = []
    assert make(kind, steps=1).fit(images, on_bad=bad.append).n_images_ == 9
    assert len(model.predict(images, on_bad=bad.append)) == 12
    assert len(bad) == 2


def test_copies_and_groups(kind, good_images, good_folder):
    copied = make(kind, steps=1, groups=None).fit([*good_images, good_images[4]])
    assert copied.copies_ == ("image 13",)
    found = make(kind, steps=1).fit([*good_images, good_images[4]])
    assert (found.copies_, found.groups_) == ((), (("image 5", "image 13"),))
    halves = make(kind, steps=1, groups=r"/(\d\d)\d\.png").fit(good_folder)  # 000 to 009, and 010, 011
    assert halves.n_images_ in (2, 10, 12)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"resize": 0}, "resize must be"),
        ({"crop": 65}, "must fit into"),
        ({"resize": 8192}, "up to 4096 pixels"),
        ({"calibrate": "leave-one-out"}, "calibrate must be"),
        ({"false_alarm_rate": 0}, "between 0 and 1"),
        ({"cache_mb": -1}, "cache_mb must be"),
        ({"budget": -1}, "positive number of minutes"),
        ({"epochs": 0}, "epochs must be"),
        ({"steps": 0}, "steps must be"),
        ({"patience": 0}, "patience must be"),
        ({"width": 0}, "width must be"),
        ({"batch_size": 1.5}, "batch_size must be"),
        ({"batch_size": 1}, "batch_size must be a whole number from 2"),
        ({"seed": -1}, "seed must be"),
        ({"budget": 1e300}, "positive number of minutes up to"),
        ({"checkpoint": "/no/such/folder/c"}, "a folder that is there"),
        ({"learning_rate": -1}, "learning_rate must be"),
        ({"precision": "float16"}, "precision must be"),
    ],
)
def test_impossible_parameters_are_refused_before_anything_is_read(kind, parameters, message):
    with pytest.raises(ParameterError, match=message):
        make(kind, **parameters).fit("/no/such/folder")


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [(PatchSVDD, 60, "patches of 64 x 64"), (GANomaly, 48, "square images of 16"), (ITAE, (64, 48), "square ones")],
)
def test_sizes_that_a_network_cannot_take_are_refused(kind, size, message):
    with pytest.raises(ParameterError, match=message):
        make(kind, resize=size).fit("/no/such/folder")


def test_the_papers_settings_are_the_default():
    expected = {
        VAE: ((292, 292), (256, 256), 100, 32, 1e-4, 313),
        PatchSVDD: ((256, 256), None, 300, 64, 1e-4, 500),
        GANomaly: ((32, 32), None, 15, 64, 2e-4, 5),
        ITAE: ((256, 256), None, 300, 32, 1e-3, 10),
    }
    for kind, (resize, crop, epochs, batch_size, learning_rate, steps) in expected.items():
        detector = kind()
        preprocessing = detector.preprocessing
        assert (preprocessing.resize, preprocessing.crop) == (resize, crop)
        assert (detector.epochs, detector.batch_size, detector.learning_rate) == (epochs, batch_size, learning_rate)
        assert detector.epoch_steps(320) == steps  # 10,000 images; each image 100 times; once


def test_the_preset_is_the_default(kind):
    preset = kind.from_preset(f"{kind.name}-paper", width=4, steps=1)
    assert preset.preprocessing == replace(kind().preprocessing, reading="whole")
    assert (preset.width, preset.epochs) == (4, kind().epochs)
    with pytest.raises(ParameterError, match=f"unknown preset 'vae'; there are {kind.name}-paper"):
        kind.from_preset("vae")


def test_images_that_cannot_be_read_again_are_refused(kind, good_images):
    with pytest.raises(TrainingSetError, match="35 of 36 images came from an iterator"):
        make(kind, cache_mb=0.02).fit(iter([*good_images] * 3))
    assert make(kind, cache_mb=0.02, steps=1).fit(list(good_images)).n_images_ == 9


def test_scores_that_are_no_numbers_are_no_scores(kind, good_images, monkeypatch, tmp_path):
    network = type(make(kind).build_scorer((64, 64), 2))
    forward = network.forward
    monkeypatch.setattr(network, "forward", lambda *given: tuple(out * torch.nan for out in forward(*given)))
    with pytest.raises(TrainingError, match=rf"scores are not finite.*delete {tmp_path / 'c'} first"):
        make(kind, steps=1, checkpoint=tmp_path / "c").fit(good_images)


def test_other_weights_are_not_taken(path):
    with pytest.raises(ParameterError, match=r"part\.flawmap: .*no other weights"):
        load(path, weights="resnet18.safetensors")


def test_a_letterbox_leaves_its_padding_out_of_maps(kind, good_images, scratched):
    fitted = make(kind, aspect="letterbox", steps=1).fit([image[:32] for image in good_images])
    prediction = fitted.predict(scratched[16:48])
    assert prediction.image_size == (32, 64)
    if prediction.anomaly_map is not None:
        assert not prediction.anomaly_map[:16].any()
        assert prediction.anomaly_map[16:48].any()


def test_a_crop_is_learnt_and_scored_where_it_lies(good_images):
    model = make(VAE, resize=72, crop=64).fit(good_images)
    again = scores(model.predict(good_images))
    assert model.predict(good_images[0]).placement.offset == (4, 4)
    for score in model.decision_.scores:
        assert min(abs(score - value) for value in again) <= 1e-4 * score


def test_a_file_that_is_not_whole_is_refused(path):
    whole = path.read_bytes()
    for length in [0, 7, 100, 2000, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ModelFileError, match=r"part\.flawmap"):
            load(path)


def test_a_file_with_other_tensors_is_refused(path):
    document, tensors = contents(path)
    for name in (next(iter(tensors)), "calibration.scores"):
        assemble(path, document, {other: tensor for other, tensor in tensors.items() if other != name})
        with pytest.raises(ModelFileError, match="tensor"):
            load(path)
    broken = dict(tensors)
    name = next(iter(tensors))
    broken[name] = torch.full_like(tensors[name], torch.nan)
    assemble(path, document, broken)
    with pytest.raises(ModelFileError, match="NaN"):
        load(path)


def test_a_description_that_contradicts_itself_is_refused(path):
    document, tensors = contents(path)
    parameters, learnt = document["parameters"], document["learnt"]
    changes = [
        {"detector": "os.system"},
        {"surprise": 1},
        {"parameters": {**parameters, "width": 4096}},
        {"parameters": {**parameters, "width": 0}},
        {"n_images": 1},
        {"decision": None},
        {"learnt": {**learnt, "usual_score": -1}},
        {"parameters": {**parameters, "resize": [64, 64], "crop": [65, 65]}},
        {"parameters": {**parameters, "resize": [16000, 16000], "crop": None}},
        {"learnt": {**learnt, "training": {**learnt["training"], "stopped": "by magic"}}},
    ]
    if document["detector"] == "patch-svdd":
        changes += [{"n_images": 10**7}, {"parameters": {**parameters, "resize": [128, 128], "crop": None}}]
    for change in changes:
        assemble(path, {**document, **change}, tensors)
        with pytest.raises(FlawmapError, match=r"part\.flawmap"):
            load(path)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(model, path, tmp_path):
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(ModelFileError, match=r"cannot be written .*Nothing was changed"):
            model.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["part.flawmap"]


def test_a_fit_goes_on_from_its_checkpoint(kind, model, good_images, tmp_path):
    checkpoint = tmp_path / "c"
    make(kind, steps=1, checkpoint=checkpoint).fit(good_images)
    again = make(kind, checkpoint=checkpoint).fit(good_images)
    assert scores(again.predict(good_images)) == scores(model.predict(good_images))
    for change in ({"width": 6}, {"seed": 1}, {"resize": 128}, {"batch_size": 3}, {"learning_rate": 0.1}):
        with pytest.raises(TrainingError, match="is of another training"):
            make(kind, checkpoint=checkpoint, **change).fit(good_images)
    with pytest.raises(TrainingError, match="images: "):
        make(kind, checkpoint=checkpoint).fit(good_images[::-1])


def test_a_checkpoint_of_another_detector_is_refused(good_images, tmp_path):
    make(ITAE, steps=1, checkpoint=tmp_path / "c").fit(good_images)
    with pytest.raises(TrainingError, match="detector: 'itae' there, 'ganomaly' here"):
        make(GANomaly, checkpoint=tmp_path / "c").fit(good_images)


def test_a_killed_command_goes_on_where_it_was(good_folder, tmp_path):
    def arguments(name, epochs):
        options = ["--detector", "ganomaly", "--resize", "32", "--width", "4", "--batch-size", "4"]
        return ["fit", str(good_folder), "-o", str(tmp_path / name), *options, "--epochs", str(epochs)]

    process = subprocess.Popen([sys.executable, "-m", "flawmap", *arguments("a.flawmap", 10**6), "--quiet"])
    checkpoint = tmp_path / "a.flawmap.checkpoint"
    deadline = time.monotonic() + 60
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with safe_open(checkpoint, framework="pt") as file:
        steps = json.loads(file.metadata()["training"])["record"]["steps"]
    epochs = steps // 3 + 5
    done = CliRunner().invoke(app, arguments("a.flawmap", epochs))
    assert done.exit_code == 0, done.output
    assert "goes on from" in done.output
    assert "--steps" in done.output
    assert not checkpoint.exists()
    assert CliRunner().invoke(app, arguments("b.flawmap", epochs)).exit_code == 0
    one, other = load_file(tmp_path / "a.flawmap"), load_file(tmp_path / "b.flawmap")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_commands_take_every_detector(kind, good_folder, tmp_path, scratched):
    (tmp_path / "part" / "train").mkdir(parents=True)
    for place in ("train/good", "test/good"):
        shutil.copytree(good_folder, tmp_path / "part" / place)
    (tmp_path / "part" / "test" / "scratch").mkdir()
    Image.fromarray(scratched).save(tmp_path / "part" / "test" / "scratch" / "0.png")

    def run(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
        return result.stdout

    file = tmp_path / "m.flawmap"
    small = ["--width", "4", "--batch-size", "4", "--steps", "1", "--resize", "64", "--budget", "5"]
    fitted = json.loads(run("fit", tmp_path / "part", "-o", file, "--detector", kind.name, *small, "--json", "--quiet"))
    assert (fitted["n_images"], fitted["training"]["steps"]) == (9, 1)
    document = json.loads(run("info", file, "--json"))
    assert (document["decision"]["method"], document["localises"]) == ("holdout", kind.localises)
    run("threshold", file, "--false-alarm-rate", "0.3")
    figures = json.loads(run("evaluate", file, tmp_path / "part", "--json", "--quiet"))
    assert 0 <= figures["image_auroc"] <= 1
    run("predict", file, good_folder, "-o", tmp_path / "out", "--maps", "--quiet")
    rows = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 12
    assert all(("overlay" in row) == ("anomaly_map" in row) == kind.localises for row in rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--detector", "vae", "--backbone", "resnet18"], "--backbone is not for vae"),
        (["--detector", "itae", "--random-weights"], "--random-weights is not for itae"),
        (["--detector", "ganomaly", "--dtype", "float16"], "--dtype is not for ganomaly"),
        (["--detector", "ganomaly", "--preset", "padim-r18-rd100"], "of padim, not of ganomaly"),
        (["--budget", "3"], "--budget is not for padim"),
        (["--detector", "vae", "--calibrate", "leave-one-out"], "calibrate must be"),
    ],
)
def test_options_of_other_detectors_are_refused(good_folder, tmp_path, options, message):
    result = CliRunner().invoke(app, ["fit", str(good_folder), "-o", str(tmp_path / "m.flawmap"), *options])
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())


def test_a_checkpoint_is_not_the_model(good_folder, tmp_path):
    file = str(tmp_path / "m")
    arguments = ["fit", str(good_folder), "-o", file, "--detector", "itae", "--checkpoint", file]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "--checkpoint and --output name one file" in " ".join(result.output.split())


@pytest.mark.parametrize("choice", [["--detector", "itae"], ["--preset", "itae-paper"]])
def test_ctrl_c_names_the_checkpoint(good_folder, tmp_path, monkeypatch, choice):
    def interrupted(self, *_, **__):
        self.checkpoint.write_bytes(b"")
        raise KeyboardInterrupt

    monkeypatch.setattr(ITAE, "fit", interrupted)
    arguments = ["fit", str(good_folder), "-o", str(tmp_path / "m"), *choice, "-q"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 130
    said = result.output.replace("\n", "")
    assert f"the training is kept in {tmp_path / 'm.checkpoint'}".replace(" ", "") in said.replace(" ", "")


def test_patches_that_have_become_alike_are_said_to_be(good_images, monkeypatch):
    def embed(self, images):
        return {side: torch.ones(len(images), 8, *grid) for side, grid in self.grids.items()}

    monkeypatch.setattr(PatchSVDDScorer, "embed", embed)
    with pytest.raises(TrainingError, match="patches of 32 pixels all have one embedding"):
        make(PatchSVDD, steps=1).fit(good_images)


def test_16_bits_are_refused_where_they_do_not_serve(good_images, tmp_path):
    with pytest.raises(ParameterError, match="float32"):
        export_model(make(PatchSVDD, steps=1).fit(good_images), tmp_path / "export", dtype="float16")
    assert not (tmp_path / "export").exists()


LEARNING = {
    VAE: {"resize": 36, "crop": 32, "batch_size": 8, "learning_rate": 3e-3, "steps": 25},
    ITAE: {"resize": 32, "width": 8, "batch_size": 16, "learning_rate": 3e-3, "steps": 60},
}


@pytest.mark.parametrize("kind", LEARNING, ids=lambda kind: kind.name)
def test_what_is_learnt_tells_scratches_and_blots_from_good_parts(kind):
    parts = generate_parts(side=32, n_train=64, n_each=10)
    before, after = (
        image_auroc(
            parts.labels, scores(kind(**LEARNING[kind] | {"steps": steps}).fit(parts.train).predict(parts.test))
        )
        for steps in (1, LEARNING[kind]["steps"])
    )
    assert after > max(0.9, before)


@pytest.mark.parametrize("format", ["openvino", "onnx"])
def test_an_export_says_what_the_model_says(kind, model, good_images, scratched, tmp_path, format):
    if format == "onnx" and kind in (VAE, ITAE):
        pytest.skip("takes ten seconds; the graph is the one that OpenVINO runs")
    if kind is PatchSVDD:  # hardly trained, its embeddings differ so little that float32 keeps few digits of distances
        model = make(kind, learning_rate=1e-2).fit(good_images)
    folder = export_model(model, tmp_path / "export", format=format)
    inspector = Inspector(folder)
    images = [*good_images[:2], scratched]  # the third is held out, and its score the threshold itself
    for found, expected in zip(inspector.predict(images), model.predict(images), strict=True):
        assert found.pred_score == pytest.approx(expected.pred_score, rel=1e-3, abs=1e-5)
        assert found.pred_label == expected.pred_label
        if model.localises:
            np.testing.assert_allclose(found.anomaly_map, expected.anomaly_map, rtol=1e-3, atol=1e-3)
        else:
            assert (found.anomaly_map, found.pred_mask, found.regions) == (None, None, ())
    assert inspector.metadata.map_scale == (None if model.map_scale is None else pytest.approx(model.map_scale))
