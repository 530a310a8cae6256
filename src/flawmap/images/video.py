"""Frames of videos, decoded one after the other by OpenCV's FFmpeg; one video is open at a time.

OpenCV is imported when a video is opened: an installation that inspects images does without.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from flawmap.errors import ImageError, MissingDependencyError

# FFmpeg would write its own remarks on damaged videos to standard error; they are told as ImageError
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


MOST_DAMAGED = 100
"""Frames in a row that cannot be decoded, after which a video counts as ended."""
DEPENDENT = set(map(ord, "PBSpb"))
"""Types of frames that are drawn upon others."""
ESTIMATED = 0.01
"""Share of the frames by which the number in a header may be wrong in a video that is whole."""


@dataclass(frozen=True, slots=True)
class VideoFrame:
    """A frame of a video, read when it is needed; its text is `path#index`, the first frame has index 0."""

    path: Path
    index: int

    def __str__(self) -> str:
        return f"{self.path}#{self.index}"


class FrameReader:
    """Decodes frames; each is decoded once when they come in rising order.

    An earlier frame, or one of another video, opens the video again and decodes up to it: seeking would be faster, but
    lands on another frame with some codecs.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._capture: Any = None
        self._next = 0
        self._is_open = False
        self._is_sound = True  # whether what the next frame is drawn upon was decoded

    def read(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """RGB (H, W, 3) uint8. Raises ImageError for a video or frame that cannot be decoded.

        MissingDependencyError where OpenCV is not installed.
        """
        if frame.path != self._path or frame.index < self._next:
            self._open(frame.path)
        grabbed = False
        while self._is_open and self._next <= frame.index:
            grabbed = self._capture.grab()  # False for a damaged frame; the next one may be whole
            self._next += 1
            self._is_sound = grabbed and (self._is_sound or self._stands_alone())
        decoded, pixels = self._capture.retrieve() if grabbed else (False, None)
        if not decoded or pixels is None:
            raise ImageError(str(frame), self._reason(frame.path))
        if not self._is_sound:
            raise ImageError(
                str(frame),
                "is drawn upon a frame that cannot be decoded; the video is damaged up to the next key frame, copy it "
                "again",
            )
        return np.ascontiguousarray(pixels[..., ::-1]).astype(np.uint8, copy=False)

    def close(self) -> None:
        """Close the video that is open."""
        if self._capture is not None:
            self._capture.release()
        self._path = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _stands_alone(self) -> bool:
        """Whether the frame that was grabbed is drawn upon no other; True where OpenCV does not know."""
        name = getattr(_opencv(), "CAP_PROP_FRAME_TYPE", None)
        kind = 0 if name is None else int(self._capture.get(name))
        return kind not in DEPENDENT

    def _reason(self, path: Path) -> str:
        """Why a frame cannot be decoded."""
        if not path.is_file():
            return "no such video; check the path"
        if not self._is_open or self._capture.get(_opencv().CAP_PROP_FRAME_COUNT) <= 0:
            return "its file is not a video that can be decoded; expected AVI, MP4, ..."
        return "this frame cannot be decoded; the video is damaged or cut short, copy it again"

    def _open(self, path: Path) -> None:
        self.close()
        self._capture = self._capture or _opencv().VideoCapture()
        self._path, self._next, self._is_sound = path, 0, True
        self._is_open = _open(self._capture, path)


def count_frames(path: Path) -> int:
    """Frames that a video's header announces; 0 for a file that is no video. Nothing is decoded."""
    cv2 = _opencv()
    capture = cv2.VideoCapture()
    try:
        return max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT))) if _open(capture, path) else 0
    finally:
        capture.release()


def find_frames(path: Path) -> list[VideoFrame]:
    """Every frame of a video. It is decoded once to count them: what headers announce is an estimate in some formats.

    One more stands for those that the header announces and that are not there, and one for a file that is no video:
    reading it tells what is wrong.
    """
    cv2 = _opencv()
    capture = cv2.VideoCapture()
    tried = n_frames = announced = 0
    try:
        if _open(capture, path):
            announced = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
            while tried < max(announced, n_frames + 1) and tried - n_frames < MOST_DAMAGED:
                tried += 1
                if capture.grab():  # False for a damaged frame; the next one may be whole
                    n_frames = tried
    finally:
        capture.release()
    is_short = n_frames == 0 or announced - n_frames > max(1, ESTIMATED * announced)
    return [VideoFrame(path, index) for index in range(n_frames + is_short)]


def _opencv() -> Any:  # noqa: ANN401 (a module)
    """The cv2 module. Raises MissingDependencyError."""
    try:
        import cv2
    except ImportError as error:
        raise MissingDependencyError(
            f"videos need OpenCV, which cannot be imported ({error}): pip install 'flawmap[video]'"
        ) from error
    return cv2


def _open(capture: Any, path: Path) -> bool:  # noqa: ANN401 (cv2.VideoCapture)
    """Whether the video could be opened; OpenCV's own remarks on one that could not are kept off standard error."""
    cv2 = _opencv()
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        return path.is_file() and bool(capture.open(str(path), cv2.CAP_FFMPEG))
    finally:
        cv2.utils.logging.setLogLevel(level)
