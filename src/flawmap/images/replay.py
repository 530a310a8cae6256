"""Images that are gone through twice: kept in memory up to a budget, read from their files again beyond it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator

from flawmap.errors import ImageError
from flawmap.images.preprocessing import Preprocessing
from flawmap.images.read import ImageSource
from flawmap.images.stream import Loaded, stream

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
        self._budget = cache_mb * 2**20
        self._kept: list[Loaded] = []
        self._paths: list[str] = []
        self._seen: set[bytes] = set()
        self.copies: list[str] = []

    def first(self) -> Iterator[Loaded]:
        """All images; bad ones raise, or are told of and left out."""
        for image in stream(self._items, self._preprocessing, on_bad=self._on_bad):
            digest = hashlib.blake2b(image.pixels.tobytes(), digest_size=16).digest()
            if digest in self._seen:
                self.copies.append(image.name)
            self._seen.add(digest)
            if self._budget >= image.pixels.nbytes:
                self._budget -= image.pixels.nbytes
                self._kept.append(image)
            else:
                self._budget = 0
                if image.path is not None:
                    self._paths.append(image.path)
            yield image

    def second(self) -> Iterator[Loaded]:
        """The same images without the bad ones; raises ImageError if a file has since become unreadable."""
        yield from self._kept
        yield from stream(self._paths, self._preprocessing)

    @property
    def n_again(self) -> int:
        """Images of the second pass."""
        return len(self._kept) + len(self._paths)
