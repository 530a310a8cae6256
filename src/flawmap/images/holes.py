"""Blocks of zero bytes in compressed files, as a power cut or a lost page of a disk leaves them.

Decoders take zeros for pixels and say nothing. Zeros are no proof: a flat area of a whole file may be coded in them. So
a run of zeros in the coded data is a reason to look closer. Of a whole file the coded data is enough for all pixels,
and all of it is needed. Where zeros stand for what is lost, one of the two fails: bytes added at the end of the
coded data change the picture, or other bytes in the place of the last ones do not.

PNG needs no such look, it has checksums. Uncompressed files give no sign: zeros are black pixels.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import islice
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageChops

from flawmap.images.pages import find_boxes

ZEROS = bytes(512)
"""Shortest run that is looked at."""
CHUNK_BYTES = 2**18
"""Bytes of a file that are searched at a time."""
MOST_PARTS = 2
"""Parts with runs that are looked at: of a flat image with restart markers there may be thousands."""
LAST_BYTES = 32
"""Bytes at the end of a part that are changed."""
ADDED = bytes((41 + 73 * place) % 255 for place in range(128))
"""Bytes that are added, of all kinds; none looks like a marker of JPEG."""
START, EOI, SOF2, TABLES, SOS = 0xD8, 0xD9, 0xC2, 0xC4, 0xDA
FIRST_RESTART, LAST_RESTART = 0xD0, 0xD7
"""JPEG's markers: start and end, a progressive frame, codes, a scan; and those between restart intervals."""
TIFF_JPEG, TIFF_DEFLATE, TIFF_WITHOUT_ZEROS = 7, {8, 32946}, {5, 32773}
"""Compressions of TIFF. In LZW and PackBits zeros are pixel after pixel of 0, which are never written one by one."""
SOD, SOC = b"\xff\x93", b"\xff\x4f\xff\x51"
"""JPEG 2000: where the packets of a tile begin, and how a codestream does."""


class Part(NamedTuple):
    """Coded data that a decoder reads from its first byte to its last; whether zeros in it are sure to be damage."""

    start: int
    end: int
    has_no_zeros: bool = False


def find_damage(image: Image.Image) -> str | None:
    """What shows that the file of an opened image is not whole, in words; None if nothing does.

    Of an image that was decoded already nothing is known. The file stays where it is.
    """
    look, stream = LOOKS.get(image.format or ""), getattr(image, "fp", None)
    if look is None or stream is None:
        return None
    position = stream.tell()
    try:
        content = _whole(stream) if "progressive" in image.info or _has_zeros(stream) else b""
        return look(content)
    except (struct.error, IndexError, ValueError):  # a decoder will say what is wrong
        return None
    finally:
        stream.seek(position)


def find_damage_in_strip(content: bytes, compression: int, tables: bytes = b"") -> str | None:
    """The same of a strip or tile of a TIFF file, by its compression; JPEG's has these tables."""
    hole = content.find(ZEROS) if compression in {TIFF_JPEG, *TIFF_DEFLATE, *TIFF_WITHOUT_ZEROS} else -1
    if hole < 0:
        return None
    if compression == TIFF_JPEG:
        return _look_at_jpeg(tables[:-2] + content[2:] if tables else content)
    if compression in TIFF_DEFLATE:
        try:
            zlib.decompress(content)  # its checksum says what decoders of TIFF leave out
        except zlib.error:
            return _describe(content, hole)
        return None
    return _describe(content, hole)


