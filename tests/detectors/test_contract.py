"""What every detector on a frozen backbone must do; those that train a network are held to it in test_trained."""

from __future__ import annotations

import copy
import math
import pickle
import resource
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from flawmap import SPADE, MahalanobisAD, PaDiM, Prediction, load
from flawmap.decision import discover
from flawmap.detectors import DETECTORS, TrainedDetector, describe_file
from flawmap.errors import FlawmapError, ImageError, ModelFileError, NotFittedError, ParameterError, TrainingSetError
from flawmap.images import LEARNT
from model_files import assemble, contents
from own_detector import own_detector

CellColour = own_detector()
SMALL = {"backbone": "resnet10t", "pretrained": False, "resize": 64}

KINDS = {
    "padim": (PaDiM, {"refit_below": 0}),
    "padim-drawn": (PaDiM, {"n_features": 30, "refit_below": 0}),
    "spade": (SPADE, {}),
    "spade-port": (SPADE, {"variant": "port", "n_neighbors": 3}),
    "spade-coreset": (SPADE, {"coreset": 0.5, "n_neighbors": 4, "n_mapped": 5}),
    "spade-streamed": (SPADE, {"cache_mb": 0}),
    "mahalanobis-ad": (MahalanobisAD, {}),
    "mahalanobis-ad-one": (MahalanobisAD, {"layers": ["layer3"]}),
    "your-own": (CellColour, {}),
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


def make(kind, **changes):
    detector, arguments = KINDS[kind]
    common = {name: value for name, value in SMALL.items() if name in detector.parameters_type.model_fields}
    return detector(**{**common, **arguments, **changes})


@pytest.fixture(scope="module")
def model(kind, good_images):
    return make(kind).fit(good_images)


@pytest.fixture
def path(model, tmp_path):
    model.save(tmp_path / "part.flawmap")
    return tmp_path / "part.flawmap"


def same(one, other, rel=1e-5):
    assert one.pred_score == pytest.approx(other.pred_score, rel=rel, abs=1e-6)  # an image's own neighbour is at 0
    assert (one.pred_label, one.p_value) == (other.pred_label, other.p_value)
    if one.anomaly_map is None:
        assert other.anomaly_map is None
    else:
        np.testing.assert_allclose(one.anomaly_map, other.anomaly_map, rtol=rel, atol=rel)


def test_every_detector_is_held_to_a_contract():
    held = {detector for detector, _ in KINDS.values()}
    assert held == {detector for detector in DETECTORS.values() if not issubclass(detector, TrainedDetector)}


def test_a_scratch_scores_above_good_parts(model, good_images, scratched):
    bad, good = model.predict(scratched), model.predict(good_images[1])
    assert isinstance(bad, Prediction)
    assert bad.pred_score > good.pred_score >= 0
    assert bad.pred_label == 1
    assert bad.p_value == pytest.approx(1 / 13)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, "0", True])
def test_a_seed_is_a_whole_number(kind, seed):
    with pytest.raises(ParameterError, match="seed must be a whole number from 0"):
        make(kind, seed=seed).fit("/no/such/folder")


def test_a_map_is_where_the_image_is_or_there_is_none(model, scratched):
    prediction = model.predict(scratched)
    if model.map_scale is None:
        assert prediction.anomaly_map is prediction.pred_mask is None
        assert prediction.regions == ()
        with pytest.raises(ParameterError, match="no anomaly map"):
            prediction.original_map()
        with pytest.raises(ParameterError, match="image-level"):
            model.set_threshold(pixel_false_alarm_rate=0.01)
        return
    low, high = model.map_scale
    assert 0 < low < high
    assert prediction.anomaly_map.shape == prediction.pred_mask.shape == (64, 64)
    assert prediction.anomaly_map.dtype == np.float32
    row, column = np.unravel_index(prediction.anomaly_map.argmax(), (64, 64))
    assert 16 <= row <= 48
    assert 30 <= column <= 51


def test_an_image_that_was_learnt_from_has_a_remark(model, path, good_images, scratched):
    for one in (model, load(path)):
        assert [prediction.remarks for prediction in one.predict([good_images[3], scratched])] == [(LEARNT,), ()]
        assert next(one.iter_predict(iter(good_images))).remarks == one.predict(good_images[11]).remarks == (LEARNT,)


