"""Images of every format that is read, and ways to damage them."""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.random import Generator
from PIL import Image

from flawmap.errors import ImageError
from flawmap.images import read_image, read_mask
from tiffs import encode_tiff

EXTREMES = (0, 1, 255, 32767, 65535, 16_000_000, 2**24 - 1, 2**27, 2**31 - 1, 2**31, 2**32 - 8, 2**32 - 1)
"""Numbers that headers are made to hold."""
SIDES = (1, 64, 5000, 5792, 5793, 16383, 30_000, 65535, 2**31 - 1)
"""Widths and heights that headers are made to hold."""
SIZES: tuple[tuple[bytes, int, int, int, Literal["little", "big"]], ...] = (
    (b"IHDR", 4, 8, 4, "big"), (b"GIF8", 6, 8, 2, "little"), (b"BM", 18, 22, 4, "little"),
    (b"VP8X", 12, 15, 3, "little"), (b"\x9d\x01\x2a", 3, 5, 2, "little"), (b"VP8L", 9, 11, 2, "little"),
    (b"\xff\xc0\0", 7, 5, 2, "big"), (b"\xff\xc2\0", 7, 5, 2, "big"), (b"\xff\x51\0", 6, 10, 4, "big"),
    (b"ihdr", 8, 4, 4, "big"), (b"ispe", 8, 12, 4, "big"), (b"\0\0\x02\0\0\0", 12, 14, 2, "little"),
    (b"\0\x01\x03\0\x01\0\0\0", 8, 20, 2, "little"),
)  # fmt: skip
"""Where formats keep their size: what stands before it, the way to width and height, their bytes and order."""
HEADER = 96
"""Bytes of a file in which most sizes stand."""


def image_seeds() -> dict[str, bytes]:
    """Whole files by their names."""
    rng = np.random.default_rng(0)
    pixels = np.add.outer(np.arange(24) * 3, np.arange(32) * 2)[..., None] + rng.integers(0, 60, (24, 32, 3))
    rgb = Image.fromarray(pixels.astype(np.uint8))
    grey, deep = rgb.convert("L"), Image.fromarray(pixels[..., 0].astype(np.uint16) * 200)
    frames = {"save_all": True, "append_images": [rgb.rotate(90), rgb.rotate(180)]}
    pages = {"save_all": True, "append_images": [rgb.rotate(90)]}  # a JPEG leaves its settings on the images above
    exif = Image.Exif()
    exif[0x0112] = 6
    wanted = [
        ("rgb.png", rgb, {}), ("grey.png", grey, {}), ("deep.png", deep, {}), ("bits.png", rgb.convert("1"), {}),
        ("palette.png", rgb.quantize(8), {"transparency": 1}), ("alpha.png", rgb.convert("RGBA"), {"exif": exif}),
        ("frames.png", rgb, frames), ("rgb.jpg", rgb, {"exif": exif}), ("progressive.jpg", rgb, {"progressive": True}),
        ("grey.jpg", grey, {}), ("cmyk.jpg", rgb.convert("CMYK"), {}), ("frames.mpo", rgb, frames),
        ("rgb.bmp", rgb, {}), ("grey.bmp", grey, {}), ("bits.bmp", rgb.convert("1"), {}), ("rgb.dib", rgb, {}),
        ("palette.gif", rgb.quantize(16), {}), ("frames.gif", rgb, frames), ("lossy.webp", rgb, {"exif": exif}),
        ("lossless.webp", rgb.convert("RGBA"), {"lossless": True}), ("frames.webp", rgb, frames), ("rgb.jp2", rgb, {}),
        ("lossy.j2k", rgb, {"irreversible": True}), ("deep.jp2", deep, {}),
        ("tiles.jp2", rgb, {"tile_size": (16, 16)}),
        ("rgb.ppm", rgb, {}), ("grey.pgm", grey, {}), ("bits.pbm", rgb.convert("1"), {}), ("deep.pgm", deep, {}),
        ("rgb.avif", rgb, {}), ("frames.avif", rgb, frames), ("rgb.tga", rgb, {}),
        ("runs.tga", rgb, {"compression": "tga_rle"}), ("palette.tga", rgb.quantize(8), {}),
        ("lzw.tif", rgb, {"compression": "tiff_lzw"}), ("jpeg.tif", rgb, {"compression": "jpeg"}),
        ("fax.tif", rgb.convert("1"), {"compression": "group4"}), ("zstd.tif", rgb, {"compression": "zstd"}),
        ("lzma.tif", rgb, {"compression": "lzma"}), ("frames.tif", rgb, pages),
    ]  # fmt: skip
    seeds = {}
    for name, image, options in wanted:
        content = io.BytesIO()
        with suppress(KeyError, OSError, ValueError):  # a format that this Pillow does not write
            suffix = name.partition(".")[2]
            image.copy().save(
                content, "MPO" if suffix == "mpo" else Image.registered_extensions()[f".{suffix}"], **options
            )
            seeds[name] = content.getvalue()
    return {**seeds, **_tiff_seeds(rng), **_text_seeds(rng)}


