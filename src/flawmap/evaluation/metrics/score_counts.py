"""How often each score occurs: an exact multiset of float32 scores that streams and merges.

Sparse scores lie in sorted runs, each at least twice as long as the next, so that sorting and merging cost n log n in
all. Dense scores, as those of smooth maps soon are, are counted in pages, with one counter for every possible float32
score: no sorting, no searching. Either way memory grows with the number of distinct scores, not of pixels. Counts and
weights are integers: the order of adding and merging is irrelevant.

A score is held as a uint32 key, in the same order. A page holds the keys that share their upper half.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flawmap.errors import ParameterError

BUFFER = 2**22
MAX_RAW = 2**12
"""Arrays of scores in the buffer, however short."""

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

MaybeCounts = TypeVar("MaybeCounts", Counts, None, Counts | None)

NO_RUN: Run = np.empty(0, np.uint32), np.empty(0, np.int64)
SIGN = np.uint32(2**31)


class ScoreCounts:
    """Total count, or weight, of each distinct score. Adding and merging commute and associate exactly.

    Args:
        buffer: scores that are kept as they come before they are counted.
        crowded: distinct scores from which a page is opened; by default it costs at most 32 bytes for each of them.
        widest: highest count that 32 bits hold.
    """

    def __init__(self, *, buffer: int = BUFFER, crowded: int = CROWDED, widest: int = WIDEST) -> None:
        self._buffer = buffer
        self._raw: list[tuple[Keys, Counts | None]] = []
        self._n_raw = 0
        self._runs: list[Run] = []
        # a score may be counted in its page and in any number of runs: its counts add up
        self._pages = _Pages(crowded=crowded, widest=widest)

    def add(self, scores: ArrayLike, weights: ArrayLike | None = None) -> None:
        """Count scores (N,) once each, or by integer weights (N,) above 0. Scores are taken as float32, without NaN.

        Raises ParameterError for other shapes and weights. NaN is not checked.
        """
        values = np.asarray(scores, np.float32)
        counts = None if weights is None else np.array(weights, np.int64)
        if values.ndim != 1 or (counts is not None and counts.shape != values.shape):
            got = "none" if counts is None else counts.shape
            raise ParameterError(f"expected scores (N,) and as many weights or none, got {values.shape} and {got}")
        if counts is not None and counts.min(initial=1) <= 0:
            raise ParameterError(f"expected weights above 0, got {counts.min()}")
        self._take(keys_of(values), counts)

    def merge(self, other: ScoreCounts) -> None:
        """Count all that `other` has counted; `other` stays as it is."""
        raw, runs = list(other._raw), list(other._runs)
        self._pages.merge(other._pages)
        for keys, counts in raw:
            self._take(keys, counts)
        for run in runs:
            self._push(run)

    def items(self) -> tuple[NDArray[np.float32], Counts]:
        """Distinct scores, ascending, and the total count of each."""
        keys, counts = (np.concatenate(parts) for parts in zip(*self.slices(), strict=True))
        return scores_of(keys), counts

    def slices(self) -> Iterator[Run]:
        """Keys of the distinct scores, ascending, and their counts, in `N_SLICES` slices of the range of float32."""
        self._flush()
        starts = [_page_starts(keys)[::PAGES_OF_SLICE] for keys, _ in self._runs]
        occupied = reduce(np.logical_or, [np.diff(start) > 0 for start in starts], self._pages.opened())
        for index, is_occupied in enumerate(occupied.tolist()):
            if not is_occupied:
                yield NO_RUN
                continue
            slices = [slice(start[index], start[index + 1]) for start in starts]
            parts = [(keys[part], counts[part]) for (keys, counts), part in zip(self._runs, slices, strict=True)]
            yield _merge([self._pages.run(index), *parts])

    def _take(self, keys: Keys, counts: Counts | None) -> None:
        keys, counts = self._pages.add(keys, counts)
        if len(keys):
            self._raw.append((keys, counts))
            self._n_raw += len(keys)
            if self._n_raw >= self._buffer or len(self._raw) >= MAX_RAW:
                self._flush()

    def _flush(self) -> None:
        raw, self._raw, self._n_raw = self._raw, [], 0
        if raw:
            self._push(_count(raw))

    def _push(self, run: Run) -> None:
        while self._runs and len(self._runs[-1][0]) < 2 * len(run[0]):
            run = _merge([self._runs.pop(), run])
        self._pages.open_crowded(run)
        run = self._pages.add(*run)
        if len(run[0]):
            self._runs.append(run)


def ranked(scores: Sequence[ScoreCounts], others: Sequence[ScoreCounts]) -> Iterator[tuple[Counts, Counts, Counts]]:
    """Part by part, the counts of ascending scores, and how many of the others are below and equal.

    Both are given in any number of `ScoreCounts`, which are not merged: no more than a slice of them all is copied. The
    parts depend on the scores alone, and so does, to the last digit, what is summed up of them.
    """
    before = 0
    for (keys, counts), (other_keys, other_counts) in zip(_joined(scores), _joined(others), strict=True):
        if len(keys):
            total = before + np.concatenate([[0], np.cumsum(other_counts)])
            below = total[np.searchsorted(other_keys, keys)]
            yield counts, below, total[np.searchsorted(other_keys, keys, side="right")] - below
        if len(other_keys):
            before += int(other_counts.sum())


def _joined(parts: Sequence[ScoreCounts]) -> Iterator[Run]:
    """Slice by slice, the run of all parts."""
    for runs in zip(*(part.slices() for part in parts), strict=True):
        yield _merge(runs)


def _count(raw: Sequence[tuple[Keys, Counts | None]]) -> Run:
    """One run of keys in any order, each counted once or by its weight."""
    keys = np.concatenate([keys for keys, _ in raw])
    if all(counts is None for _, counts in raw):
        return np.unique(keys, return_counts=True)
    counts = np.concatenate([np.ones(len(keys), np.int64) if counts is None else counts for keys, counts in raw])
    order = np.argsort(keys, kind="stable")  # merges ascending runs in linear time
    keys = keys[order]
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    return keys[starts], np.add.reduceat(counts[order], starts)


def _merge(runs: Sequence[Run]) -> Run:
    """Union of runs, counts of equal keys added."""
    occupied = [run for run in runs if len(run[0])] or [NO_RUN]
    return occupied[0] if len(occupied) == 1 else _count(occupied)


def keys_of(scores: NDArray[np.float32]) -> Keys:
    """Keys of scores, in the same order; -0 and 0 have the same key."""
    bits: Keys = (scores + np.float32(0)).view(np.uint32)
    return np.where(bits & SIGN, ~bits, bits | SIGN)


def scores_of(keys: Keys) -> NDArray[np.float32]:
    """Scores of keys."""
    scores: NDArray[np.float32] = np.where(keys & SIGN, keys ^ SIGN, ~keys).view(np.float32)
    return scores


def _page_starts(keys: Keys) -> NDArray[np.intp]:
    """Where each page begins in ascending keys (N,), and N: (N_PAGES + 1,)."""
    first_keys = np.arange(N_PAGES, dtype=np.uint32) << np.uint32(BITS)
    return np.append(np.searchsorted(keys, first_keys), len(keys))


class _Pages:
    """Counts of the keys of open pages; keys of other pages are not counted."""

    def __init__(self, *, crowded: int, widest: int) -> None:
        self._crowded, self._widest = crowded, widest
        self._rows = np.full(N_PAGES, -1, np.int32)  # row of each page in _counts, -1 if it is not open
        self._counts: NDArray[np.uint32] | Counts = np.zeros((0, SIZE), np.uint32)  # int64 once that is too narrow
        self._most = 0  # no count is higher

    def add(self, keys: Keys, counts: MaybeCounts) -> tuple[Keys, MaybeCounts]:
        """Count keys (N,), each once or by its count; returns those whose pages are not open, which are not counted."""
        rows = self._rows[keys >> BITS]
        is_open = rows >= 0
        if not is_open.any():
            return keys, counts
        self._make_room(len(keys) if counts is None else int(counts.sum()))
        taken = slice(None) if is_open.all() else is_open  # without a copy of them all
        places = (rows[taken].astype(np.int64) << BITS) | (keys[taken] & (SIZE - 1))
        values = np.ones(1, np.int64) if counts is None else counts[taken]
        np.add.at(self._counts.reshape(-1), places, values.astype(self._counts.dtype, copy=False))
        return keys[~is_open], None if counts is None else counts[~is_open]

    def open_crowded(self, run: Run) -> None:
        """Open the pages of which a run holds many keys."""
        self._open(np.flatnonzero(np.diff(_page_starts(run[0])) >= self._crowded))

    def merge(self, other: _Pages) -> None:
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
