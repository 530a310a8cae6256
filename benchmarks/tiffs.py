"""TIFF files of any kind, written byte by byte: of many kinds no library at hand writes one."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

TYPES = {"H": 3, "I": 4, "Q": 16}
"""Field types of TIFF by the letter of `struct`."""


def encode_tiff(
    samples: NDArray[np.generic],
    bits: int,
    photometric: int,
    *,
    planar: bool = False,
    compression: int = 1,
    predictor: bool = False,
    rows: int | None = None,
    tile: int | None = None,
    order: str = "<",
    big: bool = False,
    tags: Mapping[int, tuple[int, ...]] | None = None,
) -> bytes:
    """The bytes of a TIFF file of samples (H, W, S).

    Args:
        samples: numbers below 2**bits, or of 32 or 64 bits as they lie in memory.
        bits: bits a sample.
        photometric: 0 white is zero, 1 black is zero, 2 RGB, 3 palette, 4 mask, 5 CMYK, 6 YCbCr, 8 Lab.
        planar: whether each sample has a plane of its own.
        compression: 1 none, 8 deflate, 32773 PackBits (of literal runs).
        predictor: whether horizontal differences are stored.
        rows: rows of a strip; None for one strip.
        tile: side of square tiles, in place of strips.
        order: "<" little-endian, ">" big-endian.
        big: whether it is a BigTIFF.
        tags: further tags, or others in the place of those above.
    """
    height, width, n_samples = samples.shape
    planes = [samples[..., [i]] for i in range(n_samples)] if planar else [samples]
    blocks = [block for plane in planes for block in _cut(plane, rows or height, tile)]
    encode = _ENCODERS[compression]
    packed = [encode(_pack(_differences(block) if predictor else block, bits, order)) for block in blocks]
    entries: dict[int, tuple[int, ...]] = {
        256: (width,), 257: (height,), 258: (bits,) * n_samples, 259: (compression,), 262: (photometric,),
        277: (n_samples,), 284: (2 if planar else 1,),
    }  # fmt: skip
    if predictor:
        entries[317] = (2,)
    entries |= {322: (tile,), 323: (tile,)} if tile else {278: (rows or height,)}
    where, lengths = (324, 325) if tile else (273, 279)
    start = 16 if big else 8
    offsets = np.cumsum([start, *map(len, packed)])
    entries |= {where: tuple(map(int, offsets[:-1])), lengths: tuple(map(len, packed)), **(tags or {})}
    body = b"".join(packed)
    body += bytes(len(body) % 2)
    return _header(order, big, start + len(body)) + body + _directory(entries, order, big, start + len(body))


def _cut(plane: NDArray[np.generic], rows: int, tile: int | None) -> list[NDArray[np.generic]]:
    """Strips, or tiles padded to their full size."""
    if tile is None:
        return [plane[top : top + rows] for top in range(0, len(plane), rows)]
    padded = np.pad(plane, ((0, -len(plane) % tile), (0, -plane.shape[1] % tile), (0, 0)))
    return [
        padded[top : top + tile, left : left + tile]
        for top in range(0, len(padded), tile)
        for left in range(0, padded.shape[1], tile)
    ]


def _differences(block: NDArray[np.generic]) -> NDArray[np.generic]:
    before = np.zeros_like(block)
    before[:, 1:] = block[:, :-1]
    return np.asarray(block - before)


def _pack(block: NDArray[np.generic], bits: int, order: str) -> bytes:
    """Samples one after the other; each row starts at a byte."""
    if bits in (16, 32, 64):
        return block.astype(block.dtype.newbyteorder(order)).tobytes()
    numbers = block.reshape(len(block), -1, 1).astype(np.uint32)
    split = (numbers >> np.arange(bits - 1, -1, -1, dtype=np.uint32)) & 1
    return np.packbits(split.reshape(len(block), -1).astype(np.uint8), axis=1).tobytes()


def _packbits(content: bytes) -> bytes:
    return b"".join(bytes([len(run) - 1]) + run for run in (content[i : i + 128] for i in range(0, len(content), 128)))


_ENCODERS: dict[int, Callable[[bytes], bytes]] = {1: bytes, 8: zlib.compress, 32773: _packbits}


def _header(order: str, big: bool, directory: int) -> bytes:
    mark = b"II" if order == "<" else b"MM"
    return mark + (
        struct.pack(f"{order}HHHQ", 43, 8, 0, directory) if big else struct.pack(f"{order}HI", 42, directory)
    )


def _directory(entries: Mapping[int, tuple[int, ...]], order: str, big: bool, at: int) -> bytes:
    """The directory, and behind it the values that do not fit into an entry."""
    size, room, counts = (20, 8, "HHQ") if big else (12, 4, "HHI")
    behind = at + (8 if big else 2) + size * len(entries) + room
    lines, values = b"", b""
    for tag, numbers in sorted(entries.items()):
        kind = "I" if tag in (273, 279, 324, 325) or max(numbers, default=0) > 65535 else "H"
        content = struct.pack(f"{order}{len(numbers)}{kind}", *numbers)
        if len(content) > room:
            place = struct.pack(f"{order}{'Q' if big else 'I'}", behind + len(values))
            values += content
        else:
            place = content.ljust(room, b"\0")
        lines += struct.pack(f"{order}{counts}", tag, TYPES[kind], len(numbers)) + place
    return struct.pack(f"{order}{'Q' if big else 'H'}", len(entries)) + lines + bytes(room) + values
