"""Counts of crowded scores, in pages with a place for every possible float32 score: no sorting, no searching.

A float32 score is held as a uint32 key, in the same order. A page holds the keys that share their upper half.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Counts", "Keys", "Run", "ScorePages", "keys_of", "scores_of"]

BITS = 16
SIZE = 2**BITS
"""Keys of a page."""
N_PAGES = 2**32 // SIZE
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
        first_keys = np.arange(N_PAGES, dtype=np.uint32) << np.uint32(BITS)
        n_keys = np.diff(np.searchsorted(run[0], first_keys), append=len(run[0]))
        self._open(np.flatnonzero(n_keys >= CROWDED))

    def merge(self, other: ScorePages) -> None:
        """Open the pages of `other` and add its counts."""
        pages = np.flatnonzero(other._rows >= 0)
        self._open(pages)
        for page in pages:
            self._counts[self._rows[page]] += other._counts[other._rows[page]]

    def run(self) -> Run:
        """All keys that were counted."""
        rows = self._rows[np.flatnonzero(self._rows >= 0)]
        ends = np.cumsum([np.count_nonzero(self._counts[row]) for row in rows], dtype=np.int64)
        n_keys = int(ends[-1]) if len(ends) else 0
        keys, counts = np.empty(n_keys, np.uint32), np.empty(n_keys, np.int64)
        for page, row, end in zip(np.flatnonzero(self._rows >= 0), rows, ends, strict=True):
            places = np.flatnonzero(self._counts[row])
            part = slice(end - len(places), end)
            keys[part] = places + (page << BITS)
            counts[part] = self._counts[row, places]
        return keys, counts

    def ranks(self, keys: Keys) -> tuple[Counts, Counts]:
        """Total count below each of some ascending keys (N,), and the count of the key itself."""
        pages = np.flatnonzero(self._rows >= 0)
        totals = self._counts.sum(axis=1)[self._rows[pages]]
        page_of = (keys >> BITS).astype(np.int64)
        below = np.concatenate([[0], np.cumsum(totals)])[np.searchsorted(pages, page_of)]
        equal = np.zeros(len(keys), np.int64)
        starts, ends = np.searchsorted(page_of, pages), np.searchsorted(page_of, pages, side="right")
        for page, start, end in zip(pages, starts, ends, strict=True):
            if start < end:
                counts, places = self._counts[self._rows[page]], keys[start:end] & (SIZE - 1)
                equal[start:end] = counts[places]
                below[start:end] += (np.cumsum(counts) - counts)[places]
        return below, equal

    def _open(self, pages: NDArray[np.intp]) -> None:
        pages = pages[self._rows[pages] < 0]
        n_open = int(self._rows.max()) + 1
        self._rows[pages] = np.arange(n_open, n_open + len(pages))
        if n_open + len(pages) > len(self._counts):
            grown = np.zeros((max(n_open + len(pages), len(self._counts) * 3 // 2), SIZE), np.int64)
            grown[:n_open] = self._counts[:n_open]
            self._counts = grown
