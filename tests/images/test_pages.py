from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from flawmap.errors import ImageError
from flawmap.images import ImagePage, Preprocessing, first_page, load_image, read_image
from flawmap.images.pages import find_pages, page_numbers

GREYS = (0, 60, 120, 180)


def pages():
    return [Image.new("RGB", (16, 8), (grey,) * 3) for grey in GREYS]


def save(path, images, **options):
    images[0].save(path, save_all=True, append_images=images[1:], **options)
    return path


@pytest.mark.parametrize("name", ["a.tif", "a.gif", "a.png", "a.webp", "a.avif", "nameless.tif"])
def test_pages_are_counted_and_read_in_order(tmp_path, name):
    path = save(tmp_path / name, pages())
    assert page_numbers(path) == [1, 2, 3, 4]
    assert find_pages(path) == [ImagePage(path, number) for number in (1, 2, 3, 4)]
    with Image.open(path) as image:
        assert image.n_frames == 4
    for number, grey in enumerate(GREYS, start=1):
        pixels = read_image(ImagePage(path, number))
        assert (pixels.shape, pixels.dtype) == ((8, 16, 3), np.uint8)
        assert abs(pixels.mean() - grey) < 3


@pytest.mark.parametrize("name", ["a.tif", "a.gif", "a.png", "a.webp", "a.avif", "a.jpg", "a.bmp", "a.jp2", "a.ppm"])
def test_a_single_image_stays_a_file(tmp_path, name):
    path = tmp_path / name
    pages()[1].save(path)
    assert find_pages(path) == [path]
    assert first_page(path) == path


def test_big_tiffs_and_those_of_the_other_byte_order(tmp_path):
    assert page_numbers(save(tmp_path / "big.tif", pages(), big_tiff=True)) == [1, 2, 3, 4]
    directory = struct.pack(">HHHLHHL", 1, 254, 4, 1, 0, 0, 0)
    (tmp_path / "mm.tif").write_bytes(b"MM\0*" + struct.pack(">L", 8) + directory)
    assert page_numbers(tmp_path / "mm.tif") == [1]


def test_smaller_copies_and_masks_are_no_pages(tmp_path):
    images = pages()
    for image, tags in zip(images, ({254: 0}, {254: 1}, {254: 4}, {255: 2}), strict=True):
        image.encoderinfo = {}
        info = TiffImagePlugin.ImageFileDirectory_v2()
        for tag, value in tags.items():
            info[tag] = value
        image.encoderinfo["tiffinfo"] = info
    path = tmp_path / "pyramid.tif"
    with TiffImagePlugin.AppendingTiffWriter(path, new=True) as file:
        for image in images:
            image.save(file, format="TIFF", tiffinfo=image.encoderinfo["tiffinfo"])
            file.newFrame()
    with Image.open(path) as image:
        assert image.n_frames == 4
    assert page_numbers(path) == [1]
    assert find_pages(path) == [path]


def test_a_thumbnail_that_comes_first_is_not_judged(tmp_path):
    path = tmp_path / "thumb.tif"
    with TiffImagePlugin.AppendingTiffWriter(path, new=True) as file:
        for image, kind in zip(pages()[:3], (1, 0, 2), strict=True):
            info = TiffImagePlugin.ImageFileDirectory_v2()
            info[254] = kind
            image.save(file, format="TIFF", tiffinfo=info)
            file.newFrame()
    assert find_pages(path) == [ImagePage(path, 2), ImagePage(path, 3)]
    assert read_image(ImagePage(path, 2)).mean() == GREYS[1]


@pytest.mark.parametrize("tag", [{254: 1}, {50706: b"\1\4\0\0"}], ids=["reduced", "DNG"])
def test_a_raw_photo_named_tif_is_not_judged_by_its_preview(tmp_path, tag):
    path = tmp_path / "raw.tif"
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for number, value in tag.items():
        info[number] = value
    pages()[0].save(path, tiffinfo=info)
    with pytest.raises(ImageError, match="the preview of a raw photo"):
        read_image(first_page(path))


def test_an_image_before_an_animation_is_a_page(tmp_path):
    path = save(tmp_path / "a.png", pages(), default_image=True)
    with Image.open(path) as image:
        assert page_numbers(path) == list(range(1, image.n_frames + 1)) == [1, 2, 3, 4]
    large = save(tmp_path / "b.png", pages(), icc_profile=np.random.default_rng(0).bytes(9000))
    assert page_numbers(large) == [1, 2, 3, 4]


def test_previews_in_a_jpeg_are_no_pages(tmp_path):
    path = save(tmp_path / "a.mpo", pages()[:2])
    with Image.open(path) as image:
        assert image.n_frames == 2
    assert find_pages(path) == [path]


def test_the_first_page_says_that_it_stands_for_all(tmp_path):
    page = first_page(save(tmp_path / "a.tif", pages()))
    assert page == ImagePage(tmp_path / "a.tif", 1)
    loaded = load_image(1, page, Preprocessing.of(8))
    assert "only the first of its 4 pages is judged" in loaded.remarks
    assert "page" not in str(load_image(1, ImagePage(tmp_path / "a.tif", 1), Preprocessing.of(8)).remarks)


def test_damaged_files_have_one_page_and_end(tmp_path):
    loop = b"II*\0" + struct.pack("<L", 8) + struct.pack("<HHHLHHL", 1, 254, 4, 1, 0, 0, 8)
    huge = b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**63)
    for content in (
        b"",
        b"GIF89a",
        b"II*\0",
        b"\x89PNG\r\n\x1a\n",
        b"RIFF\0\0\0\0WEBPVP8X",
        huge,
        loop,
        b"II*\0\xff\xff\xff\xff",
    ):
        (tmp_path / "bad").write_bytes(content)
        assert page_numbers(tmp_path / "bad") == [1]
    assert page_numbers(tmp_path / "missing") == page_numbers(tmp_path) == page_numbers("nul\0") == [1]


def test_what_is_cut_off_is_a_bad_page(tmp_path):
    path = save(tmp_path / "a.tif", pages())
    with Image.open(path) as image:
        image.seek(2)
        offset = image.tag_v2.offset if hasattr(image.tag_v2, "offset") else image._frame_pos[2]
    (tmp_path / "cut.tif").write_bytes(path.read_bytes()[: offset + 4])
    assert page_numbers(tmp_path / "cut.tif") == [1, 2, 3]
    assert [int(read_image(page).mean()) for page in find_pages(tmp_path / "cut.tif")[:2]] == [0, 60]
    with pytest.raises(ImageError, match=r"cut\.tif#3: "):
        read_image(ImagePage(tmp_path / "cut.tif", 3))
    content = save(tmp_path / "a.png", pages()).read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: content.rindex(b"fcTL") - 4])
    assert page_numbers(tmp_path / "cut.png") == [1, 2, 3, 4]
    with pytest.raises(ImageError, match=r"cut\.png#4: "):
        read_image(ImagePage(tmp_path / "cut.png", 4))


def test_cut_files_never_have_more_pages_and_raise_nothing(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a.tif", "a.gif", "a.png", "a.webp", "a.avif"):
        content = save(tmp_path / name, pages()).read_bytes()
        for _ in range(60):
            mutated = bytearray(content[: rng.integers(1, len(content) + 1)])
            mutated[rng.integers(len(mutated))] = rng.integers(256)
            (tmp_path / "bad").write_bytes(mutated)
            numbers = page_numbers(tmp_path / "bad")
            assert numbers
            assert len(numbers) <= len(content)
