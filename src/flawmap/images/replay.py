"""Images that are gone through twice: kept in memory up to a budget, read from their files again beyond it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import tee

import numpy as np
from numpy.typing import NDArray

from flawmap.errors import ImageError
from flawmap.images.preprocessing import Preprocessing
from flawmap.images.read import ImageSource
from flawmap.images.stream import Loaded, stream
from flawmap.images.video import VideoFrame

__all__ = ["Replay"]

ALIGNMENT = 64
"""Bytes to a multiple of which each part of the memory is rounded up, as vector instructions like it."""


class Replay:
    """Images for two passes.

    Images beyond the budget that have no file, as a generator may give, are left out of the second pass.

    Attributes:
        names: of the images of the first pass, in its order.
        copies: places (earlier, later) of images whose pixels, made ready for the model, are equal.
    """

    def __init__(
        self,
        items: Iterable[ImageSource],
        preprocessing: Preprocessing,
        *,
        cache_mb: float,
        on_bad: Callable[[ImageError], None] | None = None,
        workers: int | None = None,
    ) -> None:
        self._items = items
        self._preprocessing = preprocessing
        self._on_bad = on_bad
        self._workers = workers
        # one block, touched as it fills: many small arrays among the large ones of a fit would fragment the memory
        self._free = np.empty(int(cache_mb * 2**20), np.uint8)
        self._again: dict[int, Loaded | str | VideoFrame] = {}  # place in the first pass: what was kept, or the file
        self._seen: dict[bytes, int] = {}
        self.names: list[str] = []
        self.copies: list[tuple[int, int]] = []

    def first(self) -> Iterator[Loaded]:
        """All images; bad ones raise, or are told of and left out."""
        for image in stream(self._items, self._preprocessing, on_bad=self._on_bad, workers=self._workers):
            digest = hashlib.blake2b(image.pixels.tobytes(), digest_size=16).digest()
            if (earlier := self._seen.setdefault(digest, len(self.names))) < len(self.names):
                self.copies.append((earlier, len(self.names)))
            if (memory := self.reserve(image.pixels.size)) is not None:
                kept = memory.reshape(image.pixels.shape)
                kept[:] = image.pixels
                self._again[len(self.names)] = replace(image, pixels=kept)
            else:
                self._free = self._free[:0]
                if image.source is not None:
                    self._again[len(self.names)] = image.source
            self.names.append(image.name)
            yield image

    @property
    def places(self) -> list[int]:
        """Places in the first pass of the images that the second can give, ascending."""
        return list(self._again)

    def second(self, places: Iterable[int]) -> Iterator[Loaded]:
        """The images at some of `places`, in the order asked for; ImageError if a file has become unreadable."""
        ahead, wanted = tee(self._again[place] for place in places)
        from_files = (entry for entry in ahead if not isinstance(entry, Loaded))
        read = stream(from_files, self._preprocessing, workers=self._workers)
        for entry in wanted:
            yield entry if isinstance(entry, Loaded) else next(read)

    def reserve(self, n_bytes: int) -> NDArray[np.uint8] | None:
        """Memory out of the budget, for what else is to be kept for the second pass; None if there is not enough."""
        taken = -(-n_bytes // ALIGNMENT) * ALIGNMENT
        if taken > len(self._free):
            return None
        reserved, self._free = self._free[:n_bytes], self._free[taken:]
        return reserved