def _tiff_seeds(rng: Generator) -> dict[str, bytes]:
    kinds = [
        ("grey", 1, 8, 1, {}), ("white", 0, 16, 1, {}), ("twelve", 1, 12, 1, {}), ("bits", 1, 1, 1, {}),
        ("rgb", 2, 8, 3, {"rows": 5}), ("tiles", 2, 8, 3, {"tile": 16}),
        ("planes", 2, 8, 3, {"planar": True, "rows": 5}),
        ("deflate", 2, 16, 3, {"compression": 8, "predictor": True}), ("packbits", 1, 8, 1, {"compression": 32773}),
        ("turned", 1, 16, 1, {"tags": {274: (6,)}}), ("cmyk", 5, 8, 4, {"order": ">"}), ("big", 2, 8, 3, {"big": True}),
        ("alpha", 2, 8, 4, {"tags": {338: (2,)}, "compression": 8, "rows": 5}), ("ycbcr", 6, 8, 3, {"compression": 8}),
        ("palette", 3, 8, 1, {"tags": {320: tuple(range(0, 65536, 86))[:768] + (0,) * 6}}),
    ]  # fmt: skip
    return {
        f"{name}.tif": encode_tiff(
            rng.integers(0, 2**bits, (24, 32, samples)).astype(np.uint16 if bits > 8 else np.uint8),
            bits,
            photometric,
            **options,  # type: ignore[arg-type]
        )
        for name, photometric, bits, samples, options in kinds
    }


def _text_seeds(rng: Generator) -> dict[str, bytes]:
    """PPM in digits."""
    digits = " ".join(map(str, rng.integers(0, 256, 24 * 32 * 3)))
    return {"digits.ppm": f"P3\n32 24\n255\n{digits}\n".encode()}


def damage_image(name: str, content: bytes, rng: Generator) -> bytes:
    """The file with one to three kinds of damage."""
    damaged = bytearray(content)
    kinds = [*DAMAGES, *[_set_tag] * 8] if name.endswith(".tif") else DAMAGES
    for _ in range(int(rng.integers(1, 4))):
        kinds[int(rng.integers(len(kinds)))](damaged, rng)
    if name.endswith(".png") and rng.random() < 0.8:
        _mend_checksums(damaged)
    return bytes(damaged)


def read_damaged(path: Path) -> str:
    """What becomes of a file, "read" or "refused"; any other exception is a fault of the reader."""
    try:
        rgb = read_image(path)
        if rgb.dtype != np.uint8 or rgb.shape[2:] != (3,) or 0 in rgb.shape:
            raise TypeError(f"{rgb.dtype} {rgb.shape} is no RGB image")
        read_mask(path)
    except ImageError:
        return "refused"
    return "read"


