"""TIFF: which of its many kinds are read, and whether a file holds what its directory promises.

Pillow decodes, but reads some kinds wrong and gives no reason for those that it refuses: a file is decoded only if its
kind is one of those that are read right, all others are refused by their name. docs/images.md has the table.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL
from PIL import Image, TiffImagePlugin

from flawmap.errors import ImageError
from flawmap.images.holes import find_damage_in_strip
from flawmap.images.pages import NO_PAGE, REDUCED

PILLOW_TIFF_MARKS = tuple(TiffImagePlugin.PREFIXES)
"""What a file begins with that Pillow takes for a TIFF: also some that are none."""
COLOURS = {
    0: "grey", 1: "grey", 2: "RGB", 3: "palette", 4: "transparency mask", 5: "CMYK", 6: "YCbCr", 8: "Lab", 9: "Lab",
    10: "Lab", 32803: "colour filter array", 32844: "LogL", 32845: "LogLuv", 34892: "linear raw",
}  # fmt: skip
"""Photometric interpretations."""
N_COLOURS = {"RGB": 3, "CMYK": 4, "YCbCr": 3, "Lab": 3}
"""Samples of a pixel, of those that have more than one."""
NUMBERS = {1: "", 2: "signed ", 3: "floating-point "}
"""Sample formats."""
ALPHA = {1, 2}
"""Kinds of an extra sample that are an alpha channel."""

BITS: dict[tuple[str, int], set[int]] = {
    ("grey", 0): {1, 2, 4, 8, 12, 16, 32},
    ("grey", 1): {8},
    ("palette", 0): {1, 2, 4, 8},
    ("palette", 1): {8},
    ("RGB", 0): {8, 16},
    ("RGB", 1): {8, 16},
    ("RGB", 2): {8},
    ("RGB", 3): {8},
    ("CMYK", 0): {8, 16},
    ("CMYK", 1): {8},
    ("CMYK", 2): {8},
    ("YCbCr", 0): {8},
}
"""Bits a sample that are read, by colour and number of extra samples."""
RAW = 1
DNG_VERSION = 50706
"""A tag of raw photos in Adobe's format."""
JPEGS = {6, 7}
JPEG_TABLES = 347
"""A tag with what the JPEG data of all blocks share."""


