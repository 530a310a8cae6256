"""What a file may cost, what formats are opened, and what is remarked on."""

from __future__ import annotations

import struct
import subprocess
import threading
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from flawmap.errors import ImageError, ParameterError
from flawmap.images import Preprocessing, read_image, read_mask, read_photo, stream
from flawmap.images.memory import machine_memory
from flawmap.images.read import ALL_HIDDEN, FEW_LEVELS, MOST_HIDDEN, ONE_COLOUR, Memory, image_memory

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = RGB[..., 0]


def saved(tmp_path, image, name="image.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


@pytest.mark.parametrize("name", ["a.png", "a.eps", "a.tif", "a.tga"])
def test_no_outside_program_is_started_by_a_file(tmp_path, monkeypatch, name):
    def start(*_, **__):
        raise AssertionError("a program was started")

    for function in ("Popen", "run", "call", "check_call", "check_output"):
        monkeypatch.setattr(subprocess, function, start)
    path = saved(tmp_path, Image.fromarray(RGB), "part.eps").rename(tmp_path / name)
    with pytest.raises(ImageError, match=r"not an image of a known format|damaged"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["ico", "pcx", "psd", "sgi", "xbm", "icns", "dds", "msp"])
def test_formats_that_are_not_documented_are_refused(tmp_path, suffix):
    image = Image.fromarray(RGB).resize((32, 32))
    if suffix == "psd":
        content = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 6, 9, 8, 3) + bytes(14) + RGB.transpose(2, 0, 1).tobytes()
        (tmp_path / "a.png").write_bytes(content)
    else:
        saved(tmp_path, image.convert("1") if suffix in {"xbm", "msp"} else image, f"a.{suffix}").rename(
            tmp_path / "a.png"
        )
    with pytest.raises(ImageError, match="not an image of a known format"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("suffix", "options"),
    [("png", {}), ("bmp", {}), ("dib", {}), ("ppm", {}), ("tif", {}), ("webp", {"lossless": True}), ("tga", {}),
     ("jp2", {}), ("j2k", {}), ("avif", {"quality": 100, "subsampling": "4:4:4"}), ("jpg", {"quality": 100})],
)  # fmt: skip
def test_documented_formats_are_read_whatever_their_name(tmp_path, suffix, options):
    pytest.importorskip("PIL.AvifImagePlugin") if suffix == "avif" else None
    smooth = np.add.outer(np.arange(40), np.arange(60)).astype(np.uint8)[..., None] + np.uint8([0, 40, 90])
    path = saved(tmp_path, Image.fromarray(smooth), f"image.{suffix}", **options)
    other = path if suffix == "tga" else path.rename(tmp_path / "image.raw")
    assert np.abs(read_image(other).astype(int) - smooth).max() <= (4 if suffix in {"avif", "jpg"} else 0)


def test_a_tga_is_taken_for_one_by_its_name_alone(tmp_path):
    path = saved(tmp_path, Image.fromarray(RGB), "image.TGA")
    assert np.array_equal(read_image(path), RGB)
    with pytest.raises(ImageError, match="known format"):
        read_image(path.rename(tmp_path / "image.png"))


def test_gif_is_read(tmp_path):
    few = Image.fromarray(RGB).quantize(16)
    assert np.array_equal(read_image(saved(tmp_path, few, "image.gif")), np.asarray(few.convert("RGB")))


def webp_of(width, height, n_bytes=4096):
    """A WebP whose header claims a size that its few bytes do not fill."""
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + size
    return (b"RIFF" + struct.pack("<I", n_bytes - 8) + body).ljust(n_bytes, b"\0")


