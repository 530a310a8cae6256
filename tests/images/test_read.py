from __future__ import annotations

import io
import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFile

from flawmap.errors import ImageError
from flawmap.images import read_image, read_mask
from flawmap.images.read import convert

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


@pytest.mark.parametrize("byte_order", ["I;16", "I;16B"])
def test_sixteen_bit_tiffs_of_either_byte_order(tmp_path, byte_order):
    values = np.array([[0, 129, 65535]], np.uint16)
    stored = values.astype(">u2" if byte_order.endswith("B") else "<u2")
    path = saved(tmp_path, Image.frombytes(byte_order, (3, 1), stored.tobytes()), "image.tif")
    assert read_image(path)[0, :, 0].tolist() == [0, 1, 255]


def test_thirty_two_bits_are_taken_for_sixteen_or_refused(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.array([[0, 257, 65535]], np.int32)), "image.tif")
    assert read_image(path)[0, :, 0].tolist() == [0, 1, 255]
    for out_of_range in (-1, 65536):
        saved(tmp_path, Image.fromarray(np.array([[5, out_of_range]], np.int32)), "image.tif")
        with pytest.raises(ImageError, match="expected 0 to 65535; save it with 16 bits"):
            read_image(path)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [3, 4])
def test_sixteen_bit_colour_keeps_the_high_byte(tmp_path, suffix, channels):
    values = np.random.default_rng(1).integers(0, 65536, (6, 9, channels), dtype=np.uint16)
    values[..., 3:] = 65535
    path = tmp_path / f"image.{suffix}"
    assert cv2.imwrite(str(path), values[..., [2, 1, 0, 3][:channels]])
    pixels = read_image(path)
    assert np.array_equal(pixels, values[..., :3] >> 8)
    assert np.abs(pixels.astype(int) - read_image(values)).max() <= 1


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("YCbCr", (76, 85, 255), (254, 0, 0)),
        ("HSV", (85, 255, 255), (0, 255, 0)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("RGBX", (10, 20, 30, 0), (10, 20, 30)),
        ("RGBa", (50, 0, 0, 128), (177, 127, 127)),
        ("PA", (7, 255), (0, 0, 0)),
        ("La", (50, 128), (177, 177, 177)),
        ("I;16L", 65535, (255, 255, 255)),
    ],
)
def test_other_modes(mode, colour, expected):
    pixels = read_image(Image.new(mode, (3, 2), colour))
    assert pixels.shape == (2, 3, 3)
    assert np.abs(pixels.astype(int) - expected).max() <= 1


def test_a_mode_without_conversion_says_so():
    with pytest.raises(ImageError, match=r"colour mode RGB.*no conversion to XYZ; save it as RGB"):
        convert(Image.new("RGB", (2, 2)), "XYZ", "part")


def test_half_transparency_is_a_blend_with_white():
    assert read_image(Image.new("RGBA", (1, 1), (100, 0, 200, 51))).ravel().tolist() == [224, 204, 244]
    keyed = Image.fromarray(np.array([[(1, 2, 3), (4, 5, 6)]], np.uint8))
    keyed.info["transparency"] = (1, 2, 3)
    assert read_image(keyed).tolist() == [[[255, 255, 255], [4, 5, 6]]]


@pytest.mark.parametrize("name", ["image.gif", "image.tif", "image.webp", "image.png"])
def test_of_several_frames_the_first_is_read(tmp_path, name):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("black", "white", "red")]
    path = saved(tmp_path, frames[0], name, save_all=True, append_images=frames[1:])
    with Image.open(path) as stored:
        assert stored.n_frames == 3
    assert read_image(path).max() == 0


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


@pytest.mark.parametrize("name", ["image.jpg", "image.tif", "image.webp"])
def test_exif_rotation_in_other_formats_and_of_pil_images(tmp_path, name):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.new("RGB", (40, 20), "white")
    stored.paste("black", (0, 0, 20, 20))
    path = saved(tmp_path, stored, name, exif=exif)
    with Image.open(path) as lazy:
        turned = [read_image(path), read_image(lazy)]
    for pixels in turned:
        assert pixels.shape == (40, 20, 3)
        assert pixels[:16].max() < 20
        assert pixels[24:].min() > 235
    assert read_mask(path).tolist() == [[row >= 20] * 20 for row in range(40)]


def test_a_damaged_exif_block_changes_nothing_and_warns_of_nothing(tmp_path):
    cut = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\x01"
    path = saved(tmp_path, Image.new("RGB", (8, 6), (9, 9, 9)), "image.jpg", exif=cut)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert read_image(path).shape == (6, 8, 3)
    assert caught == []


def test_arrays_and_pil_images():
    assert np.array_equal(read_image(RGB), RGB)
    assert np.array_equal(read_image(GREY), grey3(GREY))
    assert np.array_equal(read_image(GREY[..., None]), grey3(GREY))
    assert np.array_equal(read_image(GREY.astype(np.uint16) * 257), grey3(GREY))
    assert np.array_equal(read_image((GREY.astype(np.uint16) * 257).astype(">u2")), grey3(GREY))
    assert np.array_equal(read_image(RGB.astype(np.uint16) * 257), RGB)
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


