from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from flawmap.errors import ImageError
from flawmap.images import read_image, read_mask

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = RGB[..., 0]


def saved(tmp_path, image: Image.Image, name="image.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def grey3(grey):
    return np.repeat(np.asarray(grey)[..., None], 3, axis=2)


def test_rgb_and_grey_come_back_as_they_were(tmp_path):
    assert np.array_equal(read_image(saved(tmp_path, Image.fromarray(RGB))), RGB)
    assert np.array_equal(read_image(saved(tmp_path, Image.fromarray(GREY))), grey3(GREY))


def test_one_bit(tmp_path):
    bits = GREY > 127
    path = saved(tmp_path, Image.fromarray(bits))
    with Image.open(path) as stored:
        assert stored.mode == "1"
    assert np.array_equal(read_image(path), grey3(bits * np.uint8(255)))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled_from_its_full_range(tmp_path, suffix):
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    path = tmp_path / f"image.{suffix}"
    assert cv2.imwrite(str(path), values)
    assert np.array_equal(read_image(path), grey3(np.array([[0, 0, 1, 1, 128, 255]], np.uint8)))


def test_sixteen_bit_rgb(tmp_path):
    values = RGB.astype(np.uint16) * 257
    assert cv2.imwrite(str(tmp_path / "image.png"), values[..., ::-1])
    assert np.abs(read_image(tmp_path / "image.png").astype(int) - RGB).max() <= 1


def test_transparency_is_laid_over_white(tmp_path):
    alpha = np.full(GREY.shape, 255, np.uint8)
    alpha[:3] = 0
    path = saved(tmp_path, Image.fromarray(np.dstack([RGB, alpha])))
    expected = np.where(alpha[..., None] > 0, RGB, 255)
    assert np.array_equal(read_image(path), expected)
    grey = Image.merge("LA", (Image.fromarray(GREY), Image.fromarray(alpha)))
    assert np.array_equal(read_image(saved(tmp_path, grey)), np.where(alpha[..., None] > 0, grey3(GREY), 255))


def test_palette_with_and_without_transparency(tmp_path):
    palette = Image.fromarray(RGB).quantize(16)
    expected = np.asarray(palette.convert("RGB"))
    assert np.array_equal(read_image(saved(tmp_path, palette)), expected)
    transparent = saved(tmp_path, palette, transparency=int(np.asarray(palette)[0, 0]))
    assert np.array_equal(read_image(transparent)[0, 0], [255, 255, 255])


def test_cmyk_jpeg(tmp_path):
    flat = Image.new("RGB", (32, 32), (200, 40, 90)).convert("CMYK")
    pixels = read_image(saved(tmp_path, flat, "image.jpg", quality=95))
    assert np.abs(pixels.astype(int) - [200, 40, 90]).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path, orientation):
    undo = {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a), 7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo(RGB)))
    assert np.array_equal(read_image(saved(tmp_path, stored, exif=exif)), RGB)


def test_arrays_and_pil_images():
    assert np.array_equal(read_image(RGB), RGB)
    assert np.array_equal(read_image(GREY), grey3(GREY))
    assert np.array_equal(read_image(GREY[..., None]), grey3(GREY))
    assert np.array_equal(read_image(GREY.astype(np.uint16) * 257), grey3(GREY))
    assert np.array_equal(read_image(np.dstack([RGB, np.full(GREY.shape, 255, np.uint8)])), RGB)
    assert np.array_equal(read_image(Image.fromarray(RGB)), RGB)
    assert read_image(RGB[::-1, ::-1]).flags.c_contiguous


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (RGB / 255, "got float64"),
        (RGB.astype(np.int64), "got int64"),
        (RGB.transpose(2, 0, 1), r"got \(3, 6, 9\)"),
        (np.zeros((0, 4, 3), np.uint8), r"got \(0, 4, 3\)"),
        (np.zeros(5, np.uint8), r"got \(5,\)"),
    ],
)
def test_arrays_that_are_no_images_are_refused_with_what_was_expected(array, message):
    with pytest.raises(ImageError, match=f"^part 7: expected .*{message}"):
        read_image(array, name="part 7")


def damaged_files(tmp_path):
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(whole, "PNG")
    jpeg = io.BytesIO()
    Image.fromarray(RGB.repeat(20, 0).repeat(20, 1)).save(jpeg, "JPEG")
    return {
        "cut.png": (whole.getvalue()[:3000], "damaged or cut short"),
        "header.png": (whole.getvalue()[:20], "damaged|known format"),
        "cut.jpg": (jpeg.getvalue()[: len(jpeg.getvalue()) // 2], "damaged or cut short"),
        "empty.png": (b"", "is empty"),
        "text.png": (b"not an image at all", "known format"),
    }


@pytest.mark.parametrize("name", ["cut.png", "header.png", "cut.jpg", "empty.png", "text.png"])
def test_damaged_files_are_named(tmp_path, name):
    content, message = damaged_files(tmp_path)[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ImageError, match=message) as caught:
        read_image(path)
    assert caught.value.name == str(path)
    assert str(path) in str(caught.value)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(ImageError, match=r"nowhere\.png: no such file"):
        read_image(tmp_path / "nowhere.png")
    with pytest.raises(ImageError, match="is a folder"):
        read_image(tmp_path)


def test_float_images_are_refused_with_the_remedy(tmp_path):
    path = saved(tmp_path, Image.fromarray(GREY.astype(np.float32)), "image.tif")
    with pytest.raises(ImageError, match="save it with 8 or 16 bits"):
        read_image(path)


def test_a_hundred_megapixels_are_read_and_pillows_limit_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    path = tmp_path / "huge.png"
    with monkeypatch.context() as unlimited:
        unlimited.setattr(Image, "MAX_IMAGE_PIXELS", None)
        Image.new("L", (10_000, 10_000), 77).save(path)
    pixels = read_image(path)
    assert pixels.shape == (10_000, 10_000, 3)
    assert pixels[5000, 5000].tolist() == [77, 77, 77]
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_more_than_a_gigapixel_is_refused_before_it_is_decoded(tmp_path):
    header = io.BytesIO()
    Image.new("1", (8, 8)).save(header, "PPM")
    path = tmp_path / "giga.pbm"
    path.write_bytes(b"P4\n40000 40000\n" + b"\0" * 64)
    with pytest.raises(ImageError, match="40000 x 40000 pixels"):
        read_image(path)


def test_names_beyond_ascii(tmp_path):
    assert np.array_equal(read_image(saved(tmp_path, Image.fromarray(RGB), "Schraube Nº 1 [größer] 螺丝.png")), RGB)


def test_masks(tmp_path):
    mask = GREY > 127
    for values in (mask * np.uint8(255), mask * np.uint8(1), grey3(mask * np.uint8(255)), mask):
        assert np.array_equal(read_mask(saved(tmp_path, Image.fromarray(values))), mask)
    assert cv2.imwrite(str(tmp_path / "deep.png"), mask.astype(np.uint16) * 65535)
    assert np.array_equal(read_mask(tmp_path / "deep.png"), mask)
    indexed = Image.fromarray(mask.astype(np.uint8)).convert("P")
    indexed.putpalette([0, 0, 0, 0, 128, 0])
    assert np.array_equal(read_mask(saved(tmp_path, indexed)), mask)
    assert not read_mask(saved(tmp_path, Image.new("L", (4, 4)))).any()