def test_predictions_follow_the_input_in_order(model, good_images, good_folder, scratched):
    images = [*good_images[:3], scratched, *good_images[3:]]
    predictions = model.predict(images)
    assert len(predictions) == 13
    assert int(np.argmax([p.pred_score for p in predictions])) == 3
    for one, other in zip(model.iter_predict(iter(images)), predictions, strict=True):
        same(one, other)
    paths = sorted(good_folder.iterdir())
    assert [p.path for p in model.predict(paths)] == [str(path) for path in paths]


def test_a_batch_is_labelled_by_its_false_discovery_rate(model, good_images, scratched):
    """The smallest p-value is 1/13: of 13 images one at 1 is found from a rate of 1 on, all 13 from 1/13 on."""
    images = [*good_images, scratched]
    plain = model.predict(images)
    for rate in (0.05, 0.2, 0.99):
        wanted = discover([one.p_value for one in plain], rate).tolist()
        for found in (model.predict(images, fdr=rate), list(model.iter_predict(iter(images), fdr=rate))):
            assert [bool(one.pred_label) for one in found] == wanted
            for one, other in zip(found, plain, strict=True):
                assert one.pred_score == pytest.approx(other.pred_score, rel=1e-5, abs=1e-6)
    assert [model.predict(scratched, fdr=rate).pred_label for rate in (0.05, 0.1)] == [0, 1]
    assert [one.pred_label for one in model.predict([scratched] * 5, fdr=0.1)] == [1] * 5
    for call in (model.predict, model.iter_predict):
        with pytest.raises(ParameterError, match="false-discovery rate must lie between 0 and 1"):
            call(images, fdr=1.5)


def test_a_rate_is_certified_and_kept_in_the_file(path, tmp_path):
    again = load(path).set_threshold(false_alarm_rate=0.4, certify=0.95)
    again.save(tmp_path / "certified.flawmap")
    kept = load(tmp_path / "certified.flawmap")
    assert (kept.threshold_, kept.decision_.confidence) == (again.threshold_, 0.95)
    assert kept.decision_.bound() <= kept.decision_.false_alarm_rate == 0.4
    for described in (kept.describe(), describe_file(tmp_path / "certified.flawmap")):
        assert described["decision"]["confidence"] == 0.95
        assert described["decision"]["false_alarm_bound_95"] == kept.decision_.bound()
        assert described["decision"]["n_groups"] == 12
    with pytest.raises(ParameterError, match="at least 299 good images"):
        load(path).set_threshold(false_alarm_rate=0.01, certify=0.95)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_the_batch_size_changes_nothing(kind, model, good_images, scratched, batch_size):
    other = make(kind).fit(iter(good_images), batch_size=batch_size)
    np.testing.assert_allclose(other.leave_one_out_scores_, model.leave_one_out_scores_, rtol=1e-3)
    images = [scratched, *good_images[:3]]
    wanted = [prediction.pred_score for prediction in model.predict(images)]
    assert [p.pred_score for p in model.predict(images, batch_size=batch_size)] == pytest.approx(wanted, rel=1e-3)


def test_a_fit_is_the_same_every_time_byte_for_byte(kind, path, good_images, tmp_path):
    make(kind).fit(good_images).save(tmp_path / "again.flawmap")
    assert (tmp_path / "again.flawmap").read_bytes() == path.read_bytes()


def test_a_loaded_model_is_the_model(kind, model, path, good_images, scratched):
    loaded = load(path)
    assert type(loaded) is KINDS[kind][0]
    assert loaded.describe() == model.describe()
    assert loaded.map_scale == model.map_scale
    assert loaded.n_images_ == 12
    images = [good_images[0], scratched]
    for one, other in zip(loaded.predict(images), model.predict(images), strict=True):
        same(one, other)
    before = path.read_bytes()
    loaded.save(path)  # over the very file it reads from
    assert path.read_bytes() == before
    same(loaded.predict(scratched), model.predict(scratched))


