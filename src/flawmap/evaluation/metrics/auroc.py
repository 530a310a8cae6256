"""Area under the ROC curve of image scores: exact, ties counted half (Mann-Whitney with midranks)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from flawmap.errors import ParameterError

__all__ = ["image_auroc"]


def image_auroc(labels: ArrayLike, scores: ArrayLike) -> float | None:
    """AUROC of scores (N,) against labels (N,), True or 1 where anomalous; None if only one class is present.

    Infinite scores rank above, or below, all others. Raises ParameterError for unequal lengths, no images at all,
    labels other than 0 and 1, and NaN.
    """
    truth, values = np.asarray(labels), np.asarray(scores, np.float64)
    if truth.shape != values.shape or truth.ndim != 1:
        raise ParameterError(f"expected labels and scores of one length, got {truth.shape} and {values.shape}")
    if len(truth) == 0:
        raise ParameterError("expected at least one label and score, got none")
    if not np.isin(truth, (0, 1)).all():
        raise ParameterError("expected labels 0 (good) and 1 (anomalous), got others")
    if np.isnan(values).any():
        raise ParameterError("expected scores that are numbers, got NaN")
    truth = truth.astype(bool)
    n_positive = int(truth.sum())
    n_negative = len(truth) - n_positive
    if not n_positive or not n_negative:
        return None
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    midranks = np.cumsum(counts) - (counts - 1) / 2
    rank_sum = midranks[place][truth].sum()
    return float((rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))
