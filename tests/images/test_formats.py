from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flawmap.errors import ImageError
from flawmap.images import read_image
from flawmap.images.formats import describe_passed_over, is_image

KINDS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "AVIF", "PPM")


def encoded(kind, **options):
    content = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(content, kind, **options)
    return content.getvalue()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["nameless", "photo.dat", "photo.2024", "x.p"])
def test_an_image_of_any_name_is_known(tmp_path, kind, name):
    (tmp_path / name).write_bytes(encoded(kind))
    assert is_image(tmp_path / name)
    assert read_image(tmp_path / name).shape == (8, 8, 3)


def test_further_kinds(tmp_path):
    contents = {
        "big": encoded("TIFF", big_tiff=True),
        "stream": encoded("JPEG2000", no_jp2=True),
        "plain": b"P1 2 2 1 0 0 1",
        "remark": b"P5\n# by a camera\n1 1\n255\nx",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert is_image(tmp_path / name), name


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"BM is a firm",
        b"P5 is a size",
        b"RIFF\0\0\0\0WAVEfmt ",
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        b"II",
        b"text",
    ],
)
def test_other_content_is_none(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    assert not is_image(tmp_path / "file")


def test_raw_files_are_not_judged_by_their_thumbnail(tmp_path):
    for name in ("a.NEF", "a.cr2", "a.dng", "a.arw"):
        (tmp_path / name).write_bytes(encoded("TIFF"))
        assert not is_image(tmp_path / name)
        with pytest.raises(ImageError, match="is a camera's raw file, which cannot be read; convert it to PNG or TIFF"):
            read_image(tmp_path / name)
    (tmp_path / "nameless").write_bytes(b"II*\0\x10\0\0\0CR\2\0")
    assert not is_image(tmp_path / "nameless")
    (tmp_path / "a.heic").write_bytes(encoded("JPEG"))
    assert not is_image(tmp_path / "a.heic")


def test_an_ending_is_enough(tmp_path):
    for name in ("a.PNG", "missing.tif"):
        assert is_image(tmp_path / name)
    assert not is_image(tmp_path / "missing")
    assert not is_image(tmp_path)


def test_what_was_passed_over_in_words():
    def told(*names):
        return describe_passed_over([Path(name) for name in names])

    assert told("a.txt", "b.csv", "c.TXT", "d.txt") == "4 files passed over: 3 .txt, 1 .csv"
    assert told("a") == "1 file passed over: 1 without an ending"
    assert told("a.cr2", "b.heic", "c.CR2", "d.txt") == (
        "4 files passed over: 2 .cr2, 1 .heic, 1 .txt; .cr2, .heic cannot be read: convert them to PNG or TIFF"
    )
    assert told("a.mp4").endswith("; .mp4 is a video: name the file itself")
    assert told("a.mp4", "b.mov").endswith("; .mov, .mp4 are videos: name the file itself")
    many = told(*(f"a.{n}" for n in range(20)))
    assert many.startswith("20 files passed over: 1 .0, 1 .1, 1 .10")
    assert many.endswith(", 12 others")
