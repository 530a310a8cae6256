from __future__ import annotations

import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from flawmap.errors import ImageError, ParameterError
from flawmap.images import Preprocessing, stream

SMALL = Preprocessing.of(4)
stream_module = sys.modules["flawmap.images.stream"]


def flat(value):
    return np.full((4, 4, 3), value, np.uint8)


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("flawmap-read")]


def test_images_come_in_order_whatever_they_take(tmp_path):
    items = []
    for i in range(30):
        side = 600 if i % 3 == 0 else 4
        Image.new("RGB", (side, side), (i, i, i)).save(tmp_path / f"{i:02}.png")
        items.append(tmp_path / f"{i:02}.png")
    loaded = list(stream(items, SMALL, workers=4))
    assert [int(image.pixels[0, 0, 0]) for image in loaded] == list(range(30))
    assert [image.path for image in loaded] == [str(path) for path in items]
    assert not readers()


def test_a_generator_is_read_no_further_ahead_than_its_bound():
    pulled = []

    def numbers():
        for i in range(1000):
            pulled.append(i)
            yield flat(i % 256)

    images = stream(numbers(), SMALL, workers=2)
    next(images)
    next(images)
    assert len(pulled) <= 2 + 2 * 4
    images.close()
    assert not readers()


def test_a_bad_image_raises_or_is_told_and_left_out():
    items = [flat(0), np.zeros((4, 4), np.float64), flat(2)]
    with pytest.raises(ImageError, match=r"^image 2: expected uint8"):
        list(stream(items, SMALL))
    told: list[ImageError] = []
    loaded = list(stream(items, SMALL, on_bad=told.append))
    assert [image.name for image in loaded] == ["image 1", "image 3"]
    assert [error.name for error in told] == ["image 2"]
    assert not readers()


def test_an_error_of_the_source_reaches_the_caller_and_ends_the_threads():
    def failing():
        yield flat(0)
        raise RuntimeError("camera unplugged")

    with pytest.raises(RuntimeError, match="camera unplugged"):
        list(stream(failing(), SMALL))
    assert not readers()


def test_no_images_are_no_images():
    assert list(stream([], SMALL)) == []


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_caller_leaves_no_threads(interruption):
    images = stream((flat(i) for i in range(100)), SMALL, workers=3)
    assert next(images).name == "image 1"
    with pytest.raises(interruption):
        images.throw(interruption())
    assert not readers()
    assert next(images, None) is None


def test_a_stream_that_is_never_read_starts_nothing():
    pulled = []
    images = stream((pulled.append(i) for i in range(3)), SMALL)
    assert not readers()
    images.close()
    assert pulled == []


def test_an_error_of_on_bad_reaches_the_caller():
    def stop(error):
        raise RuntimeError(f"stopped at {error.name}")

    with pytest.raises(RuntimeError, match="stopped at image 1"):
        list(stream([np.zeros((1, 1))] * 50, SMALL, on_bad=stop))
    assert not readers()


def test_the_placement_belongs_to_the_original(tmp_path):
    Image.new("RGB", (30, 10)).save(tmp_path / "a.png")
    [loaded] = stream([str(tmp_path / "a.png")], Preprocessing.of(8, 6))
    assert loaded.name == loaded.path == str(tmp_path / "a.png")
    assert loaded.pixels.shape == (6, 6, 3)
    assert (loaded.placement.image_size, loaded.placement.offset) == ((10, 30), (1, 1))


def test_files_are_read_ahead_up_to_a_memory(tmp_path, monkeypatch):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    read = []
    load = stream_module.load_image
    monkeypatch.setattr(
        stream_module, "load_image", lambda n, *rest, **options: (read.append(n), load(n, *rest, **options))[1]
    )
    monkeypatch.setattr(stream_module, "AHEAD_BYTES", 20 * 4 * 4 * 3)
    images = stream([tmp_path / "a.png"] * 100, SMALL, workers=2)
    next(images)
    for _ in range(500):
        if len(read) == 20:
            break
        time.sleep(0.01)
    assert len(read) == 20
    images.close()


def test_live_images_are_read_one_by_one_in_the_calling_thread(monkeypatch):
    pulled, threads = [], []
    load = stream_module.load_image
    monkeypatch.setattr(
        stream_module,
        "load_image",
        lambda *rest, **options: (threads.append(threading.current_thread()), load(*rest, **options))[1],
    )

    def camera():
        for i in range(10**9):
            pulled.append(i)
            yield np.zeros((4, 4)) if i == 1 else flat(i)

    told: list[ImageError] = []
    images = stream(camera(), SMALL, on_bad=told.append, live=True)
    assert (next(images).name, pulled) == ("image 1", [0])
    assert (next(images).name, pulled) == ("image 3", [0, 1, 2])
    assert [error.name for error in told] == ["image 2"]
    assert set(threads) == {threading.current_thread()}
    assert not readers()
    with pytest.raises(ImageError, match=r"^image 2: expected uint8"):
        list(stream(camera(), SMALL, live=True))


@pytest.mark.parametrize("live", [False, True])
def test_whole_images_keep_what_the_crop_cuts_off(live):
    rgb = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    preprocessing = Preprocessing.of(8, 6, "letterbox")
    [cropped] = stream([rgb], preprocessing, live=live)
    [whole] = stream([rgb], preprocessing, whole=True, live=live)
    assert whole.placement == cropped.placement == preprocessing.place((9, 7))
    assert whole.pixels.shape == (8, 8, 3)
    assert np.array_equal(whole.pixels[preprocessing.window], cropped.pixels)


@pytest.mark.parametrize("workers", [0, -1, 2.0, True])
def test_a_number_of_threads_that_is_none_is_refused(workers):
    with pytest.raises(ParameterError, match="workers must be a number from 1"):
        next(stream([flat(0)], SMALL, workers=workers))
