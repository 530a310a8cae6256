"""Pixel AUROC, PRO and sPRO score over any number of anomaly maps, exact and in one pass.

Pixel AUROC needs how often each score occurs in normal and in anomalous pixels. PRO (Bergmann et al. 2021) at a
threshold is the mean over ground-truth regions of the share of their pixels at or above it: the same count, with every
anomalous pixel weighted by one over its region's size. No grid of thresholds is needed. sPRO (Bergmann et al. 2022)
takes a defect for found as soon as so many of its pixels are at or above the threshold: of its pixels those of the
highest scores count, as many as that, each weighted by one over that number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest

import cc3d
import numpy as np
from numpy.typing import ArrayLike, NDArray

from flawmap.errors import ParameterError
from flawmap.evaluation.metrics.score_counts import ScoreCounts, ranked

MAX_FPR = 0.3
"""False-positive rate up to which PRO is integrated."""
SPRO_MAX_FPR = 0.05
"""False-positive rate up to which sPRO is integrated."""

REGION_WEIGHT = 2**42
"""Weight of a region, in integers so that sums are the same in any order.

The shares of its pixels are rounded, which changes its weight by at most one part in 2**43 / size: 1e-8 for 65,536
pixels.
"""
MAX_REGIONS = 2_000_000
"""Regions whose weights fit an int64 even if all their pixels have one score."""
CORNERS = 2**15
"""Corners of a curve that are kept for each part."""

Defect = tuple[ArrayLike, float]
"""Mask (H, W) of a defect, and the number of its pixels that must be found."""


class PixelScores:
    """Scores of normal and anomalous pixels. Maps are added one by one; the order of adding and merging is irrelevant.

    Args:
        max_regions: ParameterError for more ground-truth regions.
        new_counts: makes the counts of scores.

    Attributes:
        n_maps: maps added.
        n_regions: 8-connected regions of their ground truth.
        n_normal: pixels outside all regions.
        n_anomalous: pixels of the regions.
        n_defects: defects with a saturation.

    Example:
        >>> pixels = PixelScores()
        >>> pixels.add([[0.1, 0.2], [0.9, 0.3]], [[0, 0], [1, 0]])
        >>> pixels.auroc(), pixels.pro()
        (1.0, 1.0)
    """

    def __init__(self, *, max_regions: int = MAX_REGIONS, new_counts: Callable[[], ScoreCounts] = ScoreCounts) -> None:
        self.n_maps = self.n_regions = self.n_normal = self.n_anomalous = self.n_defects = 0
        self._max_regions = max_regions
        self._normal = new_counts()
        self._anomalous = new_counts()
        self._overlap = new_counts()  # anomalous pixels, weighted by one over their region's size
        self._saturated = new_counts()  # pixels of defects, as many as saturate them, weighted by one over their number

    def add(
        self,
        anomaly_map: ArrayLike,
        gt_mask: ArrayLike | None = None,
        *,
        defects: Sequence[Defect] = (),
        inspected: ArrayLike | None = None,
    ) -> None:
        """Add a map (H, W), as float32, and its ground truth (H, W), True where anomalous; None for a good image.

        `defects`, for sPRO, are the parts of the ground truth, which may overlap: the mask (H, W) of each, and the
        number of its pixels, maybe a fraction, that must be found for it to count as found whole. Of map and ground
        truth only the pixels `inspected` (H, W) count; None for all. Infinite scores are allowed. Raises ParameterError
        for other shapes, NaN, a mask that is neither bool nor integer, and a defect outside the ground truth or without
        pixels to be found; nothing is added then.
        """
        scores = _checked_scores(anomaly_map)
        mask = np.zeros(scores.shape, bool) if gt_mask is None else _checked_mask(gt_mask, scores.shape)
        counted = np.ones(scores.shape, bool) if inspected is None else _checked_mask(inspected, scores.shape)
        mask = mask & counted
        found = [(scores[_checked_defect(one, area, mask)], area) for one, area in defects]
        self._check_regions(self.n_defects + len(found))
        for own, area in found:
            self._saturated.add(*_saturated(own, area))
        self.n_defects += len(found)
        anomalous = scores[mask]
        if len(anomalous):
            self._add_regions(anomalous, mask)
        normal = scores[counted & ~mask]
        self._normal.add(normal)
        self.n_maps += 1
        self.n_anomalous += len(anomalous)
        self.n_normal += len(normal)

    def merge(self, other: PixelScores) -> None:
        """Add all maps of `other`; `other` stays as it is."""
        self._check_regions(self.n_regions + other.n_regions)
        self._check_regions(self.n_defects + other.n_defects)
        self._normal.merge(other._normal)
        self._anomalous.merge(other._anomalous)
        self._overlap.merge(other._overlap)
        self._saturated.merge(other._saturated)
        self.n_maps += other.n_maps
        self.n_regions += other.n_regions
        self.n_normal += other.n_normal
        self.n_anomalous += other.n_anomalous
        self.n_defects += other.n_defects

    def auroc(self, others: Sequence[PixelScores] = ()) -> float | None:
        """Area under the pixels' ROC curve, ties counted half; None without anomalous or without normal pixels.

        With `others` that of all maps together, as if merged, without the memory that merging takes.
        """
        parts = (self, *others)
        n_normal, n_anomalous = sum(part.n_normal for part in parts), sum(part.n_anomalous for part in parts)
        if not n_normal or not n_anomalous:
            return None
        n_below = 0.0
        for counts, below, equal in ranked([part._anomalous for part in parts], [part._normal for part in parts]):
            n_below += float(np.sum(counts * (below + equal / 2)))
        return min(1.0, n_below / n_normal / n_anomalous)

    def pro(self, others: Sequence[PixelScores] = (), *, max_fpr: float = MAX_FPR) -> float | None:
        """Mean per-region overlap up to a false-positive rate, over that rate: 0 to 1; None, and `others`, as `auroc`.

        The curve starts at (0, 0). It rises by a pixel's weight while the rate goes from that of the scores above it to
        that of the scores at or above it, in a straight line; the area under each rise, cut off at `max_fpr`, is known
        in closed form. Raises ParameterError unless 0 < max_fpr <= 1.
        """
        parts = (self, *others)
        self._check_regions(sum(part.n_regions for part in parts))
        return self._area([part._overlap for part in parts], others, max_fpr)

    def spro(self, others: Sequence[PixelScores] = (), *, max_fpr: float = SPRO_MAX_FPR) -> float | None:
        """Mean saturated per-region overlap of the defects, as `pro`; None without defects or without normal pixels."""
        parts = (self, *others)
        self._check_regions(sum(part.n_defects for part in parts))
        return self._area([part._saturated for part in parts], others, max_fpr)

    def _area(self, weighted: Sequence[ScoreCounts], others: Sequence[PixelScores], max_fpr: float) -> float | None:
        """Area below the curve of the weights' share over the false-positive rate, up to `max_fpr`, over that rate."""
        if not 0 < max_fpr <= 1:
            raise ParameterError(f"expected max_fpr above 0 and at most 1, got {max_fpr}")
        parts = (self, *others)
        n_normal = sum(part.n_normal for part in parts)
        if not n_normal:
            return None
        total = area = 0.0
        for weights, below, equal in ranked(weighted, [part._normal for part in parts]):
            start, width = (n_normal - below - equal) / n_normal, equal / n_normal
            rise = np.clip(max_fpr - start, 0, width)
            share = np.divide(rise, width, out=np.zeros_like(rise), where=equal > 0)
            area += float(np.sum(weights * (share * rise / 2 + np.clip(max_fpr - start - width, 0, None))))
            total += float(np.sum(weights))
        return min(1.0, area / total / max_fpr) if total else None

    def curve(
        self, rates: NDArray[np.float64], others: Sequence[PixelScores] = (), *, by_region: bool = False
    ) -> NDArray[np.float64] | None:
        """Share of anomalous pixels found at false-positive rates (n,): the ROC curve; None, and `others`, as `auroc`.

        `by_region` gives all regions the same weight, whatever their size: the curve that PRO integrates. For drawing:
        a curve with more than some 30,000 corners loses some of them.
        """
        parts = (self, *others)
        n_normal = sum(part.n_normal for part in parts)
        if not n_normal or not any(part.n_anomalous for part in parts):
            return None
        x, y, total = [np.ones(1)], [np.zeros(1)], 0.0
        anomalous = [part._overlap if by_region else part._anomalous for part in parts]
        for counts, below, equal in ranked(anomalous, [part._normal for part in parts]):
            found = total + np.cumsum(counts, dtype=np.float64)  # at or below each score
            ends = np.stack([n_normal - below, n_normal - below - equal], axis=1).ravel() / n_normal
            shares = np.stack([found - counts, found], axis=1).ravel()
            kept = np.unique(np.linspace(0, len(ends) - 1, CORNERS).astype(np.int64))
            x.append(ends[kept])
            y.append(shares[kept])
            total = float(found[-1])
        shown: NDArray[np.float64] = np.interp(
            rates, np.append(0, np.concatenate(x)[::-1]), np.append(0, 1 - np.concatenate(y)[::-1] / total)
        )
        return shown

    def _add_regions(self, anomalous: NDArray[np.float32], mask: NDArray[np.bool_]) -> None:
        labels, n_regions = cc3d.connected_components(mask, connectivity=8, return_N=True)
        self._check_regions(self.n_regions + n_regions)
        region = labels[mask]
        sizes = np.bincount(region)
        self._anomalous.add(anomalous)
        self._overlap.add(anomalous, np.rint(REGION_WEIGHT / sizes[region]).astype(np.int64))
        self.n_regions += n_regions

    def _check_regions(self, n_regions: int) -> None:
        if n_regions > self._max_regions:
            raise ParameterError(
                f"expected at most {self._max_regions} ground-truth regions, got {n_regions}; score in parts"
            )


