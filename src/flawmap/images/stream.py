"""Reading many images: in threads, in order, with bounded memory, past bad ones if the caller wants."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from flawmap.errors import ImageError
from flawmap.images.preprocessing import Preprocessing
from flawmap.images.read import ImageSource, read_image
from flawmap.records import Placement

__all__ = ["Loaded", "stream"]

LOOK_AHEAD = 4
"""Images per worker that are read before they are asked for."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """An image made ready for the model.

    Attributes:
        name: its path, or "image 3" for the third of images in memory; for messages.
        path: its path, or None.
        pixels: (h, w, 3) uint8, the model's input.
        placement: where that lies on the original.
    """

    name: str
    path: str | None
    pixels: NDArray[np.uint8]
    placement: Placement


def stream(
    items: Iterable[ImageSource],
    preprocessing: Preprocessing,
    *,
    on_bad: Callable[[ImageError], None] | None = None,
    workers: int | None = None,
) -> Iterator[Loaded]:
    """Read and preprocess images, in order.

    Args:
        items: paths, arrays, PIL images; pulled no faster than they are read.
        preprocessing: what makes the model's input of them.
        on_bad: is told of each image that cannot be used, which is then left out; None raises its ImageError.
        workers: threads; None for one per processor, at most eight.
    """
    n_workers = workers or min(8, os.cpu_count() or 1)
    numbered = enumerate(items, start=1)
    pool = ThreadPoolExecutor(n_workers, thread_name_prefix="flawmap-read")
    pending: deque[Future[Loaded]] = deque()
    try:
        while True:
            for number, item in islice(numbered, n_workers * LOOK_AHEAD - len(pending)):
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


def _load(number: int, item: ImageSource, preprocessing: Preprocessing) -> Loaded:
    path = os.fspath(item) if isinstance(item, (str, os.PathLike)) else None
    name = path or f"image {number}"
    pixels, placement = preprocessing.apply(read_image(item, name=name))
    return Loaded(name, path, pixels, placement)
