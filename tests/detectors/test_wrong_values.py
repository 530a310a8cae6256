"""Values of wrong types and sizes are flawmap errors, before the work."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest

from flawmap import VAE, PaDiM, load
from flawmap.detectors import BUILT_IN, find_detector
from flawmap.errors import FlawmapError, ParameterError

SMALL = {"backbone": "resnet10t", "pretrained": False, "resize": 64, "align": "none", "refit_below": 0}
ODD = (2**63, -(2**63), "x" * 300, 1.5, float("nan"), float("inf"), [], object(), b"x", True, "", {}, np.float32(2))


@pytest.fixture(scope="module")
def model(good_images):
    return PaDiM(**SMALL).fit(good_images)


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_a_detector_is_made_of_odd_values_or_refuses_them(name):
    kind = find_detector(name)
    for parameter in kind.parameters_type.model_fields:
        for value in ODD:
            with suppress(ParameterError):
                assert isinstance(kind(**{parameter: value}), kind)


@pytest.mark.parametrize("pretrained", ["yes please", 2, None, []])
def test_pretrained_is_a_bool_from_the_start(pretrained):
    with pytest.raises(ParameterError, match="pretrained"):
        PaDiM(pretrained=pretrained)


def test_a_device_is_a_name():
    for device in (None, 1.5, [], True):
        with pytest.raises(ParameterError, match="device must be 'auto' or the name of a device"):
            PaDiM(device=device)


def test_a_name_of_300_characters_is_no_checkpoint():
    with pytest.raises(ParameterError, match="checkpoint"):
        VAE(checkpoint="n" * 300)


@pytest.mark.parametrize("size", [0, -1, 1.5, "4", True, 2**63, float("nan")])
def test_a_batch_size_is_a_number_from_1(model, good_images, size):
    calls = (
        lambda: model.predict(good_images, batch_size=size),
        lambda: model.predict(good_images[0], batch_size=size),
        lambda: list(model.iter_predict(good_images, batch_size=size)),
        lambda: list(model.iter_predict(iter(good_images), batch_size=size)),
        lambda: PaDiM(**SMALL).fit(good_images, batch_size=size),
    )
    for call in calls:
        with pytest.raises(ParameterError, match="batch_size must be a number from 1"):
            call()


@pytest.mark.parametrize("value", ["0.1", [1], True, float("nan"), float("inf"), 2**2000, -1e39])
def test_a_threshold_is_a_number(model, value):
    for name in ("value", "false_alarm_rate", "pixel_false_alarm_rate"):
        with pytest.raises(ParameterError):
            model.set_threshold(**{name: value})


@pytest.mark.parametrize("path", [None, 3, b"x", "", "a\0b", "n" * 300, []])
def test_a_path_is_a_path(model, path):
    for call in (model.save, load):
        with pytest.raises(FlawmapError):
            call(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"false_alarm_rate": "0.1"}, "false_alarm_rate must be a number, got the text '0.1'"),
        ({"cache_mb": "10"}, "cache_mb must be a number"),
        ({"seed": "1"}, "seed must be a"),
        ({"resize": "256"}, r"resize must be a number of pixels, \(height, width\), or a rule.*got '256'"),
        ({"resize": True}, "resize must be a number of pixels"),
        ({"resize": (64, 0)}, "resize must be a number of pixels"),
        ({"crop": "none"}, "crop must be a number of pixels"),
    ],
)
def test_wrong_numbers_are_refused_at_once(values, message):
    with pytest.raises(ParameterError, match=message):
        PaDiM(**values)


def test_all_images_in_one_group_are_told_of(good_images):
    model = PaDiM(**SMALL, groups=lambda _: "one").fit(good_images)
    remark = "all good images fell into one group, so none can be left out: check groups (--groups)"
    assert len(model.remarks_[remark]) == len(good_images)
    assert model.decision_ is None
    assert remark not in PaDiM(**SMALL, groups=lambda name: name).fit(good_images).remarks_


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_matrices_are_images_and_memory_is_none(model, good_images):
    grey = good_images[0][..., 0]
    assert model.predict(np.asmatrix(grey)).pred_score == model.predict(grey).pred_score
    for odd in (memoryview(good_images[0]), bytearray(b"x"), [memoryview(good_images[0])]):
        with pytest.raises(ParameterError, match=r"memoryview|bytearray"):
            model.predict(odd)
