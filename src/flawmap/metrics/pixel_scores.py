"""Pixel AUROC and PRO score over any number of anomaly maps, exact and in one pass.

Pixel AUROC needs how often each score occurs in normal and in anomalous pixels. PRO (Bergmann et al. 2021) at a
threshold is the mean over ground-truth regions of the share of their pixels at or above it: the same count, with every
anomalous pixel weighted by one over its region's size. No grid of thresholds is needed.
"""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np
from numpy.typing import NDArray

from flawmap.errors import ParameterError
from flawmap.metrics.score_counts import ScoreCounts

__all__ = ["MAX_FPR", "PixelScores", "pixel_auroc", "pro_score"]

MAX_FPR = 0.3
"""False-positive rate up to which PRO is integrated."""


class PixelScores:
    """Scores of normal and anomalous pixels; maps are added one by one, parts merge."""

    def __init__(self) -> None:
        self.n_regions = 0
        self._negative = ScoreCounts()
        self._positive = ScoreCounts()
        self._overlap = ScoreCounts()  # anomalous pixels, weighted by one over their region's size

    def add(self, anomaly_map: NDArray[np.float32], gt_mask: NDArray[np.bool_] | None = None) -> None:
        """Take in a map (H, W) and its ground truth (H, W), True where anomalous; None for a good image."""
        scores = np.asarray(anomaly_map, np.float32)
        if scores.ndim != 2 or (gt_mask is not None and np.shape(gt_mask) != scores.shape):
            shape = None if gt_mask is None else np.shape(gt_mask)
            raise ParameterError(f"expected a map (H, W) and a mask of its shape, got {scores.shape} and {shape}")
        if np.isnan(scores).any():
            raise ParameterError("an anomaly map holds NaN")
        if gt_mask is None or not np.any(gt_mask):
            self._negative.add(scores.ravel())
            return
        mask = np.asarray(gt_mask, bool)
        n_labels, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        region = labels[mask]
        sizes = np.bincount(region, minlength=n_labels)
        self.n_regions += n_labels - 1
        self._negative.add(scores[~mask])
        self._positive.add(scores[mask])
        self._overlap.add(scores[mask], 1 / sizes[region])

    def merge(self, other: PixelScores) -> None:
        """Take in all that `other` has seen."""
        self.n_regions += other.n_regions
        self._negative.merge(other._negative)
        self._positive.merge(other._positive)
        self._overlap.merge(other._overlap)

    def auroc(self) -> float | None:
        """Area under the pixels' ROC curve, ties counted half; None without anomalous or without normal pixels."""
        scores, counts = self._positive.items()
        rates = self._false_positive_rates(scores)
        if rates is None:
            return None
        above, at = rates
        return float(counts @ (1 - above - at / 2) / counts.sum())

    def pro(self, *, max_fpr: float = MAX_FPR) -> float | None:
        """Mean per-region overlap up to a false-positive rate, over that rate: 0 to 1; None as for `auroc`.

        The curve rises by a pixel's weight while the rate goes from that of the scores above it to that of the scores
        at or above it, in a straight line; the area under each rise, cut off at `max_fpr`, is known in closed form.
        """
        if not 0 < max_fpr <= 1:
            raise ParameterError(f"max_fpr must lie above 0 and at most at 1, got {max_fpr}")
        scores, weights = self._overlap.items()
        rates = self._false_positive_rates(scores)
        if rates is None:
            return None
        above, at = rates
        rise = np.clip(max_fpr - above, 0, at)
        slope = np.divide(rise, at, out=np.zeros_like(rise), where=at > 0)
        area = slope * rise / 2 + np.clip(max_fpr - above - at, 0, None)
        return float(np.clip(weights @ area / (self.n_regions * max_fpr), 0, 1))

    def _false_positive_rates(
        self, scores: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """Share of the normal pixels above each score, and at it; None if there are no scores or no normal pixels."""
        negative, counts = self._negative.items()
        if len(scores) == 0 or len(negative) == 0:
            return None
        below = np.concatenate([[0.0], np.cumsum(counts)])
        left, right = below[np.searchsorted(negative, scores)], below[np.searchsorted(negative, scores, side="right")]
        return 1 - right / below[-1], (right - left) / below[-1]


def pixel_auroc(maps: Iterable[NDArray[np.float32]], masks: Iterable[NDArray[np.bool_] | None]) -> float | None:
    """Pixel AUROC over maps (H, W) and their masks (H, W), None for good images."""
    return _gather(maps, masks).auroc()


def pro_score(
    maps: Iterable[NDArray[np.float32]], masks: Iterable[NDArray[np.bool_] | None], *, max_fpr: float = MAX_FPR
) -> float | None:
    """PRO score over maps (H, W) and their masks (H, W), None for good images."""
    return _gather(maps, masks).pro(max_fpr=max_fpr)


def _gather(maps: Iterable[NDArray[np.float32]], masks: Iterable[NDArray[np.bool_] | None]) -> PixelScores:
    pixels = PixelScores()
    for anomaly_map, mask in zip(maps, masks, strict=True):
        pixels.add(anomaly_map, mask)
    return pixels