@pytest.mark.parametrize("kind", ["padim-drawn", "spade", "spade-port"], indirect=True)
def test_scores_of_few_images_are_those_of_refitting_without_them(kind, good_images):
    changes = {"regularization": (0.1, 0.02), "refit_below": 50} if kind.startswith("padim") else {}
    scores = make(kind, **changes).fit(good_images).leave_one_out_scores_
    for i in (0, 5, 11):
        rest = make(kind, **changes).fit(np.delete(good_images, i, axis=0))
        assert scores[i] == pytest.approx(rest.predict(good_images[i]).pred_score, rel=1e-4)


def test_threads_share_a_model(kind, model, good_images, scratched):
    images = [*good_images, scratched]
    expected = [prediction.pred_score for prediction in model.predict(images)]
    shared = make(kind).fit(good_images)  # fresh: the backbone is compiled while the others run it
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(shared.predict, [images] * 8):
            np.testing.assert_allclose([one.pred_score for one in found], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("spade")], indirect=True)
def test_a_model_that_has_predicted_can_be_copied_and_sent_to_other_processes(kind, good_images, scratched):
    changes = {"runtime": "openvino"} if kind != "your-own" else {}
    model = make(kind, **changes).fit(good_images)
    expected = model.predict(scratched)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        same(again.predict(scratched), expected)


def test_a_threshold_is_changed_without_fitting_again(path, scratched):
    loaded = load(path)
    loaded.set_threshold(false_alarm_rate=0.5).save(path)
    assert load(path).threshold_ == np.sort(loaded.leave_one_out_scores_)[6]
    assert loaded.set_threshold(value=1e12).predict(scratched).pred_label == 0
    with pytest.raises(ParameterError, match="either"):
        loaded.set_threshold(value=1, false_alarm_rate=0.1)


def test_without_calibration_there_is_a_score_but_no_decision(kind, good_images, scratched, tmp_path):
    for fitted in (make(kind, calibrate=None).fit(good_images[:4] if "spade" in kind else good_images),):
        fitted.save(tmp_path / "m.flawmap")
        loaded = load(tmp_path / "m.flawmap")
        prediction = loaded.predict(scratched)
        assert prediction.pred_label is prediction.p_value is prediction.pred_mask is None
        assert loaded.map_scale is None or 0 < loaded.map_scale[0] < loaded.map_scale[1]
        with pytest.raises(NotFittedError, match="calibrate='leave-one-out' on at least 3"):
            loaded.set_threshold(value=3)


def test_two_images_are_enough_and_one_is_not(kind, good_images, scratched):
    changes = {"n_neighbors": None} if "spade" in kind else {}
    fitted = make(kind, **changes).fit(good_images[:2])
    assert fitted.decision_ is None
    assert math.isfinite(fitted.predict(scratched).pred_score)
    for n_images in (0, 1):
        with pytest.raises(TrainingSetError, match=f"at least 2 good images, got {n_images} usable"):
            make(kind, **changes).fit(good_images[:n_images])


def test_bad_images_are_named_or_left_out(kind, model, good_images):
    images = [*good_images, np.zeros((4, 4), np.float32)]
    with pytest.raises(ImageError, match=r"^image 13: expected uint8"):
        make(kind).fit(images)
    bad: list[ImageError] = []
    assert make(kind).fit(images, on_bad=bad.append).n_images_ == 12
    assert len(model.predict(images, on_bad=bad.append)) == 12
    assert len(bad) == 2


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"resize": 0}, "resize must be"),
        ({"crop": 65}, "must fit into"),
        ({"layers": "layer1"}, "list of names"),
        ({"layers": []}, "distinct names"),
        ({"layers": ["layer1", "layer1"]}, "distinct names"),
        ({"calibrate": "twice"}, "calibrate must be"),
        ({"false_alarm_rate": 0}, "between 0 and 1"),
    ],
)
def test_impossible_parameters_are_refused_by_fit(kind, good_images, parameters, message):
    if "layers" in parameters and kind == "your-own":
        message = "has no parameter layers"
    with pytest.raises(ParameterError, match=message):
        make(kind, **parameters).fit(good_images)


def test_nothing_is_predicted_before_fit(kind, good_images, tmp_path):
    with pytest.raises(NotFittedError, match=r"call fit\(good_images\)"):
        make(kind).predict(good_images)
    with pytest.raises(NotFittedError):
        make(kind).save(tmp_path / "m.flawmap")


