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


def test_a_glob_may_name_an_ending_of_its_own(folder):
    assert names(f"{folder}/*.txt") == ["notes.txt"]
    assert names(f"{folder}/*") == ["a.JPG", "b.png"]
    assert names(f"{folder}/**/?.*") == ["a.JPG", "b.png", "c.bmp"]


def test_the_home_folder_is_found(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    assert collect("~/b.png").single
    assert names("~/deep") == ["[x].png", "c.bmp"]
    assert names("~/*.png") == ["b.png"]


def test_a_linked_folder_is_searched(folder):
    (folder / "link").symlink_to(folder / "deep")
    assert names(folder / "link") == ["[x].png", "c.bmp"]
    assert collect(folder).count == 4


def test_order_goes_by_the_parts_of_the_path(tmp_path):
    for name in ("a/2.png", "a-b/1.png", "a.png", "B.png", "a/10.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for images in (tmp_path, f"{tmp_path}/**/*.png"):
        found = [Path(str(item)).relative_to(tmp_path).as_posix() for item in collect(images).items]
        assert found == ["B.png", "a/10.png", "a/2.png", "a-b/1.png", "a.png"]


def test_impossible_names_are_missing_files(tmp_path):
    for name in ("x" * 5000, "nul\0.png", f"{tmp_path}/a.png/b.png"):
        with pytest.raises(ImageError, match="no such file or folder"):
            collect(name)
    with pytest.raises(ParameterError, match="not bytes"):
        collect(b"a.png")


def test_a_folder_that_cannot_be_listed_is_not_passed_over(folder, monkeypatch):
    def walk(top, onerror):
        onerror(PermissionError(13, "Permission denied", f"{top}/deep"))
        return []

    monkeypatch.setattr("os.walk", walk)
    with pytest.raises(DatasetError, match=r"deep: this folder cannot be listed \(Permission denied\)"):
        collect(folder)


def test_a_folder_among_others_may_not_be_empty(folder):
    (folder / "none").mkdir()
    with pytest.raises(DatasetError, match="none: no images in this folder"):
        collect([folder / "b.png", folder / "none"])
