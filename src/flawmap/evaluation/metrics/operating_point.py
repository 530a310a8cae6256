"""Thresholds from labelled images: the score at which a criterion is best, and its errors of both kinds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flawmap.errors import DatasetError, ParameterError
from flawmap.evaluation.metrics.rates import Rate

__all__ = ["Criterion", "OperatingPoint", "best_threshold", "error_rates"]

Criterion = Literal["f1", "youden", "cost"]


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold, above which a score is anomalous, and its errors on some labelled images."""

    threshold: float
    false_alarm_rate: Rate
    miss_rate: Rate


def error_rates(labels: ArrayLike, scores: ArrayLike, threshold: float) -> OperatingPoint:
    """Errors (with 95 % intervals) of a threshold, given labels (N,), 1 = anomalous, and scores (N,).

    Raises DatasetError unless there are images of both kinds.
    """
    good, bad = _by_label(labels, scores)
    alarms = Rate.of(int(np.count_nonzero(good > threshold)), len(good))
    misses = Rate.of(int(np.count_nonzero(bad <= threshold)), len(bad))
    if alarms is None or misses is None:
        raise DatasetError(
            f"error rates need good and anomalous images, got {len(good)} good and {len(bad)} anomalous ones"
        )
    return OperatingPoint(threshold, alarms, misses)


def best_threshold(
    labels: ArrayLike,
    scores: ArrayLike,
    criterion: Criterion,
    *,
    miss_cost: float = 1.0,
    false_alarm_cost: float = 1.0,
    defect_rate: float | None = None,
) -> OperatingPoint:
    """The threshold that is best by a criterion; of equally good ones the middle of the widest gap between scores.

    Args:
        labels: (N,) 1 = anomalous. scores: (N,).
        criterion: "f1", of the anomalous images; "youden", sensitivity + specificity - 1; "cost", the expected cost of
            an image.
        miss_cost: of an anomalous image that is not flagged.
        false_alarm_cost: of a good image that is.
        defect_rate: share of anomalous images among those to come; None for their share among these.

    Raises DatasetError unless there are images of both kinds, ParameterError for impossible costs or rates.
    """
    error_rates(labels, scores, 0.0)  # both kinds are there
    good, bad = _by_label(labels, scores)
    distinct = np.unique(np.concatenate([good, bad]))
    gaps = np.concatenate([[0.0], np.diff(distinct), [0.0]])
    middles = np.concatenate([[np.nextafter(distinct[0], -np.inf)], (distinct[:-1] + distinct[1:]) / 2, [distinct[-1]]])
    alarms = len(good) - np.searchsorted(np.sort(good), middles, side="right")
    misses = np.searchsorted(np.sort(bad), middles, side="right")
    if criterion == "f1":
        hits = len(bad) - misses
        value = 2 * hits / (2 * hits + misses + alarms).clip(min=1)
    elif criterion == "youden":
        value = -(misses / len(bad) + alarms / len(good))
    elif criterion == "cost":
        share = len(bad) / (len(good) + len(bad)) if defect_rate is None else defect_rate
        _check_costs(miss_cost, false_alarm_cost, share)
        larger = max(miss_cost, false_alarm_cost)  # counts their ratio alone, and products cannot overflow
        missed, alarm = share * (miss_cost / larger), (1 - share) * (false_alarm_cost / larger)
        value = -(missed * misses / len(bad) + alarm * alarms / len(good))
    else:
        raise ParameterError(f"criterion must be 'f1', 'youden' or 'cost', got {criterion!r}")
    best = np.flatnonzero(value >= value.max() - 1e-12 * abs(value.max()))
    return error_rates(labels, scores, float(middles[best[gaps[best].argmax()]]))


def _check_costs(miss_cost: float, false_alarm_cost: float, defect_rate: float) -> None:
    if not all(math.isfinite(cost) and cost > 0 for cost in (miss_cost, false_alarm_cost)):
        raise ParameterError(f"costs must be positive numbers, got {miss_cost} and {false_alarm_cost}")
    if not 0 < defect_rate < 1:
        raise ParameterError(f"the defect rate must lie between 0 and 1, got {defect_rate}")


def _by_label(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    label, score = np.asarray(labels), np.asarray(scores, np.float64)
    if label.shape != score.shape or label.ndim != 1:
        raise ParameterError(f"expected as many labels as scores, got shapes {label.shape} and {score.shape}")
    if not np.isfinite(score).all():
        raise ParameterError("scores must be finite")
    return score[label == 0], score[label != 0]
