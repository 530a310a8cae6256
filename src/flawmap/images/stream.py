"""Reading many images: in threads, in order, with bounded memory, past bad ones if the caller wants."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from flawmap.errors import ImageError, ParameterError
from flawmap.images.preprocessing import Preprocessing
from flawmap.images.read import ImageSource, read_image
from flawmap.images.video import FrameReader, VideoFrame
from flawmap.prediction import Placement

__all__ = ["Loaded", "stream"]

MOST_WORKERS = 1024
LOOK_AHEAD = 4
"""Images per worker that are read before they are asked for."""
AHEAD_BYTES = 16 * 2**20
"""Memory up to which more are, where all of them are there from the start: a caller that is busy with something else
for a while, such as compiling a network, then finds them ready."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """An image made ready for the model.

    Attributes:
        number: its place among the images asked for, from 1, bad ones counted.
        name: its path, or "image 3" for the third of images in memory; for messages.
        source: its path, or a frame of a video: what it can be read from again; None if it came from memory.
        pixels: (h, w, 3) uint8, the model's input.
        placement: where that lies on the original.
    """

    number: int
    name: str
    source: str | VideoFrame | None
    pixels: NDArray[np.uint8]
    placement: Placement

    @property
    def path(self) -> str | None:
        """Its path, `path#index` for a frame of a video, or None."""
        return None if self.source is None else str(self.source)


def stream(
    items: Iterable[ImageSource],
    preprocessing: Preprocessing,
    *,
    on_bad: Callable[[ImageError], None] | None = None,
    workers: int | None = None,
) -> Iterator[Loaded]:
    """Read and preprocess images, in order. Frames of videos take a thread of their own, which decodes them in order.

    Args:
        items: paths, arrays, PIL images, frames of videos; of an iterator, pulled no faster than they are read.
        preprocessing: what makes the model's input of them.
        on_bad: is told of each image that cannot be used, which is then left out; None raises its ImageError.
        workers: threads, up to 1,024; None for one per processor, at most eight. ParameterError for none.
    """
    if workers is not None and (
        isinstance(workers, bool) or not isinstance(workers, int) or not 0 < workers <= MOST_WORKERS
    ):
        raise ParameterError(
            f"workers must be a number from 1 to {MOST_WORKERS}, or None for one per processor; got {workers!r}"
        )
    n_workers = workers or min(8, os.cpu_count() or 1)
    ahead = n_workers * LOOK_AHEAD
    if isinstance(items, Sequence):
        ahead = max(ahead, AHEAD_BYTES // (3 * math.prod(preprocessing.input_size)))
    numbered = enumerate(items, start=1)
    pool = ThreadPoolExecutor(n_workers, thread_name_prefix="flawmap-read")
    frame_pool = ThreadPoolExecutor(1, thread_name_prefix="flawmap-read-frames")
    frames = FrameReader()
    pending: deque[Future[Loaded]] = deque()
    try:
        while True:
            for number, item in islice(numbered, ahead - len(pending)):
                if isinstance(item, VideoFrame):
                    pending.append(frame_pool.submit(_load_frame, number, frames, item, preprocessing))
                else:
                    pending.append(pool.submit(_load, number, item, preprocessing))
            if not pending:
                return
            try:
                loaded = pending.popleft().result()
            except ImageError as error:
                if on_bad is None:
                    raise
                on_bad(error)
            else:
                yield loaded
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        frame_pool.shutdown(wait=True, cancel_futures=True)
        frames.close()


def _load(number: int, item: ImageSource, preprocessing: Preprocessing) -> Loaded:
    path = os.fspath(item) if isinstance(item, (str, os.PathLike)) else None
    name = path or f"image {number}"
    pixels, placement = preprocessing.apply(read_image(item, name=name))
    return Loaded(number, name, path, pixels, placement)


def _load_frame(number: int, frames: FrameReader, frame: VideoFrame, preprocessing: Preprocessing) -> Loaded:
    pixels, placement = preprocessing.apply(frames.read(frame))
    return Loaded(number, str(frame), frame, pixels, placement)
