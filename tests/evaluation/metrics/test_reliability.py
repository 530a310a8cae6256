from __future__ import annotations

import numpy as np
import pytest

from flawmap.evaluation.metrics import reliability


def test_uniform_p_values_keep_their_promise():
    kept = reliability((np.arange(1000) + 0.5) / 1000)
    assert kept.uniformity > 0.99
    for asked, rate in zip(kept.asked, kept.realised, strict=True):
        assert rate.value == pytest.approx(asked, abs=1e-9)
        assert rate.low < asked < rate.high


def test_small_p_values_are_found_out():
    kept = reliability(np.random.default_rng(0).random(400) ** 3)
    assert kept.uniformity < 1e-6
    assert kept.realised[2].low > kept.asked[2]


def test_no_p_values():
    assert reliability([]) is None
