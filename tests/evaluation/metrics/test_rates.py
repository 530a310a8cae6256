from __future__ import annotations

import pytest
from scipy.stats import binomtest

from flawmap.errors import ParameterError
from flawmap.evaluation.metrics import Rate


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (1, 1), (0, 41), (3, 41), (41, 41), (500, 1000)])
def test_equals_scipys_wilson_interval(hits, n):
    expected = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    rate = Rate.of(hits, n)
    assert rate.value == hits / n
    assert (rate.low, rate.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_no_cases_and_impossible_ones():
    assert Rate.of(0, 0) is None
    with pytest.raises(ParameterError, match="0 to 3 hits, got 4"):
        Rate.of(4, 3)
