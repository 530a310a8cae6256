from __future__ import annotations

import pytest

from flawmap.detectors.calibration import HoldOut


@pytest.mark.parametrize("seed", range(5))
def test_one_of_every_four_is_held_out(seed):
    held_out = HoldOut(seed)
    held = [held_out(group) for group in range(40)]
    assert held[:4] == [False, False, True, False]  # the least that teaches something and gives a threshold
    assert all(sum(held[start : start + 4]) == 1 for start in range(0, 40, 4))
    assert [held_out(group) for group in range(40)] == held
    assert held != [HoldOut(seed + 100)(group) for group in [*range(4)] * 10]
