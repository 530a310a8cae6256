from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from flawmap.detectors.good_images import Replay
from flawmap.errors import ImageError
from flawmap.images import Preprocessing

SMALL = Preprocessing.of(4)
IMAGE_MB = 64 / 2**20  # 4 x 4 x 3 bytes, rounded up


@pytest.fixture
def paths(tmp_path):
    for i in range(6):
        Image.new("RGB", (4, 4), (i, i, i)).save(tmp_path / f"{i}.png")
    return sorted(tmp_path.iterdir())


def values(images):
    return [int(image.pixels[0, 0, 0]) for image in images]


@pytest.mark.parametrize("n_kept", [0, 2, 6, 9])
def test_the_second_pass_gives_the_same_images_in_the_same_order(paths, n_kept):
    replay = Replay(paths, SMALL, cache_mb=n_kept * IMAGE_MB)
    assert values(replay.first()) == values(replay.second(replay.again)) == [0, 1, 2, 3, 4, 5]
    assert replay.again == [0, 1, 2, 3, 4, 5]
    assert replay.names == [str(path) for path in paths]


@pytest.mark.parametrize("n_kept", [0, 2, 6])
def test_the_second_pass_gives_any_part_in_any_order(paths, n_kept):
    replay = Replay(paths, SMALL, cache_mb=n_kept * IMAGE_MB)
    assert len(values(replay.first())) == 6
    assert values(replay.second([5, 1, 4, 0])) == [5, 1, 4, 0]
    assert values(replay.second([2, 2])) == [2, 2]
    assert values(replay.second([])) == []


def test_what_is_kept_needs_no_file(paths):
    replay = Replay(paths, SMALL, cache_mb=2 * IMAGE_MB)
    assert len(values(replay.first())) == 6
    paths[0].unlink()
    second = replay.second(replay.again)
    assert int(next(second).pixels[0, 0, 0]) == 0
    paths[4].unlink()
    with pytest.raises(ImageError, match=r"4\.png"):
        list(second)


def test_bad_images_are_told_of_once_and_left_out_of_both_passes(paths):
    paths[1].write_bytes(b"no image")
    told = []
    replay = Replay(paths, SMALL, cache_mb=IMAGE_MB, on_bad=told.append)
    assert values(replay.first()) == values(replay.second(replay.again)) == [0, 2, 3, 4, 5]
    assert len(told) == 1


def test_a_generator_is_replayed_as_far_as_it_was_kept():
    replay = Replay((np.full((4, 4, 3), i, np.uint8) for i in range(5)), SMALL, cache_mb=3 * IMAGE_MB)
    assert values(replay.first()) == [0, 1, 2, 3, 4]
    assert values(replay.second(replay.again)) == [0, 1, 2]
    assert replay.again == [0, 1, 2]


def test_a_list_is_replayed_whole():
    images = [np.full((4, 4, 3), i, np.uint8) for i in range(5)]
    images.insert(1, np.zeros((4, 4), np.float32))
    told = []
    replay = Replay(images, SMALL, cache_mb=2 * IMAGE_MB, on_bad=told.append)
    assert values(replay.first()) == values(replay.second(replay.again)) == [0, 1, 2, 3, 4]
    assert len(told) == 1


def test_what_else_is_kept_comes_out_of_the_same_budget(paths):
    replay = Replay(paths, SMALL, cache_mb=4 * IMAGE_MB)
    assert replay.reserve(100).size == 100  # two images' room
    assert len(values(replay.first())) == 6
    assert replay.reserve(1) is None
    for path in paths[2:]:
        path.unlink()
    second = replay.second(replay.again)
    assert [int(next(second).pixels[0, 0, 0]) for _ in range(2)] == [0, 1]
    with pytest.raises(ImageError, match=r"2\.png"):
        next(second)