def _has_zeros(stream: BinaryIO) -> bool:
    """Whether there may be a run of zeros: half of one is in one of two chunks."""
    stream.seek(0)
    half = ZEROS[: len(ZEROS) // 2]
    chunk = bytearray(CHUNK_BYTES)
    with memoryview(chunk) as view:
        while n_bytes := stream.readinto(view):  # type: ignore[attr-defined]
            if chunk.find(half, 0, n_bytes) >= 0:
                return True
    return False


def _whole(stream: BinaryIO) -> bytes:
    stream.seek(0)
    return stream.read()


def _describe(content: bytes, hole: int) -> str:
    found = re.compile(rb"\0+").match(content, hole)
    return f"it holds a run of {len(found[0]) if found else 0} zero bytes, as after a power cut"


def _first_hole(content: bytes, parts: Iterator[Part], is_whole: Callable[[Part], bool]) -> str | None:
    """The first run of zeros in a part that is not whole, in words."""
    holes = ((content.find(ZEROS, part.start, part.end), part) for part in parts)
    for hole, part in islice(((hole, part) for hole, part in holes if hole >= 0), MOST_PARTS):
        if not is_whole(part):
            return _describe(content, hole)
    return None


def _decode(content: bytes) -> Image.Image | None:
    """A file's image, a sequential JPEG at an eighth of its size, which is enough to compare; None if it is refused."""
    try:
        with Image.open(BytesIO(content), formats=["JPEG", "WEBP"]) as image:
            if "progressive" not in image.info:
                image.draft(image.mode, (1, 1))
            image.load()
            return image.copy()
    except Exception:  # decoders raise nearly anything
        return None


def _are_equal(one: Image.Image | None, other: Image.Image | None) -> bool:
    if one is None or other is None or one.size != other.size or one.mode != other.mode:
        return one is other
    return not any(channel.getbbox() for channel in ImageChops.difference(one, other).split())


def _is_needed(content: bytes, part: Part, image: Image.Image | None) -> bool:
    """Whether the last bytes of a part make a difference to the image, or none of it does: that of one flat colour."""
    start = max(part.start, part.end - LAST_BYTES)
    return _differs(content, part._replace(start=start), image) or not _differs(content, part, image)


def _differs(content: bytes, part: Part, image: Image.Image | None) -> bool:
    """Whether other bytes in the place of a part make a difference to the image. None looks like a marker of JPEG."""
    values = np.frombuffer(content[part.start : part.end], np.uint8)
    changed = ((values + 59 + 7 * np.arange(len(values)).astype(np.uint8)) & 0x7F).tobytes()
    return not _are_equal(image, _decode(content[: part.start] + changed + content[part.end :]))


def _is_enough(content: bytes, part: Part, image: Image.Image | None) -> bool:
    """Whether bytes after a part make no difference to the image."""
    return _are_equal(image, _decode(content[: part.end] + ADDED + content[part.end :]))


def _look_at_jpeg(content: bytes) -> str | None:
    """Scans of a progressive picture that are missing; runs of zeros between two markers."""
    components, scans, parts, in_order = _dissect_jpeg(content)
    missing = {component: np.ones(64, np.bool_) for component in components}
    for scan in scans if components else ():
        first, last, precision = scan[-3:]
        for component in scan[1 : 1 + 2 * scan[0] : 2]:
            missing[component][first : last + 1] = precision & 15
    if any(lost.any() for lost in missing.values()):
        return "it lacks scans of its progressive picture"
    if content.find(ZEROS) < 0:
        return None
    image = _decode(content)
    return _first_hole(
        content,
        iter(parts),
        lambda part: (
            in_order and not part.has_no_zeros and _is_enough(content, part, image) and _is_needed(content, part, image)
        ),
    )


def _dissect_jpeg(content: bytes) -> tuple[list[int], list[bytes], list[Part], bool]:
    """Components of a progressive frame, else none; the header of each scan; and what lies between two markers.

    At last whether the restart markers count from 0 to 7, over and over.
    """
    values = np.frombuffer(content, np.uint8)
    places = np.flatnonzero(values[:-1] == 0xFF)
    kinds = values[places + 1]
    is_marker = (kinds != 0) & (kinds != 0xFF)
    places, kinds = places[is_marker], kinds[is_marker]
    components, scans, parts = list[int](), list[bytes](), list[Part]()
    tables = dict[int, bytes]()
    position, n_restarts, in_order = 2, 0, True
    while (index := int(np.searchsorted(places, position))) < len(places) and kinds[index] != EOI:
        kind, position = int(kinds[index]), int(places[index]) + 2
        is_restart = FIRST_RESTART <= kind <= LAST_RESTART
        if is_restart:
            in_order, n_restarts = in_order and kind - FIRST_RESTART == n_restarts % 8, n_restarts + 1
        elif kind != START:
            length = struct.unpack_from(">H", content, position)[0]
            segment, position = content[position + 2 : position + length], position + length
            if kind == SOF2:
                components = list(segment[6 : 6 + 3 * segment[5] : 3])
            elif kind == TABLES:
                tables |= _code_tables(segment)
            elif kind == SOS:
                scans.append(segment)
                n_restarts = 0
        if (is_restart or kind == SOS) and not _holds_lowest_bits(scans[-1]):
            index = int(np.searchsorted(places, position))
            end = int(places[index]) if index < len(places) else len(content)
            parts.append(Part(position, end, bool(components) and _joins_empty_blocks(scans[-1], tables)))
            position = end
    return components, scans, parts, in_order


def _holds_lowest_bits(scan: bytes) -> bool:
    """Whether a progressive scan has one bit for each block, which is seen in few: the lowest of its mean."""
    return scan[-3] == 0 and scan[-1] >> 4 > 0


def _code_tables(segment: bytes) -> dict[int, bytes]:
    """Symbols of each table, by its class and number; the first has a code of zeros."""
    tables, position = dict[int, bytes](), 0
    while position + 17 <= len(segment):
        n_symbols = sum(segment[position + 1 : position + 17])
        tables[segment[position]] = segment[position + 17 : position + 17 + n_symbols]
        position += 17 + n_symbols
    return tables


def _joins_empty_blocks(scan: bytes, tables: dict[int, bytes]) -> bool:
    """Whether zeros are one block without coefficients after the other, in a progressive scan that counts such blocks.

    Its encoder would have written how many they are.
    """
    symbols = tables.get(0x10 | (scan[2] & 15), b"")
    return scan[-3] > 0 and symbols[:1] == b"\0" and any(symbol & 15 == 0 and 0 < symbol < 0xF0 for symbol in symbols)


def _look_at_webp(content: bytes) -> str | None:
    image = _decode(content)
    return _first_hole(content, _webp_parts(content, 12), lambda part: _is_needed(content, part, image))


def _webp_parts(content: bytes, position: int) -> Iterator[Part]:
    """Chunks of pixels, also those in the frames of an animation."""
    while position + 8 <= len(content):
        kind, length = struct.unpack_from("<4sL", content, position)
        start, end = position + 8, min(position + 8 + length, len(content))
        if kind == b"ANMF":
            yield from _webp_parts(content[:end], start + 16)
        elif kind == b"VP8L":
            yield Part(start, end)
        elif kind == b"VP8 ":  # modes of all blocks, and then their pixels
            modes = start + 10 + (int.from_bytes(content[start : start + 3], "little") >> 5)
            yield Part(start + 10, min(modes, end))
            yield Part(min(modes, end), end)
        position = end + length % 2


def _look_at_avif(content: bytes) -> str | None:
    """Any run: flat areas are coded in less, and its decoders go on after the end of what there is."""
    return _first_hole(content, _avif_parts(content), lambda _: False)


def _avif_parts(content: bytes) -> Iterator[Part]:
    """Items of pixels, and not of metadata; none of a sequence."""
    stream = BytesIO(content)
    meta = next((box for box in find_boxes(stream, 0, len(content)) if box[0] == b"meta"), None)
    if meta is None:
        return
    boxes = {kind: (start, end) for kind, start, end in find_boxes(stream, meta[1] + 4, meta[2])}
    start, end = boxes.get(b"iinf", (0, 0))
    first = start + (6 if content[start] == 0 else 8)
    of_pixels = set()
    for _, entry, _ in find_boxes(stream, first, end):
        wide = content[entry] == 3
        number, kind = struct.unpack_from(">L2x4s" if wide else ">H2x4s", content, entry + 4)
        if kind == b"av01":
            of_pixels.add(number)
    for number, part in _avif_items(content, boxes.get(b"iloc", (0, 0))[0]):
        if number in of_pixels:
            yield part


def _avif_items(content: bytes, position: int) -> Iterator[tuple[int, Part]]:
    """Number and place of each item that lies in one piece in the file, by the box `iloc`."""
    version, sizes, more = content[position], content[position + 4], content[position + 5]
    n_offset, n_length, n_base, n_index = sizes >> 4, sizes & 15, more >> 4, (more & 15 if version else 0)
    wide = 4 if version == 2 else 2

    def take(n_bytes: int) -> int:
        nonlocal position
        if position > len(content):
            raise ValueError("the box is longer than its file")
        position += n_bytes
        return int.from_bytes(content[position - n_bytes : position], "big")

    position += 6
    for _ in range(take(wide)):
        number = take(wide)
        method = take(2) & 15 if version else 0
        take(2)
        base, n_extents = take(n_base), take(2)
        for _ in range(n_extents):
            take(n_index)
            start = base + take(n_offset)
            part = Part(start, start + take(n_length))
            if method == 0 and n_extents == 1:
                yield number, part


def _look_at_jpeg_2000(content: bytes) -> str | None:
    """Zeros are packets without content, a byte each: a run cannot be longer than the packets of a tile are many."""
    start = content.find(SOC)
    hole = content.find(ZEROS, content.find(SOD, start))
    if start < 0 or hole < 0:
        return None
    size = content.find(b"\xff\x51", start) + 4
    coding = content.find(b"\xff\x52", size) + 4
    _, width, height, left, top, tile_width, tile_height = struct.unpack_from(">H6L", content, size)
    n_components = struct.unpack_from(">H", content, size + 34)[0]
    style, _, n_layers, _, n_levels = struct.unpack_from(">BBHBB", content, coding)
    n_places = 0
    for level in range(n_levels + 1):
        sides = content[coding + 10 + level] if style & 1 else 0xFF
        across, down = (
            -(-min(tile, whole - first) >> (n_levels - level) >> bits)
            for tile, whole, first, bits in (
                (tile_width, width, left, sides & 15),
                (tile_height, height, top, sides >> 4),
            )
        )
        n_places += (across + (across > 1)) * (down + (down > 1))
    n_packets = n_layers * n_components * n_places
    hole = content.find(bytes(n_packets + len(ZEROS)), hole) if n_packets < len(content) else -1
    return None if hole < 0 else _describe(content, hole)


LOOKS: dict[str, Callable[[bytes], str | None]] = {
    "JPEG": _look_at_jpeg,
    "MPO": _look_at_jpeg,
    "WEBP": _look_at_webp,
    "AVIF": _look_at_avif,
    "JPEG2000": _look_at_jpeg_2000,
}
"""By Pillow's names of formats."""
