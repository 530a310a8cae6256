"""How often each score occurs: an exact multiset of float32 scores that streams and merges.

Sparse scores lie in sorted runs, each at least twice as long as the next, so that sorting and merging cost n log n in
all. Dense scores, as those of smooth maps soon are, are counted in pages without sorting. Either way memory grows with
the number of distinct scores, not of pixels. Counts and weights are integers: the order of adding and merging is
irrelevant.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flawmap.errors import ParameterError
from flawmap.evaluation.metrics.score_pages import (
    CROWDED,
    NO_RUN,
    PAGES_OF_SLICE,
    WIDEST,
    Counts,
    Keys,
    Run,
    ScorePages,
    keys_of,
    page_starts,
    scores_of,
)

__all__ = ["ScoreCounts", "ranked"]

BUFFER = 2**22
MAX_RAW = 2**12
"""Arrays of scores in the buffer, however short."""


class ScoreCounts:
    """Total count, or weight, of each distinct score. Adding and merging commute and associate exactly.

    Args:
        buffer: scores that are kept as they come before they are counted.
        crowded, widest: as for `ScorePages`.
    """

    def __init__(self, *, buffer: int = BUFFER, crowded: int = CROWDED, widest: int = WIDEST) -> None:
        self._buffer = buffer
        self._raw: list[tuple[Keys, Counts | None]] = []
        self._n_raw = 0
        self._runs: list[Run] = []
        self._pages = ScorePages(
            crowded=crowded, widest=widest
        )  # a score may be counted here and in any number of runs: its counts add up

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
        starts = [page_starts(keys)[::PAGES_OF_SLICE] for keys, _ in self._runs]
        occupied = reduce(np.logical_or, [np.diff(start) > 0 for start in starts], self._pages.opened())
        for index, is_occupied in enumerate(occupied.tolist()):
            if not is_occupied:
                yield NO_RUN
                continue
            slices = [slice(start[index], start[index + 1]) for start in starts]
            parts = [(keys[part], counts[part]) for (keys, counts), part in zip(self._runs, slices, strict=True)]
            yield _merge([self._pages.run(index), *parts])

    def _take(self, keys: Keys, counts: Counts | None) -> None:
        rest = ~self._pages.add(keys, counts)
        if not rest.any():
            return
        if not rest.all():
            keys, counts = keys[rest], None if counts is None else counts[rest]
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
        rest = ~self._pages.add(*run)
        if rest.any():
            self._runs.append(run if rest.all() else (run[0][rest], run[1][rest]))


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
