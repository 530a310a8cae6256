"""Counts of crowded scores, in pages with a place for every possible float32 score: no sorting, no searching.

A float32 score is held as a uint32 key, in the same order. A page holds the keys that share their upper half.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["N_SLICES", "PAGES_OF_SLICE", "Counts", "Keys", "Run", "ScorePages", "keys_of", "page_starts", "scores_of"]

BITS = 16
SIZE = 2**BITS
"""Keys of a page."""
N_PAGES = 2**32 // SIZE
PAGES_OF_SLICE = 16
N_SLICES = N_PAGES // PAGES_OF_SLICE
"""Slices of the range of keys, each small enough to hold all its keys in memory."""
CROWDED = SIZE // 4
"""Distinct keys from which a page is worth opening: its memory is then at most 32 bytes for each of them."""

Keys = NDArray[np.uint32]
Counts = NDArray[np.int64]
Run = tuple[Keys, Counts]
"""Keys (N,), ascending and distinct, and the count of each."""

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
    """Counts of the keys of some pages; pages are opened one by one, keys of other pages are left alone."""

    def __init__(self) -> None:
        self._rows = np.full(N_PAGES, -1, np.int32)  # row of each page in _counts, -1 if it is not open
        self._counts = np.zeros((0, SIZE), np.int64)

    def add(self, keys: Keys, counts: Counts | None = None) -> NDArray[np.bool_]:
        """Count the keys (N,) whose pages are open, each once or by its count; returns (N,), False for the others."""
        rows = self._rows[keys >> BITS]
        taken: NDArray[np.bool_] = rows >= 0
        if taken.any():
            places = (rows.astype(np.int64) << BITS) | (keys & (SIZE - 1))
            if taken.all():
                np.add.at(self._counts.reshape(-1), places, 1 if counts is None else counts)
            else:
                np.add.at(self._counts.reshape(-1), places[taken], 1 if counts is None else counts[taken])
        return taken

    def open_crowded(self, run: Run) -> None:
        """Open the pages of which a run holds many keys."""
        self._open(np.flatnonzero(np.diff(page_starts(run[0])) >= CROWDED))

    def merge(self, other: ScorePages) -> None:
        """Open the pages of `other` and add its counts."""
        pages = np.flatnonzero(other._rows >= 0)
        self._open(pages)
        for page in pages:
            self._counts[self._rows[page]] += other._counts[other._rows[page]]

    def run(self, index: int) -> Run:
        """The keys of a slice that were counted."""
        first = index * PAGES_OF_SLICE
        rows = self._rows[first : first + PAGES_OF_SLICE]
        found = [(page, np.flatnonzero(self._counts[row])) for page, row in enumerate(rows, first) if row >= 0]
        if not found:
            return np.empty(0, np.uint32), np.empty(0, np.int64)
        keys = np.concatenate([(places + (page << BITS)).astype(np.uint32) for page, places in found])
        return keys, np.concatenate([self._counts[self._rows[page], places] for page, places in found])

    def _open(self, pages: NDArray[np.intp]) -> None:
        pages = pages[self._rows[pages] < 0]
        n_open = int(self._rows.max()) + 1
        self._rows[pages] = np.arange(n_open, n_open + len(pages))
        # in place where the system can, and by no more than is needed: two copies at once would double the peak
        self._counts.resize((n_open + len(pages), SIZE), refcheck=False)
