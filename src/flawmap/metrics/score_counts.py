"""How often each score occurs: an exact multiset of float32 scores that streams and merges.

Memory grows with the number of distinct scores, not with the number of pixels: smooth maps of thousands of images share
most of their float32 values.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["ScoreCounts"]

BUFFER = 2**24
"""Scores kept as they came before they are counted."""

Run = tuple[NDArray[np.float32], NDArray[np.float64]]


class ScoreCounts:
    """Total weight of each distinct score. Adding and merging commute."""

    def __init__(self) -> None:
        self._raw: list[Run] = []
        self._n_raw = 0
        self._runs: list[Run] = []  # sorted, distinct; each at least twice as long as the next

    def add(self, scores: NDArray[np.float32], weights: NDArray[np.float64] | None = None) -> None:
        """Count scores (N,) without NaN, each once or by its weight (N,)."""
        scores = scores + np.float32(0)  # a copy, in which -0 is 0
        self._raw.append((scores, np.ones(0) if weights is None else weights))
        self._n_raw += len(scores)
        if self._n_raw >= BUFFER:
            self._flush()

    def merge(self, other: ScoreCounts) -> None:
        """Count all that `other` has counted."""
        other._flush()
        for run in other._runs:
            self._push(run)

    def items(self) -> Run:
        """Distinct scores, ascending, and the total weight of each."""
        self._flush()
        while len(self._runs) > 1:
            self._runs.append(_merge(self._runs.pop(), self._runs.pop()))
        return self._runs[0] if self._runs else (np.empty(0, np.float32), np.empty(0))

    def _flush(self) -> None:
        raw, self._raw, self._n_raw = self._raw, [], 0
        plain = [scores for scores, weights in raw if len(weights) == 0]
        if plain:
            self._push(_count((np.concatenate(plain), np.ones(0))))
        weighted = [run for run in raw if len(run[1])]
        if weighted:
            self._push(_count((np.concatenate([s for s, _ in weighted]), np.concatenate([w for _, w in weighted]))))

    def _push(self, run: Run) -> None:
        if len(run[0]) == 0:
            return
        while self._runs and len(self._runs[-1][0]) < 2 * len(run[0]):
            run = _merge(self._runs.pop(), run)
        self._runs.append(run)


def _count(raw: Run) -> Run:
    """Sorted distinct scores and their weights; an empty weight array means one each."""
    scores, weights = raw
    if len(weights) == 0:
        distinct, counts = np.unique(scores, return_counts=True)
        return distinct, counts.astype(np.float64)
    distinct, place = np.unique(scores, return_inverse=True)
    return distinct, np.bincount(place, weights, minlength=len(distinct)).astype(np.float64)


def _merge(one: Run, other: Run) -> Run:
    """Union of two sorted runs, weights of equal scores added."""
    if len(one[0]) < len(other[0]):
        one, other = other, one
    place = np.searchsorted(one[0], other[0])
    known = place < len(one[0])
    known[known] = one[0][place[known]] == other[0][known]
    weights = one[1].copy()
    weights[place[known]] += other[1][known]
    new = ~known
    if not new.any():
        return one[0], weights
    target = place[new] + np.arange(int(new.sum()))
    old = np.ones(len(one[0]) + len(target), bool)
    old[target] = False
    scores, merged = np.empty(len(old), np.float32), np.empty(len(old))
    scores[target], merged[target] = other[0][new], other[1][new]
    scores[old], merged[old] = one[0], weights
    return scores, merged