def test_an_outlier_and_copies_are_named(kind, good_images, scratched):
    rng = np.random.default_rng(3)
    many = [np.clip(image + rng.normal(0, 5, image.shape), 0, 255).astype(np.uint8) for image in good_images] * 2
    fitted = make(kind).fit([*many[:10], scratched, *many[10:12]])
    assert "image 11" in fitted.outliers_
    copied = make(kind).fit(many[:13])
    assert (*copied.copies_, *(name for group in copied.groups_ for name in group[1:])) == ("image 13",)


def test_a_letterbox_leaves_its_padding_out(kind, good_images, scratched):
    fitted = make(kind, aspect="letterbox").fit([image[:32] for image in good_images])
    prediction = fitted.predict(scratched[16:48])
    assert prediction.image_size == (32, 64)
    if prediction.anomaly_map is not None:
        assert not prediction.anomaly_map[:16].any()
        assert prediction.anomaly_map[16:48].all()


def test_a_file_cut_short_anywhere_is_refused(path):
    whole = path.read_bytes()
    for length in [0, 7, 8, 100, 2000, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ModelFileError, match=r"part\.flawmap"):
            load(path)


def test_a_file_with_a_part_of_another_model_is_refused(kind, path, good_images, tmp_path):
    document, tensors = contents(path)
    for name in tensors:
        assemble(path, document, {other: tensor for other, tensor in tensors.items() if other != name})
        with pytest.raises(ModelFileError, match="tensor"):
            load(path)
    change = {"cells": 4} if kind == "your-own" else {"layers": ["layer1"]}
    make(kind, **change).fit(good_images).save(tmp_path / "other.flawmap")
    assemble(path, document, contents(tmp_path / "other.flawmap")[1])
    with pytest.raises(ModelFileError, match="tensor"):
        load(path)


def test_a_description_that_contradicts_itself_is_refused(path):
    document, tensors = contents(path)
    backbone, learnt, parameters = document["backbone"], document["learnt"], document["parameters"]
    is_spade = document["detector"] == "spade"
    changes = [
        {"detector": "os.system"},
        {"detector": ["spade"]},
        {"surprise": 1},
        {"n_images": 1},
        {"decision": None},
        {"parameters": {**parameters, "resize": [64, 64], "crop": [65, 65]}},
        {"parameters": {**parameters, "seed": -1}},
        {"parameters": {**parameters, "surprise": 1}},
    ]
    if backbone is not None:
        changes += [
            {"backbone": None},
            {"backbone": {**backbone, "grids": backbone["grids"][:-1] or [[1, 1]]}},
            {"backbone": {**backbone, "grids": [[16000, 16000]] * len(backbone["grids"])}},
            {"backbone": {**backbone, "n_channels": [7] * len(backbone["n_channels"])}},
            {"learnt": {}},
            {"learnt": {**learnt, "n_neighbors": 13} if is_spade else {**learnt, "surprise": 1}},
            {"learnt": {**learnt, "image_layer": "layer9"} if is_spade else {}},
        ]
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


def test_paths_arrays_and_pictures_score_the_same(model, good_images, good_folder):
    path = sorted(good_folder.iterdir())[3]
    for single in (str(path), good_images[3], Image.open(path)):
        same(model.predict(single), model.predict(path), rel=1e-4)


def test_a_copy_scores_the_same(model, good_images, scratched):
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        for image in (good_images[0], scratched, good_images[0]):  # predictions do not change it
            assert same(copied.predict(image), model.predict(image)) is None


def test_a_parameter_that_changes_after_the_fit_is_refused(kind, good_images, tmp_path):
    model = make(kind).fit(good_images)
    before = model.predict(good_images[0]).pred_score
    model.resize = 96
    for call in (lambda: model.save(tmp_path / "m"), model.describe, lambda: model.predict(good_images[0])):
        with pytest.raises(ParameterError, match="resize was changed after the fit, from 64 to 96; fit again"):
            call()
    assert not (tmp_path / "m").exists()
    model.resize = 64
    model.workers = 1  # of this machine, and not of the model
    assert model.predict(good_images[0]).pred_score == before


def test_a_device_that_is_not_here_does_not_damage_the_model(path):
    with pytest.raises(ParameterError, match=r"device 'gpu' cannot be used here. Available: auto, cpu"):
        load(path, device="gpu")
