from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawmap import PaDiM
from flawmap.errors import ParameterError
from flawmap.images.proportions import ProportionalSize

side = st.integers(1, 5000)


@pytest.mark.parametrize(
    ("rule", "photo", "step", "canvas"),
    [
        ("long:768", (2000, 3000), 32, (512, 768)),
        ("long:768", (3000, 2000), 32, (768, 512)),
        ("short:512", (2000, 3000), 32, (512, 768)),
        ("short:512", (3000, 2000), 32, (768, 512)),
        ("long:768", (460, 1130), 32, (320, 768)),  # 312.6, to the nearest
        ("long:768", (512, 512), 32, (768, 768)),
        ("short:512", (512, 512), 32, (512, 512)),
        ("long:768", (2000, 3000), 14, (518, 770)),  # patches of 14 pixels
        ("long:1", (10, 4000), 32, (32, 32)),  # one step at least
        ("long:16384", (100, 100), 32, (16384, 16384)),
    ],
)
def test_a_canvas_has_the_photos_proportions(rule, photo, step, canvas):
    assert ProportionalSize.parse(rule).of(photo, step=step) == canvas


@settings(max_examples=200, deadline=None)
@given(side, side, st.sampled_from([1, 14, 16, 32]), st.integers(64, 2000))
def test_sides_are_the_nearest_multiples(height, width, step, pixels):
    canvas = ProportionalSize.parse(f"long:{pixels}").of((height, width), step=step)
    assert all(one % step == 0 and one >= step for one in canvas)
    assert abs(max(canvas) - pixels) <= step / 2
    exact = max(canvas) * min(height, width) / max(height, width)
    assert abs(min(canvas) - exact) <= step / 2 or min(canvas) == step
    assert canvas == ProportionalSize.parse(f"long:{pixels}").of((width, height), step=step)[::-1]


@pytest.mark.parametrize(
    "text", ["long:", "long:0", "long:99999", "long:-5", "long:7.5", "long", ":768", "wide:768", "long:76 8", "", "768"]
)
def test_other_texts_are_refused_when_a_detector_is_made(text):
    with pytest.raises(ParameterError, match=r"resize must be a number of pixels.*'long:768' or 'short:512'.*got '"):
        PaDiM(resize=text)


def test_a_canvas_that_would_be_too_large_is_refused():
    with pytest.raises(ParameterError, match=r"'short:512' makes 512 x 51200 of photos of 100 x 10000.* 16384 pixels"):
        ProportionalSize.parse("short:512").of((100, 10000), step=32)
