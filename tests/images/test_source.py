from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flawmap.errors import DatasetError, ImageError, ParameterError
from flawmap.images import collect

PIXELS = np.zeros((4, 4, 3), np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Images in two levels, among files that are none."""
    for name in ("b.png", "a.JPG", "deep/c.bmp", "deep/[x].png", ".hidden.png", ".git/d.png", "__MACOSX/e.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(PIXELS).save(path)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    return tmp_path


def names(images):
    return [Path(item).name for item in collect(images).items]


def test_a_folder_is_searched_in_depth_and_in_order(folder):
    assert names(folder) == ["a.JPG", "b.png", "[x].png", "c.bmp"]
    assert names(str(folder)) == names([folder])
    assert collect(folder).count == 4
    assert not collect(folder).single


def test_globs_and_names_that_look_like_globs(folder):
    assert names(f"{folder}/*.png") == ["b.png"]
    assert names(f"{folder}/**/*.png") == ["b.png", "[x].png"]
    assert names(f"{folder}/deep/[x].png") == ["[x].png"]
    assert collect(f"{folder}/deep/[x].png").single
    assert not collect(f"{folder}/*.png").single


def test_single_images_and_batches():
    for one in (PIXELS, PIXELS[..., 0], Image.fromarray(PIXELS)):
        assert collect(one).single
        assert collect(one).count == 1
    batch = collect(np.stack([PIXELS] * 3))
    assert (batch.count, batch.single) == (3, False)
    assert [item.shape for item in batch.items] == [(4, 4, 3)] * 3


def test_a_list_may_mix_everything(folder):
    mixed = [folder / "b.png", PIXELS, Image.fromarray(PIXELS), folder / "deep", np.stack([PIXELS, PIXELS])]
    assert collect(mixed).count == 7
    assert not collect([folder / "b.png"]).single


def test_a_generator_is_not_exhausted_before_it_is_needed():
    pulled = []

    def endless():
        while True:
            pulled.append(1)
            yield PIXELS

    collection = collect(endless())
    assert collection.count is None
    assert pulled == []
    next(iter(collection.items))
    assert len(pulled) == 1


def test_nothing_to_be_found_is_said(tmp_path):
    with pytest.raises(DatasetError, match=r"no images in this folder; expected files ending in \.bmp"):
        collect(tmp_path)
    with pytest.raises(DatasetError, match="no image matches"):
        collect(f"{tmp_path}/*.png")
    with pytest.raises(ImageError, match="no such file or folder"):
        collect(tmp_path / "missing.png")
    assert collect([tmp_path / "missing.png"]).count == 1  # the stream will tell of it, and go on
    with pytest.raises(ParameterError, match="not int"):
        collect(5)
    with pytest.raises(ParameterError, match="got int"):
        collect([5])
