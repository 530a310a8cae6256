"""Figures of merit: image AUROC, pixel AUROC, PRO score."""

from flawmap.metrics.auroc import image_auroc
from flawmap.metrics.pixel_scores import PixelScores, pixel_auroc, pro_score
from flawmap.metrics.rates import Rate

__all__ = ["PixelScores", "Rate", "image_auroc", "pixel_auroc", "pro_score"]
