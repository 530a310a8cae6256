"""Images that are gone through twice: kept in memory up to a budget, read from their files again beyond it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np

from flawmap.errors import ImageError
from flawmap.images.preprocessing import Preprocessing
from flawmap.images.read import ImageSource
from flawmap.images.stream import Loaded, stream
from flawmap.images.video import VideoFrame

__all__ = ["Replay"]


class Replay:
    """Images for two passes, in the same order.

    Images beyond the budget that have no file, as a generator may give, are left out of the second pass.

    Attributes:
        copies: names of images of the first pass whose pixels, made ready for the model, equal an earlier image's.
    """

    def __init__(
        self,
        items: Iterable[ImageSource],
        preprocessing: Preprocessing,
        *,
        cache_mb: float,
        on_bad: Callable[[ImageError], None] | None = None,
    ) -> None:
        self._items = items
        self._preprocessing = preprocessing
        self._on_bad = on_bad
        # one block, touched as it fills: many small arrays among the large ones of a fit would fragment the memory
        self._free = np.empty(int(cache_mb * 2**20), np.uint8)
        self._kept: list[Loaded] = []
        self._again: list[str | VideoFrame] = []
        self._seen: set[bytes] = set()
        self.copies: list[str] = []

    def first(self) -> Iterator[Loaded]:
        """All images; bad ones raise, or are told of and left out."""
        for image in stream(self._items, self._preprocessing, on_bad=self._on_bad):
            digest = hashlib.blake2b(image.pixels.tobytes(), digest_size=16).digest()
            if digest in self._seen:
                self.copies.append(image.name)
            self._seen.add(digest)
            if image.pixels.size <= len(self._free):
                self._keep(image)
            else:
                self._free = self._free[:0]
                if image.source is not None:
                    self._again.append(image.source)
            yield image

    def second(self) -> Iterator[Loaded]:
        """The same images without the bad ones; raises ImageError if a file has since become unreadable."""
        yield from self._kept
        yield from stream(self._again, self._preprocessing)

    def _keep(self, image: Loaded) -> None:
        kept = self._free[: image.pixels.size].reshape(image.pixels.shape)
        kept[:] = image.pixels
        self._free = self._free[image.pixels.size :]
        self._kept.append(replace(image, pixels=kept))

    @property
    def n_again(self) -> int:
        """Images of the second pass."""
        return len(self._kept) + len(self._again)
