"""Pages of image files that hold several: TIFF, and animated GIF, PNG, WebP and AVIF. Pixels are not decoded."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from flawmap.errors import ImageError
from flawmap.files import open_file
from flawmap.images.formats import TIFF_MARKS

NO_PAGE = "the file has no such page; pages are counted from 1"

REDUCED, MASK = 1, 4
"""Bits of a TIFF directory's NewSubfileType: a smaller copy of another image, and a transparency mask."""
MOST_ENTRIES = 65535
"""Entries of a directory; BigTIFF has room for a larger number, which only a damaged file has."""
AVIF_BOXES = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsz")
"""Where a sequence of AVIF images says how many there are, from the outermost box on."""


@dataclass(frozen=True, slots=True)
class ImagePage:
    """A page of an image file, read when it is needed; its text is `path#number`, the first page has number 1.

    Attributes:
        path: the file.
        number: its place among all images of the file.
        stands_for: how many pages the file has, where this one alone is judged; else 0.

    Example:
        >>> str(ImagePage(Path("scan.tif"), 2))
        'scan.tif#2'
    """

    path: Path
    number: int
    stands_for: int = field(default=0, compare=False)

    def __str__(self) -> str:
        return f"{self.path}#{self.number}"

    @property
    def remarks(self) -> tuple[str, ...]:
        """That the others are not judged, if so."""
        return (f"only the first of its {self.stands_for} pages is judged",) if self.stands_for else ()


def find_pages(path: Path) -> list[Path | ImagePage]:
    """The pages of a file; the file itself if its first image is its only page, or if it cannot be read."""
    numbers = page_numbers(path)
    return [path] if numbers == [1] else [ImagePage(path, number) for number in numbers]


def first_page(path: Path) -> Path | ImagePage:
    """A file where one image is needed; of several pages the first, which then carries a remark."""
    numbers = page_numbers(path)
    return path if numbers == [1] else ImagePage(path, numbers[0], len(numbers) if len(numbers) > 1 else 0)


def turn_to(image: Image.Image, number: int, name: str) -> None:
    """Turn an opened image file to a page. Raises ImageError where there is none."""
    try:
        image.seek(number - 1)
    except EOFError as error:
        raise ImageError(name, NO_PAGE) from error


def page_numbers(path: str | os.PathLike[str]) -> list[int]:
    """Numbers from 1 of a file's pages. Smaller copies and masks are none, but count, as they do in image viewers.

    Of a file that is cut short one page more is listed, of one that is no image the first: reading it tells what is
    wrong.
    """
    try:
        with open_file(path) as stream:
            return _numbers(stream) or [1]
    except (OSError, ValueError, struct.error):
        return [1]


def _numbers(stream: BinaryIO) -> list[int]:
    start = stream.read(32)
    if start.startswith(TIFF_MARKS):
        directories = enumerate(_tiff_directories(stream, start), start=1)
        return [number for number, is_page in directories if is_page]
    if start[:4] == b"GIF8":
        n_pages = _count_gif(stream)
    elif start[:4] == b"\x89PNG":
        n_pages = _count_png(stream)
    elif start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        n_pages = sum(kind == b"ANMF" for kind in _webp_chunks(stream))
    elif start[4:8] == b"ftyp" and b"avis" in start[8:]:
        n_pages = _count_avif(stream)
    else:
        n_pages = 1
    return list(range(1, n_pages + 1))


def _tiff_directories(stream: BinaryIO, start: bytes) -> Iterator[bool]:
    """Whether each image of a TIFF file is a page; where the chain of directories breaks, one more is."""
    order, is_big = "<" if start[:2] == b"II" else ">", start[:4] in (b"II+\0", b"MM\0+")
    count, entry, link = ("Q", "HHQ8s", "Q") if is_big else ("H", "HHL4s", "L")
    offset = struct.unpack_from(order + link, start, 8 if is_big else 4)[0]
    seen, tags = set(), dict[int, int]()
    while offset and offset not in seen:  # a chain that bites its tail has an end, too
        seen.add(offset)
        tags.clear()
        try:
            stream.seek(offset)
            n_entries = min(_unpack(stream, order + count), MOST_ENTRIES)
            content = stream.read(n_entries * struct.calcsize(order + entry))
            for tag, kind, _, value in struct.iter_unpack(order + entry, content):
                if tag in (254, 255, 262):
                    tags[tag] = struct.unpack_from(order + {3: "H", 4: "L", 16: "Q"}.get(kind, "B"), value)[0]
            offset = _unpack(stream, order + link)
        except (OverflowError, OSError, struct.error):
            yield True
            return
        yield not (tags.get(254, 0) & (REDUCED | MASK) or tags.get(255) == 2 or tags.get(262) == 4)


def _unpack(stream: BinaryIO, form: str) -> int:
    value: int = struct.unpack(form, stream.read(struct.calcsize(form)))[0]
    return value


def _count_gif(stream: BinaryIO) -> int:
    """Images of a GIF file: an image begins by a comma, an extension by an exclamation mark."""
    n_images = 0
    stream.seek(10)
    _skip_colours(stream, stream.read(3)[:1])
    while (kind := stream.read(1)) in (b",", b"!"):
        if kind == b",":
            n_images += 1
            _skip_colours(stream, stream.read(9)[8:])
        stream.seek(1, os.SEEK_CUR)  # an extension's label, or an image's code size
        while length := int.from_bytes(stream.read(1), "little"):
            stream.seek(length, os.SEEK_CUR)
    return n_images


def _skip_colours(stream: BinaryIO, flags: bytes) -> None:
    if flags and flags[0] & 128:
        stream.seek(3 << ((flags[0] & 7) + 1), os.SEEK_CUR)


def _count_png(stream: BinaryIO) -> int:
    """Frames of an animated PNG, with the image that stands before the animation if that is no part of it."""
    announced = n_frames = 0
    default = False
    stream.seek(8)
    while len(head := stream.read(8)) == 8:
        length, kind = struct.unpack(">L4s", head)
        if kind == b"acTL":
            announced = _unpack(stream, ">L")
            length -= 4
        elif kind == b"IDAT":
            if not announced:
                return 1
            default = default or n_frames == 0
        n_frames += kind == b"fcTL"
        stream.seek(length + 4, os.SEEK_CUR)
    return min(announced, n_frames + 1) + default


def _webp_chunks(stream: BinaryIO) -> Iterator[bytes]:
    stream.seek(12)
    while len(head := stream.read(8)) == 8:
        kind, length = struct.unpack("<4sL", head)
        yield kind
        stream.seek(length + length % 2, os.SEEK_CUR)


def _count_avif(stream: BinaryIO) -> int:
    """Images of the first track."""
    position, end = 0, stream.seek(0, os.SEEK_END)
    for wanted in AVIF_BOXES:
        found = next((box for box in find_boxes(stream, position, end) if box[0] == wanted), None)
        if found is None:
            return 1
        _, position, end = found
    stream.seek(position + 8)
    return min(_unpack(stream, ">L"), end)


def find_boxes(stream: BinaryIO, position: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, first byte and end of the content of each box between two places."""
    while position + 8 <= end:
        stream.seek(position)
        length, kind = struct.unpack(">L4s", stream.read(8))
        header = 8
        if length == 1:
            length, header = _unpack(stream, ">Q"), 16
        length = length or end - position
        if length < header:
            return
        yield kind, position + header, min(position + length, end)
        position += length
