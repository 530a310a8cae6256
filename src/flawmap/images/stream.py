"""Reading many images: in threads, in order, with bounded memory, past bad ones if the caller wants."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from flawmap.errors import ImageError, ParameterError
from flawmap.images.pages import ImagePage
from flawmap.images.photo import Canvas
from flawmap.images.preprocessing import Preprocessing
from flawmap.images.read import ImageSource, use_photo
from flawmap.images.video import FrameReader, VideoFrame
from flawmap.options import OnBad
from flawmap.prediction import Placement

MOST_WORKERS = 1024
LOOK_AHEAD = 4
"""Images per worker that are read before the caller asks for them."""
AHEAD_BYTES = 16 * 2**20
"""Memory up to which more are read ahead, if all images are known from the start: a caller that is busy for a while,
such as compiling a network, then finds them ready."""

DIGEST_BYTES = 16

LEARNT = "was learnt from; its score is lower than that of a new image"
"""Remark on an image whose digest is among those that a model has learnt."""

Load = Callable[[], "Loaded"]
"""Gives an image, or raises its ImageError."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """An image made ready for the model.

    Attributes:
        number: its position among the images asked for, from 1, bad ones counted.
        name: its path, or "image 3" for the third of images in memory; for messages.
        source: its path, a page of a file or a frame of a video: what it can be read from again; None if it came from
            memory.
        pixels: (h, w, 3) uint8, the model's input, or the canvas before the crop.
        placement: where the model's input lies on the original.
        remarks: what is unusual about the image, in words.
        bits: of a sample, as the image declares them.
        highest: highest sample of deep grey, or of a uint16 array; else None.
        path: its path, `path#number` for a page of a file or a frame of a video, or None.
    """

    number: int
    name: str
    source: str | ImagePage | VideoFrame | None
    pixels: NDArray[np.uint8]
    placement: Placement
    remarks: tuple[str, ...] = ()
    bits: int = 8
    highest: int | None = None
    path: str | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", None if self.source is None else str(self.source))


def digest(pixels: NDArray[np.uint8]) -> bytes:
    """A fingerprint of an image's pixels, made ready for the model (BLAKE2b, 16 bytes)."""
    return hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=DIGEST_BYTES).digest()


def load_image(
    number: int,
    item: ImageSource,
    preprocessing: Preprocessing,
    *,
    whole: bool = False,
    learnt: Collection[bytes] = (),
    frames: FrameReader | None = None,
) -> Loaded:
    """Read and preprocess one image. Raises ImageError.

    Args:
        number: its position among the images asked for, from 1.
        item: a path, array, PIL image, page of a file or frame of a video.
        preprocessing: from the image to the model's input.
        whole: keep the pixels before the crop.
        learnt: digests of the images that the model has learnt from; an image among them gets a remark.
        frames: decodes frames of videos; None opens the video for this frame alone.
    """
    source: str | ImagePage | VideoFrame | None = os.fspath(item) if isinstance(item, (str, os.PathLike)) else None
    if isinstance(item, (ImagePage, VideoFrame)):
        source = item
    name = f"image {number}" if source is None else str(source)

    canvas = None if preprocessing.reading == "whole" else Canvas(preprocessing.resize, preprocessing.aspect)
    image = frames.read(item) if frames is not None and isinstance(item, VideoFrame) else item
    apply = partial(preprocessing.apply, whole=whole)
    photo, (pixels, placement) = use_photo(image, apply, name=name, bits=preprocessing.bits, canvas=canvas)
    known = (LEARNT,) if learnt and digest(pixels) in learnt else ()
    remarks = (*photo.remarks, *(item.remarks if isinstance(item, ImagePage) else ()), *known)
    return Loaded(number, name, source, pixels, placement, remarks, photo.bits, photo.highest)


def stream(
    items: Iterable[ImageSource],
    preprocessing: Preprocessing,
    *,
    on_bad: OnBad | None = None,
    workers: int | None = None,
    whole: bool = False,
    learnt: Collection[bytes] = (),
    live: bool = False,
) -> Iterator[Loaded]:
    """Read and preprocess images, in order.

    Args:
        items: paths, arrays, PIL images, pages of files, frames of videos; of an iterator, pulled no faster than they
            are read.
        preprocessing: from an image to the model's input.
        on_bad: called with the ImageError of each image that cannot be used, which is then left out; None raises it.
        workers: threads, up to 1,024; None for one per processor, at most eight. ParameterError for none. Frames of
            videos use one more thread, which decodes them in order.
        whole: keep the pixels before the crop; placements are those of the model's input either way.
        learnt: as for `load_image`.
        live: read each image in the calling thread, only when the caller asks for it, as for a camera.
    """
    n_workers = _checked(workers)
    read = partial(load_image, preprocessing=preprocessing, whole=whole, learnt=learnt)
    loads = _live(items, read) if live else _ahead(items, read, n_workers)
    with closing(loads):
        for load in loads:
            try:
                loaded = load()
            except ImageError as error:
                if on_bad is None:
                    raise
                on_bad(error)
            else:
                yield loaded


def _checked(workers: int | None) -> int:
    """Number of threads. Raises ParameterError."""
    if workers is not None and (
        isinstance(workers, bool) or not isinstance(workers, int) or not 0 < workers <= MOST_WORKERS
    ):
        raise ParameterError(
            f"workers must be a number from 1 to {MOST_WORKERS}, or None for one per processor; got {workers!r}"
        )
    return workers or min(8, os.cpu_count() or 1)


def _live(items: Iterable[ImageSource], read: Callable[..., Loaded]) -> Generator[Load, None, None]:
    """Images that are read when they are asked for."""
    frames = None
    try:
        for number, item in enumerate(items, start=1):
            if frames is None and isinstance(item, VideoFrame):
                frames = FrameReader()
            yield partial(read, number, item, frames=frames)
    finally:
        if frames is not None:
            frames.close()


def _ahead(items: Iterable[ImageSource], read: Callable[..., Loaded], n_workers: int) -> Generator[Load, None, None]:
    """Images that threads read ahead, within a bound."""
    numbered = enumerate(items, start=1)
    ahead, may_widen = n_workers * LOOK_AHEAD, isinstance(items, Sequence)
    pool = ThreadPoolExecutor(n_workers, thread_name_prefix="flawmap-read")
    frame_pool = ThreadPoolExecutor(1, thread_name_prefix="flawmap-read-frames")
    frames: FrameReader | None = None
    pending: deque[Future[Loaded]] = deque()

    def fill(n_pending: int) -> None:
        nonlocal frames
        for number, item in islice(numbered, n_pending - len(pending)):
            is_frame = isinstance(item, VideoFrame)
            if is_frame and frames is None:
                frames = FrameReader()
            own_pool, own_frames = (frame_pool, frames) if is_frame else (pool, None)
            pending.append(own_pool.submit(read, number, item, frames=own_frames))

    try:
        while True:
            fill(ahead)
            if not pending:
                return
            first = pending.popleft()
            if may_widen and first.exception() is None:  # all inputs have the first one's size
                ahead, may_widen = max(ahead, AHEAD_BYTES // first.result().pixels.nbytes), False
                fill(ahead - 1)
            yield first.result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        frame_pool.shutdown(wait=True, cancel_futures=True)
        if frames is not None:
            frames.close()
