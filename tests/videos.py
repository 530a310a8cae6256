"""Small videos by a real codec, for tests: frame i is flat, of a grey that tells i."""

from __future__ import annotations

import cv2
import numpy as np

STEP = 10


def write_video(path, n_frames, size=(48, 64), first=0):
    """An MJPG AVI of n_frames of (height, width); frame i has grey (first + i) * STEP."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, size[::-1])
    if not writer.isOpened():
        raise RuntimeError("this OpenCV cannot write MJPG videos")
    for i in range(first, first + n_frames):
        writer.write(np.full((*size, 3), i * STEP, np.uint8))
    writer.release()
    return path


def number(pixels):
    """The number that a frame tells."""
    return round(float(pixels.mean()) / STEP)


def cut_short(path):
    """Leave a file's bytes up to the middle of its frames, of a video after the header that announces them all."""
    content = path.read_bytes()
    start = content.index(b"movi")
    path.write_bytes(content[: (start + len(content)) // 2])


def damage(path, index):
    """Overwrite one frame of a video by zeros."""
    content = bytearray(path.read_bytes())
    place = content.index(b"movi")
    for _ in range(index + 1):
        place = content.index(b"00dc", place + 4)
    size = int.from_bytes(content[place + 4 : place + 8], "little")
    content[place + 8 : place + 8 + size] = bytes(size)
    path.write_bytes(content)
