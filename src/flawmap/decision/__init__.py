"""From scores to labels: thresholds, p-values, what is guaranteed, and labels of a whole batch."""

from flawmap.decision.changes import changed
from flawmap.decision.decision import (
    FALSE_ALARM_RATE,
    MOST,
    PIXEL_FALSE_ALARM_RATE,
    PIXEL_RATES,
    STRIDE,
    TOP_SHARE,
    Decision,
    GoodPhotos,
    find_regions,
    has_proportions,
    judge,
    map_score,
    n_highest,
)
from flawmap.decision.discovery import discover, fewest_discoveries, label_batch
from flawmap.decision.guarantee import CONFIDENCE, images_needed, upper_bound

__all__ = [
    "CONFIDENCE",
    "FALSE_ALARM_RATE",
    "MOST",
    "PIXEL_FALSE_ALARM_RATE",
    "PIXEL_RATES",
    "STRIDE",
    "TOP_SHARE",
    "Decision",
    "GoodPhotos",
    "changed",
    "discover",
    "fewest_discoveries",
    "find_regions",
    "has_proportions",
    "images_needed",
    "judge",
    "label_batch",
    "map_score",
    "n_highest",
    "upper_bound",
]