@dataclass(frozen=True)
class Directory:
    """What a TIFF file says of one of its images; `blocks` are its strips or tiles.

    Attributes:
        width, height: of the image as it is stored.
        block: (rows, columns) of a block.
        offsets, lengths: where each block lies, and its bytes; no lengths where the file gives none.
        n_samples: samples a pixel.
        bits: bits of each sample.
        extra: kinds of the samples beyond the colours.
        planar: whether each sample has a plane of its own.
        reversed_bits: whether the first pixel is in the lowest bits.
        subsampling: of YCbCr, pixels that share their colour, across and down.
        tables: what the JPEG data of all blocks share, or b"".
        is_preview: whether it is a smaller copy, or of a raw photo, whose pixels lie elsewhere.
    """

    width: int
    height: int
    block: tuple[int, int]
    offsets: tuple[int, ...]
    lengths: tuple[int, ...]
    n_samples: int
    bits: tuple[int, ...]
    photometric: int
    compression: int
    sample_format: int
    extra: tuple[int, ...]
    planar: bool
    is_big_endian: bool
    reversed_bits: bool
    subsampling: tuple[int, ...]
    tables: bytes
    is_preview: bool

    @classmethod
    def read(cls, stream: BinaryIO, number: int = 1) -> Directory:
        """A directory of a file, of which the first has number 1. EOFError for none.

        Raises nearly anything for a damaged one, as Pillow does.
        """
        header = stream.read(8)
        header += stream.read(8) if header[2:3] == b"+" else b""  # a BigTIFF
        tags = TiffImagePlugin.ImageFileDirectory_v2(header)
        seen = {0}
        for _ in range(number):
            if tags.next in seen:
                raise EOFError
            seen.add(tags.next)
            stream.seek(tags.next)
            tags.load(stream)
        stream.seek(0)
        height, is_tiled = _one(tags, 257), 324 in tags
        where, lengths = (324, 325) if is_tiled else (273, 279)
        rows = _one(tags, 323) if is_tiled else min(_one(tags, 278, 2**32 - 1), height)
        compression = _one(tags, 259, RAW)
        photometric = 6 if compression == 6 else _one(tags, 262, 0)
        n_samples = _one(tags, 277, 3 if compression == 6 else 1)
        bits = _all(tags, 258, (1,))
        return cls(
            width=_one(tags, 256),
            height=height,
            block=(rows, _one(tags, 322) if is_tiled else _one(tags, 256)),
            offsets=_all(tags, where),
            lengths=_all(tags, lengths),
            n_samples=n_samples,
            bits=bits * min(n_samples, 64) if len(bits) == 1 else bits[:n_samples],
            photometric=photometric,
            compression=compression,
            sample_format=max(_all(tags, 339, (1,))),
            extra=_all(tags, 338),
            planar=_one(tags, 284, 1) == 2,
            is_big_endian=header[:2] == b"MM",
            reversed_bits=_one(tags, 266, 1) == 2,
            subsampling=_all(tags, 530, (2, 2)),
            tables=bytes(tags.get(JPEG_TABLES, b"")),
            is_preview=bool(_one(tags, 254) & REDUCED) or DNG_VERSION in tags,
        )

    @property
    def colour(self) -> str:
        """Its colours, in words."""
        return COLOURS.get(self.photometric, f"photometric {self.photometric}")

    @property
    def n_extra(self) -> int:
        """Samples beyond the colours."""
        return self.n_samples - N_COLOURS.get(self.colour, 1)

    @property
    def kind(self) -> str:
        """What it is, in words: "16-bit grey with alpha"."""
        number = NUMBERS.get(self.sample_format, f"format-{self.sample_format} ")
        words = f"{'/'.join(map(str, sorted(set(self.bits))))}-bit {number}{self.colour}"
        if self.n_extra == 1 and set(self.extra) & ALPHA:
            words += " with alpha"
        elif self.n_extra > 0:
            words += f" with {self.n_extra} more samples"
        if self.colour == "YCbCr" and self.compression not in JPEGS:
            words += f", subsampled {' x '.join(map(str, self.subsampling))}"
        if self.planar:
            words += " in separate planes"
        if self.reversed_bits:
            words += " with reversed bits"
        if self.sample_format == 2 and self.is_big_endian:
            words += " in big-endian byte order"
        if self.compression not in TiffImagePlugin.COMPRESSION_INFO:
            return f"{words}, compression {self.compression}"
        return f"{words}, {TiffImagePlugin.COMPRESSION_INFO[self.compression]}"

    @property
    def is_read(self) -> bool:
        """Whether this kind is among those that Pillow reads right."""
        if self.compression not in TiffImagePlugin.COMPRESSION_INFO or len(set(self.bits)) != 1:
            return False
        if len(self.bits) != self.n_samples:
            return False
        bits = self.bits[0]
        if bits not in BITS.get((self.colour, self.n_extra), ()) or (self.reversed_bits and bits > 8):
            return False
        is_signed = self.sample_format == 2 and self.colour == "grey" and bits > 8
        if is_signed and self.is_big_endian and self.compression != RAW:  # Pillow swaps what libtiff has swapped
            return False
        if not (self.sample_format == 1 or is_signed) or (bits > 8 and self.compression in JPEGS):
            return False
        if self.planar and len(self.bits) == 1:  # Pillow takes the name of its unpacker for a list of planes
            return self.compression != RAW or (bits == 8 and self.photometric != 0)
        if self.planar:
            return bits == 8 and self.colour in {"RGB", "CMYK"} and (self.n_extra == 0 or self.extra == (2,))
        return self.colour != "YCbCr" or self.compression != RAW or self.subsampling == (1, 1)

    @property
    def n_pixels(self) -> int:
        """Pixels that are decoded, with those that fill up tiles."""
        down, across = self._n_blocks
        return down * self.block[0] * across * self.block[1]

    @property
    def _n_blocks(self) -> tuple[int, int]:
        return ceil(self.height / self.block[0]), ceil(self.width / self.block[1])

    def missing(self, n_bytes: int) -> str | None:
        """What a file of so many bytes lacks of its pixels, in words; None if all is there."""
        down, across = self._n_blocks
        n_planes = len(self.bits) if self.planar else 1
        needed = down * across * n_planes
        if len(self.offsets) < needed:
            return f"{len(self.offsets)} of {needed} strips or tiles"
        if self.lengths and len(self.lengths) < needed:
            return f"the lengths of {needed - len(self.lengths)} strips or tiles"
        lengths = np.array(self.lengths[:needed] or [0] * needed, np.float64)
        offsets = np.array(self.offsets[:needed], np.float64)
        if self.compression == RAW:
            row = ceil(self.block[1] * sum(self.bits) / n_planes / 8)
            expected = np.full(needed, float(self.block[0] * row))
            if down > 1 and self.block[1] == self.width:  # the last strip is as short as the image
                expected[down - 1 :: down] = (self.height - (down - 1) * self.block[0]) * row
            if self.lengths and (lengths < expected).any():
                return f"bytes of {int((lengths < expected).sum())} strips or tiles"
            lengths = expected
        outside = int((offsets + np.maximum(lengths, 1) > n_bytes).sum())
        return f"{outside} strips or tiles, which lie beyond its end" if outside else None


