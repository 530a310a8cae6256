"""Figures of merit: image AUROC, pixel AUROC, PRO score, error rates, thresholds from labels, kept promises."""

from flawmap.metrics.auroc import image_auroc
from flawmap.metrics.operating_point import Criterion, OperatingPoint, best_threshold, error_rates
from flawmap.metrics.pixel_scores import PixelScores, pixel_auroc, pro_score
from flawmap.metrics.rates import Rate
from flawmap.metrics.reliability import Reliability, reliability

__all__ = [
    "Criterion",
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
]
