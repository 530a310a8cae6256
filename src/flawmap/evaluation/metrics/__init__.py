"""Figures of merit: image AUROC, pixel AUROC, PRO and sPRO score, error rates, thresholds from labels, reliability."""

from flawmap.evaluation.metrics.image_scores import (
    OperatingPoint,
    Rate,
    Reliability,
    best_threshold,
    error_rates,
    image_auroc,
    reliability,
    scored_lower,
)
from flawmap.evaluation.metrics.pixel_scores import Defect, PixelScores, pixel_auroc, pro_score

__all__ = [
    "Defect",
    "OperatingPoint",
    "PixelScores",
    "Rate",
    "Reliability",
    "best_threshold",
    "error_rates",
    "image_auroc",
    "pixel_auroc",
    "pro_score",
    "reliability",
    "scored_lower",
]