def _at(damaged: bytearray, rng: Generator, room: int = 1) -> int:
    """A place, in the header half of the time."""
    last = max(1, len(damaged) - room)
    return int(rng.integers(min(last, HEADER) if rng.random() < 0.5 else last))


def _flip_bits(damaged: bytearray, rng: Generator) -> None:
    for _ in range(int(rng.integers(1, 9))):
        if damaged:
            damaged[_at(damaged, rng)] ^= 1 << int(rng.integers(8))


def _cut(damaged: bytearray, rng: Generator) -> None:
    del damaged[int(rng.integers(len(damaged) + 1)) :]


def _set_number(damaged: bytearray, rng: Generator) -> None:
    """A size, length or offset becomes an extreme one."""
    size, number = int(rng.choice([2, 3, 4, 4, 8])), int(rng.choice(EXTREMES))
    order = "little" if rng.random() < 0.5 else "big"
    at = _at(damaged, rng, size)
    damaged[at : at + size] = (number % 256**size).to_bytes(size, order)  # type: ignore[arg-type]


def _swap(damaged: bytearray, rng: Generator) -> None:
    size = int(rng.integers(1, 9))
    one, other = _at(damaged, rng, size), _at(damaged, rng, size)
    damaged[one : one + size], damaged[other : other + size] = (
        damaged[other : other + size],
        damaged[one : one + size],
    )


def _delete(damaged: bytearray, rng: Generator) -> None:
    at = _at(damaged, rng)
    del damaged[at : at + int(rng.integers(1, 65))]


def _repeat(damaged: bytearray, rng: Generator) -> None:
    at, size = _at(damaged, rng), int(rng.integers(1, 65))
    damaged[at:at] = damaged[at : at + size] * int(rng.integers(1, 20))


def _overwrite(damaged: bytearray, rng: Generator) -> None:
    at, size = _at(damaged, rng), int(rng.integers(1, 33))
    damaged[at : at + size] = rng.bytes(size)


def _set_tag(damaged: bytearray, rng: Generator) -> None:
    """A field of a TIFF's directory gets another type, count or value."""
    if len(damaged) < 16:
        return
    order = "<" if damaged[:1] == b"I" else ">"
    is_big = damaged[2 if order == "<" else 3] == 43
    [at] = struct.unpack_from(f"{order}{'Q' if is_big else 'I'}", damaged, 8 if is_big else 4)
    head, size = (8, 20) if is_big else (2, 12)
    if at + head + size > len(damaged):
        return
    n_entries = (len(damaged) - at - head) // size
    entry = at + head + size * int(rng.integers(min(n_entries, 14)))
    place = entry + int(rng.choice([2, 4, size - 4, size - 4, size - 4]))
    damaged[place : place + 4] = struct.pack(f"{order}I", int(rng.choice(EXTREMES)))


def _mend_checksums(damaged: bytearray) -> None:
    """Right CRCs for the chunks of a PNG, so that the damage gets further than those."""
    at = 8
    while at + 12 <= len(damaged):
        end = at + 8 + int.from_bytes(damaged[at : at + 4], "big")
        if end + 4 > len(damaged):
            return
        damaged[end : end + 4] = zlib.crc32(damaged[at + 4 : end]).to_bytes(4, "big")
        at = end + 4


def _set_size(damaged: bytearray, rng: Generator) -> None:
    """Width and height become other ones, where the format keeps them."""
    width, height = (int(side) for side in rng.choice(SIDES, 2))
    if damaged[:1] == b"P":
        damaged[:] = damaged.replace(b"32 24", f"{width} {height}".encode())
        return
    for mark, across, down, size, order in SIZES:
        if (at := damaged.find(mark)) >= 0:
            damaged[at + across : at + across + size] = (width % 256**size).to_bytes(size, order)
            damaged[at + down : at + down + size] = (height % 256**size).to_bytes(size, order)


DAMAGES = (_set_size, _flip_bits, _cut, _set_number, _set_number, _set_number, _swap, _delete, _repeat, _overwrite)
