"""How often each score occurs: an exact multiset of float32 scores that streams and merges.

Scores are held as integer keys in the same order. Where keys are few and far between they lie in sorted runs, each at
least twice as long as the next, so that sorting and merging cost n log n in all. Where they are crowded, as those of
smooth maps soon are, they are counted in pages with a place for every possible key, which needs no sorting. Either way
memory grows with the number of distinct scores, not with the number of pixels. Counts and weights are integers, so
the order of adding and merging changes nothing at all.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flawmap.errors import ParameterError

__all__ = ["ScoreCounts"]

BUFFER = 2**22
"""Scores kept as they came before they are counted."""
PAGE_BITS = 16
PAGE = 2**PAGE_BITS
CROWDED = PAGE // 4
"""Distinct scores in a run from which their page is opened: a page's memory is at most 32 bytes per distinct score."""

Keys = NDArray[np.uint32]
Counts = NDArray[np.int64]
Run = tuple[Keys, Counts]


class ScoreCounts:
    """Total count, or weight, of each distinct score. Adding and merging commute and associate exactly."""

    def __init__(self) -> None:
        self._raw: list[tuple[Keys, Counts | None]] = []
        self._n_raw = 0
        self._runs: list[Run] = []  # keys ascending and distinct; a key may lie in several runs and in a page
        self._slots = np.full(2**32 // PAGE, -1, np.int32)  # page of a key -> its row in _pages, or -1
        self._pages = np.zeros((0, PAGE), np.int64)

    def add(self, scores: ArrayLike, weights: ArrayLike | None = None) -> None:
        """Count float32 scores (N,), none of them NaN, each once or by its weight (N,), an integer above 0."""
        keys = _keys(np.asarray(scores, np.float32))
        if keys.ndim != 1 or (weights is not None and np.shape(weights) != keys.shape):
            raise ParameterError(f"expected scores (N,) and as many weights, got {keys.shape} and {np.shape(weights)}")
        counts = None if weights is None else np.array(weights, np.int64)
        if counts is not None and len(counts) and counts.min() <= 0:
            raise ParameterError(f"expected weights above 0, got {counts.min()}")
        self._take(keys, counts)

    def merge(self, other: ScoreCounts) -> None:
        """Count all that `other` has counted; `other` stays as it is."""
        for keys, counts in list(other._raw):
            self._take(keys, counts)
        for run in list(other._runs):
            self._push(run)
        pages = np.flatnonzero(other._slots >= 0)
        self._open(pages[self._slots[pages] < 0])
        for page in pages:
            self._pages[self._slots[page]] += other._pages[other._slots[page]]

    def items(self) -> tuple[NDArray[np.float32], Counts]:
        """Distinct scores, ascending, and the total count or weight of each."""
        self._flush()
        while len(self._runs) > 1:
            self._runs.append(_merge(self._runs.pop(), self._runs.pop()))
        keys, counts = _merge(self._crowded(), self._runs[0]) if self._runs else self._crowded()
        return _scores(keys), counts

    def ranks(self, scores: NDArray[np.float32]) -> tuple[Counts, Counts]:
        """Of what was counted, how much lies below each of some ascending scores (N,), and how much is equal to it."""
        self._flush()
        keys = _keys(scores)
        below, equal = np.zeros(len(keys), np.int64), np.zeros(len(keys), np.int64)
        for own, counts in self._runs:
            total = np.concatenate([[0], np.cumsum(counts)])
            left = total[np.searchsorted(own, keys)]
            equal += total[np.searchsorted(own, keys, side="right")] - left
            below += left
        pages = np.flatnonzero(self._slots >= 0)
        rows = self._slots[pages]
        before = np.concatenate([[0], np.cumsum(self._pages.sum(axis=1)[rows])])
        below += before[np.searchsorted(pages, keys >> PAGE_BITS)]
        bounds = np.searchsorted(keys >> PAGE_BITS, np.append(pages, PAGE))
        for row, first, page in zip(rows, bounds[:-1], pages, strict=True):
            last = np.searchsorted(keys >> PAGE_BITS, page, side="right") if first < len(keys) else first
            place = keys[first:last] & (PAGE - 1)
            below[first:last] += (np.cumsum(self._pages[row]) - self._pages[row])[place]
            equal[first:last] += self._pages[row][place]
        return below, equal

    def _take(self, keys: Keys, counts: Counts | None) -> None:
        """Count keys of open pages at once, keep the others for later."""
        keys, counts = self._count_crowded(keys, counts)
        if len(keys) == 0:
            return
        self._raw.append((keys, counts))
        self._n_raw += len(keys)
        if self._n_raw >= BUFFER or len(self._raw) >= 2**12:
            self._flush()

    def _flush(self) -> None:
        raw, self._raw, self._n_raw = self._raw, [], 0
        if raw:
            self._push(_count(raw))

    def _push(self, run: Run) -> None:
        while self._runs and len(self._runs[-1][0]) < 2 * len(run[0]):
            run = _merge(self._runs.pop(), run)
        pages = np.arange(2**32 // PAGE, dtype=np.uint32) << PAGE_BITS
        n_distinct = np.diff(np.searchsorted(run[0], pages), append=len(run[0]))
        crowded = np.flatnonzero(n_distinct >= CROWDED)
        if len(crowded):
            self._open(crowded[self._slots[crowded] < 0])
            keys, counts = self._count_crowded(*run)
            assert counts is not None
            run = keys, counts
        if len(run[0]):
            self._runs.append(run)

    def _open(self, pages: NDArray[np.intp]) -> None:
        """Make room for pages that are not open yet."""
        first = int(self._slots.max()) + 1
        self._slots[pages] = np.arange(first, first + len(pages))
        if first + len(pages) > len(self._pages):
            grown = np.zeros((max(first + len(pages), len(self._pages) * 3 // 2), PAGE), np.int64)
            grown[: len(self._pages)] = self._pages
            self._pages = grown

    def _count_crowded(self, keys: Keys, counts: Counts | None) -> tuple[Keys, Counts | None]:
        """Count the keys of open pages; return the others."""
        slots = self._slots[keys >> PAGE_BITS]
        is_open = slots >= 0
        rest = ~is_open
        if not is_open.any():
            return keys, counts
        places = (slots.astype(np.int64) << PAGE_BITS) | (keys & (PAGE - 1))
        if rest.any():
            places = places[is_open]
        np.add.at(self._pages.reshape(-1), places, 1 if counts is None else counts[is_open])
        return keys[rest], None if counts is None else counts[rest]

    def _crowded(self) -> Run:
        """The open pages as one run."""
        pages = np.flatnonzero(self._slots >= 0)
        ends = np.cumsum([np.count_nonzero(self._pages[self._slots[page]]) for page in pages], dtype=np.int64)
        n_distinct = int(ends[-1]) if len(ends) else 0
        keys, counts = np.empty(n_distinct, np.uint32), np.empty(n_distinct, np.int64)
        for page, end in zip(pages, ends, strict=True):
            row = self._pages[self._slots[page]]
            places = np.flatnonzero(row)
            keys[end - len(places) : end] = places + (int(page) << PAGE_BITS)
            counts[end - len(places) : end] = row[places]
        return keys, counts
