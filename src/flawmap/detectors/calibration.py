"""From held-out scores of good images to a decision: the same for all detectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from flawmap.decision import PIXEL_RATES, Decision, PixelHistogram
from flawmap.prediction import Placement

__all__ = ["HeldOutScores", "all_scores"]


@dataclass
class HeldOutScores:
    """Scores of good images by models that have not seen them, in any order.

    Attributes:
        indices: of each image in the training order.
        scores: image scores.
        groups: the group of each image; empty if every image stands alone.
        pixels: how often the values of their anomaly maps occur.
        duplicates: pairs of indices of near-duplicates in different groups, the earlier first.
    """

    indices: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    pixels: PixelHistogram = field(default_factory=PixelHistogram)
    duplicates: list[tuple[int, int]] = field(default_factory=list)

    def add_map(self, anomaly_map: NDArray[np.float32], placement: Placement) -> None:
        """Count the values of a good image's map (H, W), without the padding of a letterbox."""
        top, left, bottom, right = placement.content
        self.pixels.add(anomaly_map[top:bottom, left:right])

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


def all_scores(scores: Sequence[float] | NDArray[np.floating]) -> HeldOutScores:
    """Scores of all good images, in the training order."""
    return HeldOutScores(list(range(len(scores))), [float(score) for score in scores])
