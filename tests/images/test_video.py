from __future__ import annotations

import sys

import numpy as np
import pytest

from flawmap.detectors.good_images import Replay
from flawmap.errors import ImageError, MissingDependencyError
from flawmap.images import FrameReader, Preprocessing, VideoFrame, collect, read_image, stream
from flawmap.images.video import count_frames, find_frames
from videos import cut_short, damage, number, write_video

SMALL = Preprocessing.of(16)


@pytest.fixture
def video(tmp_path):
    return write_video(tmp_path / "01_001.avi", 20)


def frames(path, indices=range(20)):
    return [VideoFrame(path, i) for i in indices]


def test_frames_are_those_asked_for_in_any_order(video):
    with FrameReader() as reader:
        for index in (0, 1, 5, 5, 19, 3, 4, 0):
            assert number(reader.read(VideoFrame(video, index))) == index
    pixels = read_image(VideoFrame(video, 7))
    assert (pixels.shape, pixels.dtype, number(pixels)) == ((48, 64, 3), np.uint8, 7)
    assert count_frames(video) == 20


def test_channels_are_red_green_blue(tmp_path):
    import cv2

    writer = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 25, (32, 32))
    writer.write(np.full((32, 32, 3), (0, 0, 255), np.uint8))  # OpenCV's order: blue, green, red
    writer.release()
    red, green, blue = read_image(VideoFrame(tmp_path / "a.avi", 0)).mean(axis=(0, 1))
    assert red > 240
    assert max(green, blue) < 15


def test_frames_stream_in_order_among_images_and_over_videos(video, tmp_path):
    other = write_video(tmp_path / "01_002.avi", 3, first=20)
    items = [*frames(video, range(0, 20, 3)), np.full((4, 4, 3), 110, np.uint8), *frames(other, range(3))]
    loaded = list(stream(collect(items).items, SMALL, workers=2))
    assert [number(image.pixels) for image in loaded] == [0, 3, 6, 9, 12, 15, 18, 11, 20, 21, 22]
    assert loaded[1].name == loaded[1].path == f"{video}#3"
    assert loaded[1].placement.image_size == (48, 64)
    assert loaded[7].path is None


def test_each_frame_is_decoded_once_by_a_stream(video, monkeypatch):
    opened = []
    original = FrameReader._open
    monkeypatch.setattr(FrameReader, "_open", lambda self, path: (opened.append(path), original(self, path)))
    for live in (False, True):
        assert [image.path for image in stream(frames(video), SMALL, live=live)] == [f"{video}#{i}" for i in range(20)]
    assert opened == [video] * 2


@pytest.mark.parametrize("cache_mb", [0, 0.003, 64])
def test_frames_are_replayed_from_memory_or_from_the_video(video, cache_mb):
    replay = Replay(frames(video), SMALL, cache_mb=cache_mb)
    first = [image.path for image in replay.first()]
    again = list(replay.second(replay.again))
    assert [image.path for image in again] == first
    assert [number(image.pixels) for image in again] == list(range(20))


def test_a_damaged_frame_costs_that_frame_alone(video, capfd):
    damage(video, 10)
    told: list[ImageError] = []
    loaded = list(stream(frames(video), SMALL, on_bad=told.append))
    assert [number(image.pixels) for image in loaded] == [*range(10), *range(11, 20)]
    assert [image.path for image in loaded] == [f"{video}#{i}" for i in range(20) if i != 10]
    assert [error.name for error in told] == [f"{video}#10"]
    assert capfd.readouterr().err == ""


def test_a_video_cut_short_gives_what_it_has_and_names_the_rest(video):
    items = frames(video)
    cut_short(video)
    told: list[ImageError] = []
    loaded = list(stream(items, SMALL, on_bad=told.append))
    assert 0 < len(loaded) < 20
    assert [number(image.pixels) for image in loaded] == list(range(len(loaded)))
    assert [error.name for error in told] == [f"{video}#{i}" for i in range(len(loaded), 20)]
    with pytest.raises(ImageError, match=r"01_001\.avi#19: this frame cannot be decoded"):
        read_image(VideoFrame(video, 19))


@pytest.mark.parametrize("content", [b"no video at all" * 50, bytes(500), b""])
def test_what_is_no_video_is_said(tmp_path, capfd, content):
    (tmp_path / "a.avi").write_bytes(content)
    assert count_frames(tmp_path / "a.avi") == count_frames(tmp_path / "b.avi") == 0
    with pytest.raises(ImageError, match="not a video"):
        read_image(VideoFrame(tmp_path / "a.avi", 0))
    with pytest.raises(ImageError, match="no such video"):
        read_image(VideoFrame(tmp_path / "b.avi", 0))
    assert capfd.readouterr().err == ""


def test_one_frame_is_a_single_image(video):
    collection = collect(VideoFrame(video, 2))
    assert (collection.count, collection.single) == (1, True)


def test_every_frame_is_found_and_what_is_missing_is_one_bad_image(video, tmp_path, capfd):
    assert find_frames(video) == frames(video)
    damage(video, 10)
    assert find_frames(video) == frames(video)
    damage(video, 19)
    assert find_frames(video) == frames(video, range(19))  # an estimate may be one too high
    cut_short(video)
    found = find_frames(video)
    told: list[ImageError] = []
    loaded = list(stream(found, SMALL, on_bad=told.append))
    assert [number(image.pixels) for image in loaded] == list(range(len(found) - 1))
    assert [error.name for error in told] == [f"{video}#{len(found) - 1}"]
    assert "this frame cannot be decoded; the video is damaged or cut short" in told[0].reason
    (tmp_path / "no.avi").write_bytes(b"no video")
    assert find_frames(tmp_path / "no.avi") == frames(tmp_path / "no.avi", [0])
    assert capfd.readouterr().err == ""


def test_without_opencv_a_video_says_how_to_install_it(video, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    for images in (video, [str(video)]):
        with pytest.raises(MissingDependencyError, match=r"videos need OpenCV.*pip install 'flawmap\[video\]'"):
            collect(images)


def test_frames_that_are_drawn_upon_lost_ones_are_refused(tmp_path):
    """A hole in a video of whole and of changed parts of frames; what follows it has old content."""
    import cv2

    path = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 25, (160, 120))
    if not writer.isOpened():
        pytest.skip("this OpenCV cannot write MPEG-4")
    picture = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    for i in range(48):
        writer.write(np.roll(picture, 3 * i, axis=1))
    writer.release()
    with FrameReader() as reader:
        whole = [reader.read(frame) for frame in frames(path, range(48))]
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 4
    size = content.index(b"moov") - start
    content[start + int(0.3 * size) : start + int(0.55 * size)] = bytes(int(0.55 * size) - int(0.3 * size))
    path.write_bytes(content)
    read, told = {}, []
    with FrameReader() as reader:
        for frame in frames(path, range(48)):
            try:
                read[frame.index] = reader.read(frame)
            except ImageError as error:
                told.append((frame.index, error.reason))
    assert any("is drawn upon a frame that cannot be decoded" in reason for _, reason in told)
    indices = [index for index, _ in told]
    assert indices == list(range(indices[0], indices[-1] + 1))  # in one stretch, up to a frame that stands alone
    assert all(np.array_equal(read[index], whole[index]) for index in range(indices[-1] + 1, 48))
    with pytest.raises(ImageError, match="drawn upon"):  # whatever was read before
        read_image(VideoFrame(path, indices[-1]))
