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
        false_alarms, hits = self._curve(self._positive)
        if len(hits) == 0 or not false_alarms[-1] or not hits[-1]:
            return None
        area = np.trapezoid(hits, false_alarms) if hasattr(np, "trapezoid") else np.trapz(hits, false_alarms)
        return float(np.clip(area / (false_alarms[-1] * hits[-1]), 0, 1))

    def pro(self, *, max_fpr: float = MAX_FPR) -> float | None:
        """Mean per-region overlap up to a false-positive rate, over that rate: 0 to 1; None as for `auroc`."""
        if not 0 < max_fpr <= 1:
            raise ParameterError(f"max_fpr must lie above 0 and at most at 1, got {max_fpr}")
        false_alarms, overlap = self._curve(self._overlap)
        if len(overlap) == 0 or not false_alarms[-1] or not self.n_regions:
            return None
        rate, overlap = false_alarms / false_alarms[-1], overlap / self.n_regions
        end = int(np.searchsorted(rate, max_fpr, side="right"))
        last = np.interp(max_fpr, rate[end - 1 : end + 1], overlap[end - 1 : end + 1])
        x, y = np.append(rate[:end], max_fpr), np.append(overlap[:end], last)
        return float(np.clip(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) / max_fpr, 0, 1))

    def _curve(self, positives: ScoreCounts) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weight of negatives and of positives at or above each distinct score, from (0, 0) on, falling scores."""
        negative, counts = self._negative.items()
        positive, weights = positives.items()
        scores = np.union1d(negative, positive)[::-1]
        steps = np.zeros((2, len(scores) + 1))
        steps[0, len(scores) - np.searchsorted(scores[::-1], negative)] = counts
        steps[1, len(scores) - np.searchsorted(scores[::-1], positive)] = weights
        np.cumsum(steps, axis=1, out=steps)
        return steps[0], steps[1]


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
