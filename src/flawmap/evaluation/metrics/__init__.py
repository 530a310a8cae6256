"""Figures of merit: image AUROC, pixel AUROC, PRO score, error rates, thresholds from labels, kept promises."""

from flawmap.evaluation.metrics.auroc import image_auroc
from flawmap.evaluation.metrics.operating_point import Criterion, OperatingPoint, best_threshold, error_rates
from flawmap.evaluation.metrics.pixel_scores import PixelScores, pixel_auroc, pro_score
from flawmap.evaluation.metrics.rates import Rate
from flawmap.evaluation.metrics.reliability import Reliability, reliability

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