def _saturated(scores: NDArray[np.float32], area: float) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The highest scores of a defect, as many as saturate it, and their weights, whose sum is `REGION_WEIGHT`."""
    n = math.ceil(area)
    highest = np.sort(scores)[-n:]
    weights = np.full(n, round(REGION_WEIGHT / area) if n > 1 else REGION_WEIGHT)
    weights[0] = REGION_WEIGHT - int(weights[1:].sum())  # the lowest has what is left, of a fraction less
    return highest[weights > 0], weights[weights > 0]


def pixel_auroc(masks: Iterable[ArrayLike | None], maps: Iterable[ArrayLike]) -> float | None:
    """Pixel AUROC over masks (H, W), None for good images, and their maps (H, W); see `PixelScores`."""
    return _gather(masks, maps).auroc()


def pro_score(
    masks: Iterable[ArrayLike | None], maps: Iterable[ArrayLike], *, max_fpr: float = MAX_FPR
) -> float | None:
    """PRO score over masks (H, W), None for good images, and their maps (H, W); see `PixelScores`."""
    return _gather(masks, maps).pro(max_fpr=max_fpr)


def _checked_defect(defect: ArrayLike, area: float, gt_mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    mask = _checked_mask(defect, gt_mask.shape)
    n_pixels = np.count_nonzero(mask)
    if not 0 < area <= n_pixels or (mask & ~gt_mask).any():
        raise ParameterError(
            f"expected a defect within its ground truth that counts as found from above 0 to all of its {n_pixels} "
            f"pixels on, got {area:g}"
        )
    return mask


def _gather(masks: Iterable[ArrayLike | None], maps: Iterable[ArrayLike]) -> PixelScores:
    pixels = PixelScores()
    for mask, anomaly_map in zip_longest(zip(masks), zip(maps)):  # tuples of one, for a mask may be None
        if mask is None or anomaly_map is None:
            raise ParameterError(f"expected as many masks as maps, got one without the other after {pixels.n_maps}")
        pixels.add(anomaly_map[0], mask[0])
    return pixels


def _checked_scores(anomaly_map: ArrayLike) -> NDArray[np.float32]:
    scores = np.asarray(anomaly_map, np.float32)
    if scores.ndim != 2 or scores.size == 0:
        raise ParameterError(f"expected an anomaly map (H, W), got an array of shape {scores.shape}")
    if np.isnan(scores).any():
        raise ParameterError("expected an anomaly map of numbers, got NaN")
    return scores


def _checked_mask(gt_mask: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    mask = np.asarray(gt_mask)
    if mask.shape != shape:
        raise ParameterError(f"expected a mask of its map's shape {shape}, got one of shape {mask.shape}")
    if mask.dtype.kind not in "biu":
        raise ParameterError(f"expected a mask of booleans, or of integers with 0 for normal, got {mask.dtype}")
    return mask.astype(bool)
