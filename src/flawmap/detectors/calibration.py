"""From held-out scores of good images to a decision: the same for all detectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from flawmap.decision import MOST, PIXEL_RATES, Decision, map_score
from flawmap.prediction import Placement


class PixelHistogram:
    """Counts of anomaly-map values in bins of equal ratio, from which any quantile follows within 0.3 %.

    Attributes:
        counts: (BINS,) values in each bin; the first also holds all smaller ones, the last all larger ones.
    """

    BINS = 24576
    LOWEST, HIGHEST = 1e-8, 1e18

    def __init__(self) -> None:
        self.counts = np.zeros(self.BINS, np.int64)

    def add(self, values: NDArray[np.float32]) -> None:
        """Count values of any shape."""
        scale = (self.BINS - 1) / math.log(self.HIGHEST / self.LOWEST)
        place = np.log(np.maximum(values.ravel(), self.LOWEST) / self.LOWEST) * scale
        self.counts += np.bincount(np.minimum(place, self.BINS - 1).astype(np.int64), minlength=self.BINS)

    def exceeded_by(self, rates: NDArray[np.float64]) -> NDArray[np.float32]:
        """Values that these shares of all values exceed, each rounded up to the edge of a bin."""
        ends = np.cumsum(self.counts)
        place = np.searchsorted(ends, (1 - rates) * ends[-1])
        step = math.log(self.HIGHEST / self.LOWEST) / (self.BINS - 1)
        return np.asarray(self.LOWEST * np.exp(step * np.minimum(place + 1, self.BINS - 1)), np.float32)


@dataclass
class HeldOutScores:
    """Scores of good images by models that have not seen them, in any order.

    Attributes:
        indices: of each image in the training order.
        scores: image scores.
        groups: the group of each image; empty if every image stands alone.
        pixels: how often the values of their anomaly maps occur.
        duplicates: pairs of indices of near-duplicates in different groups, the earlier first.
        top_share: part of a map whose mean is its score; 0 for its highest value.

    Example:
        >>> held_out = HeldOutScores()
        >>> held_out.add(index=0, score=1.5)
        >>> held_out.in_order()[1].scores.tolist()
        [1.5]
    """

    indices: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    pixels: PixelHistogram = field(default_factory=PixelHistogram)
    duplicates: list[tuple[int, int]] = field(default_factory=list)
    top_share: float = 0.0

    def add(self, index: int, score: float, *, group: int | None = None) -> None:
        """Add a good image by its score."""
        self.indices.append(index)
        self.scores.append(score)
        if group is not None:
            self.groups.append(group)

    def add_map(
        self, index: int, anomaly_map: NDArray[np.float32], placement: Placement, *, group: int | None = None
    ) -> None:
        """Add a good image by its map (H, W), of which the padding of a letterbox does not count."""
        self.add(index, self.count(anomaly_map, placement), group=group)

    def count(self, anomaly_map: NDArray[np.float32], placement: Placement) -> float:
        """Count the values of a good image's map (H, W), without the padding; gives its score."""
        top, left, bottom, right = placement.content
        self.pixels.add(anomaly_map[top:bottom, left:right])
        return map_score(anomaly_map[top:bottom, left:right], self.top_share)

    def in_order(self) -> tuple[list[int], Decision]:
        """Indices, ascending, and the undecided decision by their scores."""
        order = np.argsort(self.indices, kind="stable")
        sizes = self._group_sizes()
        quantiles = self.pixels.exceeded_by(PIXEL_RATES) if self.pixels.counts.any() else np.zeros(0, np.float32)
        scores = np.array(self.scores, np.float32)[order]
        decision = Decision(scores, quantiles, group_sizes=None if sizes is None else sizes[order])
        return [self.indices[i] for i in order], decision

    def _group_sizes(self) -> NDArray[np.float32] | None:
        if not self.groups:
            return None
        sizes = np.bincount(self.groups)[self.groups].astype(np.float32)
        return sizes if sizes.max() > 1 else None


def conclude(
    held_out: HeldOutScores | None, names: Sequence[str], rate: float, *, lost: Sequence[int] = ()
) -> tuple[Decision | None, tuple[str, ...], tuple[tuple[str, str], ...]]:
    """The decision at a false-alarm rate, outliers and near-duplicates, by the `names` of the good images.

    `lost` are indices of images whose part was not found: such are flagged, and count as higher than any score.
    """
    if held_out is None or not held_out.scores:
        return None, (), ()
    for index in lost:
        held_out.add(index, MOST, group=max(held_out.groups) + 1 if held_out.groups else None)
    indices, decision = held_out.in_order()
    outliers = tuple(names[indices[i]] for i in decision.outliers())
    duplicates = tuple((names[earlier], names[later]) for earlier, later in held_out.duplicates)
    return decision.at_rate(rate), outliers, duplicates


def all_scores(scores: Sequence[float] | NDArray[np.floating]) -> HeldOutScores:
    """Scores of all good images, in the training order."""
    return HeldOutScores(list(range(len(scores))), [float(score) for score in scores])