def check_tiff(stream: BinaryIO, n_bytes: int, name: str, number: int = 1) -> Directory:
    """A directory of a TIFF file whose kind is read and whose pixels are all there; else ImageError."""
    start = stream.read(4)
    stream.seek(0)
    if start == b"MM\0+":
        raise ImageError(name, "is a BigTIFF in big-endian byte order, which is not read; save it as PNG or plain TIFF")
    try:
        directory = Directory.read(stream, number)
    except EOFError as error:
        raise ImageError(name, NO_PAGE) from error
    if min(directory.width, directory.height, *directory.block) < 1:
        raise ImageError(name, f"is damaged: it is said to have {directory.width} x {directory.height} pixels")
    if directory.is_preview:
        raise ImageError(name, "is the preview of a raw photo or of a larger image; save that as TIFF or PNG")
    if not directory.is_read:
        raise refusal(directory, name)
    if (missing := directory.missing(n_bytes)) is not None:
        raise ImageError(name, f"is damaged or cut short: it lacks {missing}; copy or record it again")
    if (damage := _find_hole(stream, directory)) is not None:
        raise ImageError(name, f"is damaged: {damage}; copy or record it again")
    return directory


def _find_hole(stream: BinaryIO, directory: Directory) -> str | None:
    """What zeros in strips or tiles show, in words. The stream stays where it is."""
    if directory.compression == RAW:
        return None
    position = stream.tell()
    try:
        for offset, length in zip(directory.offsets, directory.lengths, strict=False):
            stream.seek(offset)
            damage = find_damage_in_strip(stream.read(length), directory.compression, directory.tables)
            if damage is not None:
                return damage
    finally:
        stream.seek(position)
    return None


def refusal(directory: Directory, name: str) -> ImageError:
    """The error of a kind that is not read."""
    return ImageError(
        name, f"is a TIFF of a kind that is not read: {directory.kind}; save it as grey or RGB with 8 or 16 bits"
    )


def correct_grey(image: Image.Image, bits: int, tags: Any) -> tuple[Image.Image, int]:  # noqa: ANN401 (of Pillow)
    """A decoded TIFF and the bits of its samples; grey of 16 bits whose white is zero is turned round.

    Pillow gives 12 bits as they are, in a mode of 16, and turns round only what has 8 bits or fewer.
    """
    if not image.mode.startswith("I;16"):
        return image, bits
    if _one(tags, 262, 1) == 0:
        image = Image.fromarray((65535 - np.asarray(image)).astype(np.uint16))
    return image, _all(tags, 258, (16,))[0]


def _all(tags: Any, tag: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:  # noqa: ANN401 (a mapping of Pillow's)
    """The numbers of a tag."""
    value = tags.get(tag, default)
    return tuple(int(number) for number in (value if isinstance(value, tuple) else (value,)))


def _one(tags: Any, tag: int, default: int = 0) -> int:  # noqa: ANN401 (a mapping of Pillow's)
    """The first number of a tag."""
    return (*_all(tags, tag, (default,)), default)[0]


_lock = threading.Lock()
_n_readers = 0
_handler: Any = None


@contextmanager
def quiet_libtiff() -> Iterator[None]:
    """Keep libtiff from writing its own lines on damaged files to standard error, whose text is in the ImageError.

    The handler belongs to the process: the first of several threads takes it away, the last one puts it back. Where
    Pillow brings libtiff inside its own module nothing is done.
    """
    global _n_readers, _handler
    library = _libtiff()
    with _lock:
        if library is not None and _n_readers == 0:
            _handler = library.TIFFSetErrorHandler(None)
        _n_readers += 1
    try:
        yield
    finally:
        with _lock:
            _n_readers -= 1
            if library is not None and _n_readers == 0:
                library.TIFFSetErrorHandler(_handler)


@cache
def _libtiff() -> Any:  # noqa: ANN401 (a foreign library)
    """The library that Pillow decodes TIFF files with, beside its package or the system's; None if there is none."""
    package = Path(PIL.__file__).parent
    beside = [*package.parent.glob("pillow.libs/libtiff*"), *package.glob(".dylibs/libtiff*")]
    for path in (*beside, "libtiff.so.6", "libtiff.so.5"):
        with suppress(OSError, AttributeError):
            library = ctypes.CDLL(str(path))
            library.TIFFSetErrorHandler.restype = ctypes.c_void_p
            library.TIFFSetErrorHandler.argtypes = [ctypes.c_void_p]
            return library
    return None
