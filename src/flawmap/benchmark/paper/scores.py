"""Figures and curves of a run, from the scores and pixels of its good and its anomalous test images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from flawmap.decision import Decision
from flawmap.evaluation.figures import ImageGroup, group_figures, promising_threshold
from flawmap.evaluation.metrics import PixelScores
from flawmap.evaluation.metrics.pixel_scores import MAX_FPR

RATES: Mapping[str, NDArray[np.float64]] = {
    "image_roc": np.linspace(0, 1, 101),
    "pixel_roc": np.linspace(0, 1, 101),
    "pro": np.linspace(0, MAX_FPR, 61),
}
"""False-positive rates of each stored curve."""


FIGURES = ("image_auroc", "pixel_auroc", "pro_score", "found_at_5", "flagged_at_5")
"""Figures of a run; the last two, of the threshold for 5 % false alarms, are missing in files of earlier versions."""


def run_figures(good: ImageGroup, anomalous: ImageGroup, decision: Decision | None = None) -> dict[str, float | None]:
    """`FIGURES`, each from 0 to 1, or None where it is not defined; `decision` holds the held-out scores."""
    figures = asdict(group_figures(good, [anomalous], 0, threshold=promising_threshold(decision)))
    return {name: figures[name] for name in FIGURES}


def run_curves(good: ImageGroup, anomalous: ImageGroup) -> dict[str, list[float]]:
    """Values at `RATES`, of the curves that are defined."""
    images = PixelScores()  # one image counts as one pixel
    if scores := good.scores + anomalous.scores:
        images.add([scores], [[False] * len(good.scores) + [True] * len(anomalous.scores)])
    found = {"image_roc": images.curve(RATES["image_roc"])}
    if anomalous.n_masked:
        found["pixel_roc"] = good.pixels.curve(RATES["pixel_roc"], [anomalous.pixels])
        found["pro"] = good.pixels.curve(RATES["pro"], [anomalous.pixels], by_region=True)
    return {name: [round(float(y), 5) for y in curve] for name, curve in found.items() if curve is not None}
