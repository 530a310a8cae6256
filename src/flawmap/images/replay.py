"""Images that are read in two passes: kept in memory up to a budget, read from their files again beyond it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import tee
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawmap.errors import ParameterError
from flawmap.images.preprocessing import Preprocessing
from flawmap.images.read import ImageSource
from flawmap.images.stream import Loaded, stream
from flawmap.options import OnBad

__all__ = ["Replay", "check_cache", "reserve_memory"]

MAX_CACHE_MB = 2**22
ALIGNMENT = 64
"""Bytes to a multiple of which each part of the memory is rounded up, as vector instructions like it."""


def check_cache(cache_mb: float) -> None:
    """ParameterError for no amount of memory in megabytes."""
    if not (math.isfinite(cache_mb) and 0 <= cache_mb <= MAX_CACHE_MB):
        raise ParameterError(f"cache_mb must be a number from 0 to {MAX_CACHE_MB}, got {cache_mb}")


def reserve_memory(cache_mb: float) -> NDArray[np.uint8]:
    """Memory of so many megabytes, which the system gives as it fills; ParameterError if there can never be so much."""
    check_cache(cache_mb)
    try:
        return np.empty(int(cache_mb * 2**20), np.uint8)
    except MemoryError as error:
        raise ParameterError(f"cache_mb={cache_mb:g} is more memory than there is; give less") from error


class Replay:
    """Images for two passes.

    Beyond the budget those of a list are read again, from files or from the list; those that an iterator gave, and that
    have no file, are left out of the second pass.

    Attributes:
        names, digests: of the images of the first pass, in its order; a digest is of the pixels made ready.
        copies: indices (earlier, later) of images whose pixels, made ready for the model, are equal.
    """

    def __init__(
        self,
        items: Iterable[ImageSource],
        preprocessing: Preprocessing,
        *,
        cache_mb: float,
        on_bad: OnBad | None = None,
        workers: int | None = None,
        whole: bool = False,
    ) -> None:
        self._items = items
        self._whole = whole
        self._preprocessing = preprocessing
        self._on_bad = on_bad
        self._workers = workers
        # one block, touched as it fills: many small arrays among the large ones of a fit would fragment the memory
        self._free = reserve_memory(cache_mb)
        self._again: dict[int, Loaded | ImageSource] = {}  # index in the first pass: what was kept, or its source
        self._seen: dict[bytes, int] = {}
        self.digests: list[bytes] = []
        self.names: list[str] = []
        self.copies: list[tuple[int, int]] = []

    def first(self) -> Iterator[Loaded]:
        """All images; bad ones raise, or are reported to `on_bad` and left out."""
        options: dict[str, Any] = {"on_bad": self._on_bad, "workers": self._workers, "whole": self._whole}
        for image in stream(self._items, self._preprocessing, **options):
            digest = hashlib.blake2b(image.pixels.tobytes(), digest_size=16).digest()
            self.digests.append(digest)
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
                elif isinstance(self._items, Sequence):
                    self._again[len(self.names)] = self._items[image.number - 1]
            self.names.append(image.name)
            yield image

    @property
    def again(self) -> list[int]:
        """Indices in the first pass of the images that the second can give, ascending."""
        return list(self._again)

    def second(self, indices: Iterable[int]) -> Iterator[Loaded]:
        """Some of the images that are there `again`, in this order; ImageError if a file has become unreadable."""
        ahead, wanted = tee(self._again[index] for index in indices)
        to_read = (entry for entry in ahead if not isinstance(entry, Loaded))
        read = stream(to_read, self._preprocessing, workers=self._workers, whole=self._whole)
        for entry in wanted:
            yield entry if isinstance(entry, Loaded) else next(read)

    def reserve(self, n_bytes: int) -> NDArray[np.uint8] | None:
        """Memory out of the budget, for what else is to be kept for the second pass; None if there is not enough."""
        taken = -(-n_bytes // ALIGNMENT) * ALIGNMENT
        if taken > len(self._free):
            return None
        reserved, self._free = self._free[:n_bytes], self._free[taken:]
        return reserved
