from __future__ import annotations

import numpy as np
import pytest

from flawmap.images.pasted import REACH, paste_defect


def photo(side=256, channels=3):
    rng = np.random.default_rng(0)
    image = np.full((side, side, channels), 60, np.uint8)
    image[side // 4 : side // 2, side // 4 : side // 2, :3] = rng.integers(100, 200, (side // 4, side // 4, 1))
    return image


def changed(image, **options):
    return [np.argwhere((paste_defect(image, rng=rng, **options) != image).any(axis=2)) for rng in generators(60)]


def generators(n):
    return [np.random.default_rng(seed) for seed in range(n)]


@pytest.mark.parametrize(("side", "factor"), [(256, 1), (512, 2)])
def test_a_defect_is_small_and_lies_where_the_image_has_structure(side, factor):
    places = changed(photo(side), allowed=np.ones((side, side), bool))
    sizes = [np.ptp(place, axis=0).max() + 1 for place in places if len(place)]
    assert len(sizes) > 55  # a blur, or a patch of background, may change nothing
    assert max(sizes) <= (2 * REACH + 1) * factor
    assert 5 * factor <= np.median(sizes) <= 25 * factor
    centres = np.array([place.mean(axis=0) for place in places if len(place)]) / side
    near = (abs(centres - 0.375) < 0.125 + 0.1).all(axis=1)
    assert near.mean() > 0.9


def test_a_defect_lies_where_it_may():
    allowed = np.zeros((256, 256), bool)
    allowed[64:96, 96:128] = True
    for place in changed(photo(), allowed=allowed):
        if len(place):
            top, left = place.min(axis=0)
            bottom, right = place.max(axis=0)
            assert (top <= 100, bottom >= 60, left <= 132, right >= 92) == (True,) * 4


def test_the_image_stays_and_what_it_shows_too():
    image = photo(channels=4)
    before = image.copy()
    pasted = paste_defect(image, np.ones((256, 256), bool), np.random.default_rng(1))
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(pasted[..., 3], before[..., 3])


def test_the_same_seed_gives_the_same_defect():
    allowed = np.ones((256, 256), bool)
    one, same, other = (paste_defect(photo(), allowed, np.random.default_rng(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 200, 3), (32, 32, 3), (2, 2, 4)])
def test_any_size_will_do(shape):
    image = np.full(shape, 9, np.uint8)
    for rng in generators(20):
        assert paste_defect(image, np.zeros(shape[:2], bool), rng).shape == shape
