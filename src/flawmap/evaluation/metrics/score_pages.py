"""Counts of dense scores, in pages with one counter for every possible float32 score: no sorting, no searching.

A float32 score is held as a uint32 key, in the same order. A page holds the keys that share their upper half.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CROWDED",
    "NO_RUN",
    "PAGES_OF_SLICE",
    "WIDEST",
    "Counts",
    "Keys",
    "Run",
    "ScorePages",
    "keys_of",
    "page_starts",
    "scores_of",
]

BITS = 16
SIZE = 2**BITS
"""Keys of a page."""
N_PAGES = 2**32 // SIZE
PAGES_OF_SLICE = 16
N_SLICES = N_PAGES // PAGES_OF_SLICE
"""Slices of the range of keys, each small enough to hold all its keys in memory."""
WIDEST = 2**32 - 1
CROWDED = SIZE // 4

Keys = NDArray[np.uint32]
Counts = NDArray[np.int64]
Run = tuple[Keys, Counts]
"""Keys (N,), ascending and distinct, and the count of each."""

NO_RUN: Run = np.empty(0, np.uint32), np.empty(0, np.int64)
SIGN = np.uint32(2**31)


def keys_of(scores: NDArray[np.float32]) -> Keys:
    """Keys of scores, in the same order; -0 and 0 have the same key."""
    bits: Keys = (scores + np.float32(0)).view(np.uint32)
    return np.where(bits & SIGN, ~bits, bits | SIGN)


def scores_of(keys: Keys) -> NDArray[np.float32]:
    """Scores of keys."""
    scores: NDArray[np.float32] = np.where(keys & SIGN, keys ^ SIGN, ~keys).view(np.float32)
    return scores


def page_starts(keys: Keys) -> NDArray[np.intp]:
    """Where each page begins in ascending keys (N,), and N: (N_PAGES + 1,)."""
    first_keys = np.arange(N_PAGES, dtype=np.uint32) << np.uint32(BITS)
    return np.append(np.searchsorted(keys, first_keys), len(keys))


class ScorePages:
    """Counts of the keys of open pages; keys of other pages are not counted.

    Args:
        crowded: distinct keys from which a page is opened; by default a page costs at most 32 bytes for each of them.
        widest: highest count that 32 bits hold.
    """

    def __init__(self, *, crowded: int = CROWDED, widest: int = WIDEST) -> None:
        self._crowded, self._widest = crowded, widest
        self._rows = np.full(N_PAGES, -1, np.int32)  # row of each page in _counts, -1 if it is not open
        self._counts: NDArray[np.uint32] | Counts = np.zeros((0, SIZE), np.uint32)  # int64 once that is too narrow
        self._most = 0  # no count is higher

    def add(self, keys: Keys, counts: Counts | None = None) -> NDArray[np.bool_]:
        """Count the keys (N,) whose pages are open, each once or by its count; returns (N,), False for the others."""
        rows = self._rows[keys >> BITS]
        taken: NDArray[np.bool_] = rows >= 0
        if taken.any():
            self._make_room(len(keys) if counts is None else int(counts.sum()))
            values = np.ones(1, np.int64) if counts is None else counts
            values = values.astype(self._counts.dtype, copy=False)
            places = (rows.astype(np.int64) << BITS) | (keys & (SIZE - 1))
            if taken.all():
                np.add.at(self._counts.reshape(-1), places, values)
            else:
                np.add.at(self._counts.reshape(-1), places[taken], values if counts is None else values[taken])
        return taken

    def open_crowded(self, run: Run) -> None:
        """Open the pages of which a run holds many keys."""
        self._open(np.flatnonzero(np.diff(page_starts(run[0])) >= self._crowded))

    def merge(self, other: ScorePages) -> None:
        """Open the pages of `other` and add its counts."""
        pages = np.flatnonzero(other._rows >= 0)
        self._open(pages)
        self._make_room(other._most)
        for page in pages:
            self._counts[self._rows[page]] += other._counts[other._rows[page]]

    def opened(self) -> NDArray[np.bool_]:
        """Whether a page is open, of each slice (N_SLICES,)."""
        found: NDArray[np.bool_] = self._rows.reshape(N_SLICES, PAGES_OF_SLICE).max(axis=1) >= 0
        return found

    def run(self, index: int) -> Run:
        """The keys of a slice that were counted."""
        first = index * PAGES_OF_SLICE
        rows = self._rows[first : first + PAGES_OF_SLICE]
        found = [(page, np.flatnonzero(self._counts[row])) for page, row in enumerate(rows, first) if row >= 0]
        if not found:
            return NO_RUN
        keys = np.concatenate([(places + (page << BITS)).astype(np.uint32) for page, places in found])
        counts = np.concatenate([self._counts[self._rows[page], places] for page, places in found])
        return keys, counts.astype(np.int64, copy=False)

    def _make_room(self, n: int) -> None:
        """Widen the counts if one of them may not hold `n` more."""
        self._most += n
        if self._most > self._widest and self._counts.dtype == np.uint32:
            self._most = int(self._counts.max(initial=0)) + n
            if self._most > self._widest:
                self._counts = self._counts.astype(np.int64)

    def _open(self, pages: NDArray[np.intp]) -> None:
        pages = pages[self._rows[pages] < 0]
        n_open = int(self._rows.max()) + 1
        self._rows[pages] = np.arange(n_open, n_open + len(pages))
        # in place where the system can, and by no more than is needed: two copies at once would double the peak
        self._counts.resize((n_open + len(pages), SIZE), refcheck=False)
