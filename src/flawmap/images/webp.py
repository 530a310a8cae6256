"""WebP: the size of its canvas, which Pillow makes as soon as it opens a file."""

from __future__ import annotations


def canvas_size(start: bytes) -> tuple[int, int]:
    """(width, height) by the first 30 bytes of a WebP file."""
    if start[12:16] == b"VP8X":
        return int.from_bytes(start[24:27], "little") + 1, int.from_bytes(start[27:30], "little") + 1
    if start[12:16] == b"VP8L":
        packed = int.from_bytes(start[21:25], "little")
        return (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
    return int.from_bytes(start[26:28], "little") & 0x3FFF, int.from_bytes(start[28:30], "little") & 0x3FFF
