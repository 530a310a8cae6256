"""Figures and curves of a run, from its maps and scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from flawmap.evaluation.evaluate import ImageGroup, group_figures
from flawmap.evaluation.metrics import PixelScores
from flawmap.evaluation.metrics.pixel_scores import MAX_FPR

__all__ = ["RATES", "RunScores"]

RATES: Mapping[str, NDArray[np.float64]] = {
    "image_roc": np.linspace(0, 1, 101),
    "pixel_roc": np.linspace(0, 1, 101),
    "pro": np.linspace(0, MAX_FPR, 61),
}
"""False-positive rates of each stored curve."""


class RunScores:
    """Scores of a class's test images."""

    def __init__(self) -> None:
        self._good, self._anomalous = ImageGroup(is_anomalous=False), ImageGroup(is_anomalous=True)

    @property
    def n_without_mask(self) -> int:
        """Anomalous images with a map, but without a mask."""
        return self._anomalous.n_without_mask

    def add(
        self,
        score: float,
        anomaly_map: NDArray[np.float32] | None,
        mask: NDArray[np.bool_] | None,
        *,
        is_anomalous: bool,
    ) -> None:
        """Add an image. Pixel figures leave out an anomalous one without a mask, as `flawmap evaluate` does."""
        (self._anomalous if is_anomalous else self._good).add(score, anomaly_map, mask)

    def figures(self) -> dict[str, float | None]:
        """Image AUROC, pixel AUROC and PRO, each from 0 to 1, or None where it is not defined."""
        figures = asdict(group_figures(self._good, [self._anomalous], 0))
        return {name: figures[name] for name in ("image_auroc", "pixel_auroc", "pro_score")}

    def curves(self) -> dict[str, list[float]]:
        """Values at `RATES`, of the curves that are defined."""
        images = PixelScores()  # one image counts as one pixel
        good, anomalous = self._good.scores, self._anomalous.scores
        if good or anomalous:
            images.add([good + anomalous], [[False] * len(good) + [True] * len(anomalous)])
        found = {"image_roc": images.curve(RATES["image_roc"])}
        if self._anomalous.n_masked:
            pixels, others = self._good.pixels, [self._anomalous.pixels]
            found["pixel_roc"] = pixels.curve(RATES["pixel_roc"], others)
            found["pro"] = pixels.curve(RATES["pro"], others, by_region=True)
        return {name: [round(float(y), 5) for y in curve] for name, curve in found.items() if curve is not None}
