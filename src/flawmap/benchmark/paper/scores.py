"""What a run's maps and scores come to: the figures and curves of the tables and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from flawmap.evaluation.metrics import PixelScores, image_auroc
from flawmap.evaluation.metrics.pixel_scores import MAX_FPR

__all__ = ["RATES", "RunScores", "image_curve"]

RATES: Mapping[str, NDArray[np.float64]] = {
    "image_roc": np.linspace(0, 1, 101),
    "pixel_roc": np.linspace(0, 1, 101),
    "pro": np.linspace(0, MAX_FPR, 61),
}
"""False-positive rates at which each curve is kept."""


class RunScores:
    """Scores of a class's test images.

    Attributes:
        n_without_mask: anomalous images with a map, but without a mask.
    """

    def __init__(self) -> None:
        self._scores: list[float] = []
        self._labels: list[int] = []
        self._pixels = PixelScores()
        self._n_masks = 0
        self.n_without_mask = 0

    def add(
        self,
        score: float,
        anomaly_map: NDArray[np.float32] | None,
        mask: NDArray[np.bool_] | None,
        *,
        is_anomalous: bool,
    ) -> None:
        """Take in an image. Pixels of an anomalous one without a mask are left out, as `flawmap evaluate` does."""
        self._scores.append(score)
        self._labels.append(int(is_anomalous))
        if anomaly_map is None:
            return
        if is_anomalous and mask is None:
            self.n_without_mask += 1
            return
        self._pixels.add(anomaly_map, mask if is_anomalous else None)
        self._n_masks += is_anomalous

    def figures(self) -> dict[str, float | None]:
        """Image AUROC, pixel AUROC and PRO, each from 0 to 1, or None where it is not defined."""
        return {
            "image_auroc": image_auroc(self._labels, self._scores),
            "pixel_auroc": self._pixels.auroc() if self._n_masks else None,
            "pro_score": self._pixels.pro() if self._n_masks else None,
        }

    def curves(self) -> dict[str, list[float]]:
        """Values at `RATES`, of the curves that are defined."""
        found = {"image_roc": image_curve(self._labels, self._scores, RATES["image_roc"])}
        for name, by_region in (("pixel_roc", False), ("pro", True)):
            found[name] = self._pixels.curve(RATES[name], by_region=by_region) if self._n_masks else None
        return {name: [round(float(y), 5) for y in curve] for name, curve in found.items() if curve is not None}


def image_curve(
    labels: Sequence[int], scores: Sequence[float], rates: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """True-positive rates of the ROC curve of image scores at some false-positive rates; None of one class only."""
    truth, values = np.asarray(labels, bool), np.asarray(scores)
    if truth.all() or not truth.any():
        return None
    thresholds = np.unique(values)[::-1]
    good, bad = np.sort(values[~truth]), np.sort(values[truth])
    x = 1 - np.searchsorted(good, thresholds) / len(good)
    y = 1 - np.searchsorted(bad, thresholds) / len(bad)
    curve: NDArray[np.float64] = np.interp(rates, np.append(0, x), np.append(0, y))
    return curve