def damaged_files():
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
    content, message = damaged_files()[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ImageError, match=message) as caught:
        read_image(path)
    assert caught.value.name == str(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "webp", "ppm", "gif", "jp2"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_no_format_passes_when_cut_short(tmp_path, suffix, share):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    path = saved(tmp_path, noise, f"image.{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ImageError, match=r"damaged or cut short|known format"):
        read_image(path)


def test_what_is_no_image_at_all_is_refused(tmp_path):
    with pytest.raises(ImageError, match="part 3: expected a path, an array or a PIL image, got int"):
        read_image(3, name="part 3")
    with pytest.raises(ImageError, match="at least one pixel, got 5 x 0"):
        read_image(Image.new("RGB", (0, 5)))
    with pytest.raises(ImageError, match=r"cannot be read.*check the path"):
        read_image(tmp_path / ("x" * 300))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="is a device or pipe"):
        read_image(tmp_path / "pipe.png")


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = saved(tmp_path, Image.fromarray(RGB))
    path.chmod(0)
    if os.access(path, os.R_OK):  # root reads every file
        monkeypatch.setattr(
            Image, "open", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
        )
    with pytest.raises(ImageError, match=r"image\.png: may not be read by this user; change its permissions"):
        read_image(path)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(ImageError, match=r"nowhere\.png: no such file"):
        read_image(tmp_path / "nowhere.png")
    with pytest.raises(ImageError, match="is a folder"):
        read_image(tmp_path)


def test_float_images_are_refused_with_the_remedy(tmp_path):
    path = saved(tmp_path, Image.fromarray(GREY.astype(np.float32)), "image.tif")
    with pytest.raises(ImageError, match=r"32-bit floating-point grey.*with 8 or 16 bits"):
        read_image(path)
    with pytest.raises(ImageError, match="floating-point values, whose range is unknown"):
        read_image(Image.fromarray(GREY.astype(np.float32)))


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
    path = tmp_path / "giga.pbm"
    for side, message in ((40_000, "40000 x 40000 pixels"), (90_000, "more than the 1,073,741,824 that are read")):
        path.write_bytes(b"P4\n%d %d\n" % (side, side) + b"\0" * 64)
        with pytest.raises(ImageError, match=f"{message}.*make it smaller"):
            read_image(path)


def test_the_limit_and_the_warning_filters_are_put_back_by_many_threads(tmp_path, monkeypatch):
    large = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 100), np.uint8))
    paths = [saved(tmp_path, large, "a.tif", compression="tiff_deflate"), saved(tmp_path, large, "b.png")]
    (tmp_path / "c.png").write_bytes(b"no image")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow refuses more than twice as many
    filters = list(warnings.filters)
    start = threading.Barrier(8)

    def read_some(number):
        start.wait()
        for _ in range(20):
            with pytest.raises(ImageError):
                read_image(tmp_path / "c.png")
            assert np.array_equal(read_image(paths[number % 2]), grey3(large))
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read_some, range(8)))
    assert Image.MAX_IMAGE_PIXELS == 1000
    assert list(warnings.filters) == filters


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.gif", "a.bmp", "a.webp", "a.jp2", "a.ppm"])
def test_cut_files_are_refused_even_where_pillow_was_told_to_load_them(tmp_path, monkeypatch, name):
    """`ImageFile.LOAD_TRUNCATED_IMAGES` belongs to the process, and many programs set it."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    path = saved(tmp_path, Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)), name)
    assert read_image(path).shape == (90, 90, 3)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=r"damaged|cut short|its \d+ bytes") as refused:
        read_image(path)
    assert "0 x 0" not in str(refused.value)
    if name in {"a.png", "a.jpg", "a.bmp", "a.ppm"}:
        with Image.open(path) as opened, pytest.raises(ImageError, match="cut short"):
            read_image(opened)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


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


@pytest.mark.parametrize("high", [1, 255, 65535])
def test_sixteen_bit_masks_of_any_convention(tmp_path, high):
    mask = GREY > 127
    assert cv2.imwrite(str(tmp_path / "mask.png"), mask.astype(np.uint16) * high)
    assert np.array_equal(read_mask(tmp_path / "mask.png"), mask)


def test_a_grey_palette_counts_by_its_brightness_whatever_its_order(tmp_path):
    mask = GREY > 127
    indexed = Image.fromarray((~mask).astype(np.uint8)).convert("P")
    indexed.putpalette([255, 255, 255, 0, 0, 0])  # index 0 is white, as PNG optimisers may write it
    assert np.array_equal(read_mask(saved(tmp_path, indexed)), mask)
    assert np.array_equal(read_mask(saved(tmp_path, indexed, transparency=b"\xff\x00")), mask)


def test_grey_edges_of_a_mask_are_split_at_half(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.array([[0, 127, 128, 255]], np.uint8)))
    assert read_mask(path).tolist() == [[False, False, True, True]]
