"""Figures of merit: image AUROC, pixel AUROC, PRO score."""

from flawmap.metrics.auroc import image_auroc
from flawmap.metrics.pixel_scores import PixelScores, pixel_auroc, pro_score

__all__ = ["PixelScores", "image_auroc", "pixel_auroc", "pro_score"]