def png_of(width, height):
    header = struct.pack(">4sIIBBBBB", b"IHDR", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + bytes(4) + bytes(100)


@pytest.mark.parametrize(
    "content",
    [webp_of(13_959_232, 48), webp_of(16383, 16383), b"P6\n20000 20000\n255\n" + bytes(5000),
     b"BM" + struct.pack("<IIIIiiHHIIiiII", 6000, 0, 54, 40, 20_000, 20_000, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(5000)],
    ids=["webp strip", "webp", "ppm", "bmp"],
)  # fmt: skip
def test_more_pixels_than_a_files_bytes_can_hold_are_refused_before_they_are_decoded(tmp_path, monkeypatch, content):
    monkeypatch.setattr(Memory, "hold", lambda *_: pytest.fail("got as far as to ask for memory"))
    (tmp_path / "image.png").write_bytes(content)
    with pytest.raises(ImageError, match=r"too many for its \d+ bytes"):
        read_image(tmp_path / "image.png")


@pytest.mark.parametrize("suffix", ["png", "webp", "jp2", "tif"])
def test_small_blank_images_are_read_from_next_to_no_bytes(tmp_path, suffix):
    options = {"webp": {"lossless": True}, "tif": {"compression": "tiff_lzw"}}.get(suffix, {})
    path = saved(tmp_path, Image.new("RGB", (2000, 1500), (9, 8, 7)), f"blank.{suffix}", **options)
    photo = read_photo(path)
    assert photo.rgb.shape == (1500, 2000, 3)
    assert (photo.rgb == [9, 8, 7]).all()
    assert photo.remarks == (ONE_COLOUR,)


def test_an_image_beyond_the_memory_for_images_is_refused_with_the_way_to_raise_it(tmp_path, monkeypatch):
    path = saved(tmp_path, Image.fromarray(np.resize(RGB, (1000, 1000, 3))))
    monkeypatch.setenv("FLAWMAP_IMAGE_MEMORY", "10")
    with pytest.raises(ImageError, match=r"needs about 11 MB.*more than the 10 MB.*FLAWMAP_IMAGE_MEMORY=12"):
        read_image(path)
    with pytest.raises(ImageError, match="FLAWMAP_IMAGE_MEMORY"):
        read_mask(path)
    monkeypatch.setenv("FLAWMAP_IMAGE_MEMORY", "12")
    assert read_image(path).shape == (1000, 1000, 3)
    for wrong in ("", "0", "-3", "2GB"):
        monkeypatch.setenv("FLAWMAP_IMAGE_MEMORY", wrong)
        with pytest.raises(ParameterError, match=r"FLAWMAP_IMAGE_MEMORY must be a number of megabytes from 1, got"):
            read_image(path)


def test_threads_wait_for_memory_that_others_hold(monkeypatch):
    monkeypatch.setenv("FLAWMAP_IMAGE_MEMORY", "10")
    memory, most, now, lock = Memory(), [0], [0], threading.Lock()

    def use():
        for _ in range(5):
            with memory.hold(4 * 2**20, "part"):
                with lock:
                    now[0] += 1
                    most[0] = max(most[0], now[0])
                time.sleep(0.001)
                with lock:
                    now[0] -= 1

    threads = [threading.Thread(target=use) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == [2]


def test_the_memory_of_a_machine_and_its_control_groups(tmp_path):
    here = machine_memory(tmp_path)
    assert 2**28 < here == machine_memory(tmp_path)
    (tmp_path / "proc/self").mkdir(parents=True)
    groups = tmp_path / "sys/fs/cgroup/outer/inner"
    groups.mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/outer/inner\n")
    (groups / "memory.max").write_text("max\n")
    assert machine_memory(tmp_path) == here
    (groups.parent / "memory.max").write_text(f"{2**27}\n")
    assert machine_memory(tmp_path) == 2**27
    (tmp_path / "proc/self/cgroup").write_text("3:cpu,memory:/outer\n1:name=systemd:/\n")
    (tmp_path / "sys/fs/cgroup/memory").mkdir()
    (tmp_path / "sys/fs/cgroup/memory/memory.limit_in_bytes").write_text(f"{2**26}\n")
    assert machine_memory(tmp_path) == 2**26


def test_half_of_the_memory_is_for_images(monkeypatch):
    monkeypatch.delenv("FLAWMAP_IMAGE_MEMORY", raising=False)
    assert image_memory() == machine_memory() // 2


def test_a_memory_error_is_one_bad_image(tmp_path, monkeypatch):
    paths = [saved(tmp_path, Image.fromarray(np.resize(RGB, (20 + i, 20, 3))), f"{i}.png") for i in range(4)]
    apply = Preprocessing.apply

    def fail_once(self, image, **options):
        if image.height == 21:
            raise MemoryError
        return apply(self, image, **options)

    monkeypatch.setattr(Preprocessing, "apply", fail_once)
    for options in ({}, {"live": True}):
        bad = []
        names = [image.name for image in stream(paths, Preprocessing.of(8), on_bad=bad.append, **options)]
        assert names == [str(paths[i]) for i in (0, 2, 3)]
        assert [str(error) for error in bad] == [f"{paths[1]}: does not fit in memory; make it smaller"]
    monkeypatch.setattr(Image, "open", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
    for read in (read_image, read_mask):
        with pytest.raises(ImageError, match="does not fit in memory"):
            read(paths[0])


def test_a_palette_image_without_a_palette_is_damaged(tmp_path):
    path = saved(tmp_path, Image.fromarray(GREY).quantize(4))
    content = path.read_bytes()
    at = content.index(b"PLTE") - 4
    end = at + 12 + int.from_bytes(content[at : at + 4], "big")
    path.write_bytes(content[:at] + content[end:])
    for read in (read_image, read_mask):
        with pytest.raises(ImageError, match="damaged or cut short"):
            read(path)


def bmp_with_alpha(rgba):
    """A BMP of 32 bits with a mask for alpha, as some cameras write it."""
    height, width = rgba.shape[:2]
    masks = 0xFF0000, 0xFF00, 0xFF, 0xFF000000
    header = struct.pack("<IiiHHIIiiIIIIII52x", 108, width, height, 1, 32, 3, 0, 0, 0, 0, 0, *masks)
    pixels = rgba[::-1, :, [2, 1, 0, 3]].tobytes()
    return b"BM" + struct.pack("<IHHI", 14 + len(header) + len(pixels), 0, 0, 14 + len(header)) + header + pixels


@pytest.mark.parametrize("how", ["png", "bmp", "tga", "tif", "webp", "array", "grey png", "pil"])
def test_an_alpha_that_hides_everything_is_ignored(tmp_path, how):
    rgba = np.dstack([RGB, np.zeros_like(GREY)])
    if how == "bmp":
        source = tmp_path / "image.bmp"
        source.write_bytes(bmp_with_alpha(rgba))
    elif how == "grey png":
        source = saved(tmp_path, Image.merge("LA", (Image.fromarray(GREY), Image.new("L", (9, 6)))))
    elif how in {"array", "pil"}:
        source = rgba if how == "array" else Image.fromarray(rgba)
    else:
        options = {"lossless": True, "exact": True} if how == "webp" else {}
        source = saved(tmp_path, Image.fromarray(rgba), f"image.{how}", **options)
    photo = read_photo(source)
    assert np.array_equal(photo.rgb, np.repeat(GREY[..., None], 3, axis=2) if how == "grey png" else RGB)
    assert photo.remarks == (ALL_HIDDEN,)


def test_an_alpha_that_hides_most_is_laid_over_white_with_a_remark(tmp_path):
    for shown, remarks in ((1, (MOST_HIDDEN,)), (2, (MOST_HIDDEN,)), (3, ()), (6, ())):
        alpha = np.zeros_like(GREY)
        alpha[:shown] = 255
        photo = read_photo(saved(tmp_path, Image.fromarray(np.dstack([RGB, alpha]))))
        assert np.array_equal(photo.rgb, np.where(alpha[..., None] > 0, RGB, 255))
        assert photo.remarks == remarks


def test_an_image_of_one_colour_is_remarked_on():
    flat = np.full((50, 70, 3), 7, np.uint8)
    assert read_photo(flat).remarks == (ONE_COLOUR,)
    assert read_photo(flat[..., 0].astype(np.uint16)).remarks == (ONE_COLOUR,)
    flat[49, 68, 1] = 8
    assert read_photo(flat).remarks == ()
    assert read_photo(flat[:1, :1]).remarks == (ONE_COLOUR,)


def test_bits_that_samples_use(tmp_path):
    values = np.array([[0, 8, 9, 2048, 4095]], np.uint16)
    levels = [0, 0, 1, 128, 255]
    png = saved(tmp_path, Image.fromarray(values))
    for source in (
        values,
        values[..., None],
        np.dstack([values] * 3),
        values.astype(">u2"),
        png,
        Image.fromarray(values),
    ):
        photo = read_photo(source, bits=12)
        assert photo.rgb[0, :, 1].tolist() == levels
        assert (photo.bits, photo.highest) == (16, 4095)
    for bits in range(8, 17):
        top = 2**bits - 1
        ramp = np.arange(0, top + 1, dtype=np.uint16)[None]
        assert np.array_equal(read_photo(ramp, bits=bits).rgb[0, :, 0], np.floor(ramp[0] * 255.0 / top + 0.5))
    with pytest.raises(ImageError, match="has values from 0 to 4095, expected 0 to 2047; 11 bits are too few for it"):
        read_photo(png, bits=11)
    assert read_photo(np.array([[3, 200]], np.uint8), bits=12).rgb[0, :, 0].tolist() == [3, 200]


def test_sixteen_bit_colour_in_few_levels(tmp_path):
    import cv2

    values = np.random.default_rng(0).integers(0, 4096, (6, 9, 3), dtype=np.uint16)
    assert cv2.imwrite(str(tmp_path / "a.png"), values)
    photo = read_photo(tmp_path / "a.png")
    assert (photo.bits, photo.highest, photo.remarks) == (16, None, (FEW_LEVELS,))
    with pytest.raises(ImageError, match="is 16-bit colour, of which the high bytes are read: --bits 12 is for grey"):
        read_photo(tmp_path / "a.png", bits=12)
    assert cv2.imwrite(str(tmp_path / "a.png"), values * 16)
    assert read_photo(tmp_path / "a.png").remarks == ()


def test_png_of_sixteen_bits_with_alpha(tmp_path):
    values = np.array([[[0, 65535], [40000, 65535], [65535, 65535], [0, 0]]], ">u2")

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 4, 1, 16, 4, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" + values.tobytes())) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    photo = read_photo(tmp_path / "a.png")
    assert photo.rgb[0, :, 0].tolist() == [0, 40000 >> 8, 255, 255]
    assert photo.bits == 16


def test_values_of_a_pgm_are_scaled_from_the_highest_it_declares(tmp_path):
    values = np.array([[0, 8, 2048, 4095]], ">u2")
    (tmp_path / "a.pgm").write_bytes(b"P5\n4 1\n4095\n" + values.tobytes())
    assert read_photo(tmp_path / "a.pgm").rgb[0, :, 0].tolist() == [0, 0, 128, 255]


def test_an_opened_tiff_whose_file_is_gone_is_read_as_it_was_opened(tmp_path):
    path = saved(tmp_path, Image.fromarray(RGB), "a.tif")
    with Image.open(path) as image:
        path.unlink()
        assert np.array_equal(read_image(image), RGB)
