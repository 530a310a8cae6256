"""Figures of image scores: AUROC, error rates with intervals, thresholds from labels, reliability of p-values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest, kstest, mannwhitneyu, rankdata

from flawmap.errors import DatasetError, ParameterError
from flawmap.options import Criterion

ASKED = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""False-alarm rates at which reliability is measured."""


@dataclass(frozen=True)
class Rate:
    """A share `value` of `n` cases, with its 95 % interval (Wilson 1927).

    Example:
        >>> print(Rate.of(3, 41))
        0.073 of 41 (95 % 0.025 to 0.194)
    """

    value: float
    n: int
    low: float
    high: float

    @classmethod
    def of(cls, hits: int, n: int) -> Rate | None:
        """The share of `hits` in `n` cases; None of no cases."""
        if not 0 <= hits <= n:
            raise ParameterError(f"expected 0 to {n} hits, got {hits}")
        if n == 0:
            return None
        interval = binomtest(hits, n).proportion_ci(0.95, method="wilson")
        return cls(hits / n, n, float(interval.low), float(interval.high))

    def __str__(self) -> str:
        return f"{self.value:.3f} of {self.n} (95 % {self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold, above which a score is anomalous, and its errors on some labelled images.

    Example:
        >>> point = best_threshold([0, 0, 1, 1], [1, 2, 6, 9], "f1")
        >>> point.threshold, point.miss_rate.value
        (4.0, 0.0)
    """

    threshold: float
    false_alarm_rate: Rate
    miss_rate: Rate


@dataclass(frozen=True)
class Reliability:
    """Promised and realised false-alarm rates on good images that the model has not seen.

    Attributes:
        asked: guaranteed rates.
        realised: share of good images with a p-value of at most each guaranteed rate.
        uniformity: p-value of the Kolmogorov-Smirnov test that the p-values of good images are uniform. Below 0.05 the
            guarantee is doubtful, for example because the good images come from another camera.

    Example:
        >>> kept = reliability([0.1, 0.3, 0.5, 0.7, 0.9])
        >>> kept.asked[7], kept.realised[7].value
        (0.5, 0.6)
    """

    asked: tuple[float, ...]
    realised: tuple[Rate, ...]
    uniformity: float


def image_auroc(labels: ArrayLike, scores: ArrayLike) -> float | None:
    """AUROC of scores (N,) against labels (N,), True or 1 where anomalous; None if only one class is present.

    The area is exact: ties count half (Mann-Whitney with midranks). Infinite scores rank above, or below, all others.
    Raises ParameterError for unequal lengths, no images at all, labels other than 0 and 1, and NaN.
    """
    truth, values = np.asarray(labels), np.asarray(scores, np.float64)
    _check_lengths(truth, values)
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
    rank_sum = rankdata(values)[truth].sum()
    return float((rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


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
        miss_cost: cost of an anomalous image that is not flagged.
        false_alarm_cost: cost of a good image that is flagged.
        defect_rate: share of anomalous images in production; None for their share among the labelled images.

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


def reliability(p_values: ArrayLike) -> Reliability | None:
    """Promised and realised false-alarm rates, from p-values (N,) of good images not trained on; None of no images."""
    values = np.asarray(p_values, np.float64)
    rates = [Rate.of(int(np.count_nonzero(values <= rate + 1e-12)), len(values)) for rate in ASKED]
    realised = tuple(rate for rate in rates if rate is not None)
    return Reliability(ASKED, realised, float(kstest(values, "uniform").pvalue)) if realised else None


def scored_lower(scores: ArrayLike, others: ArrayLike) -> float:
    """p-value of the Mann-Whitney test that scores (N,) are no lower than others (M,); both must not be empty."""
    return float(mannwhitneyu(scores, others, alternative="less").pvalue)


def _check_costs(miss_cost: float, false_alarm_cost: float, defect_rate: float) -> None:
    if not all(math.isfinite(cost) and cost > 0 for cost in (miss_cost, false_alarm_cost)):
        raise ParameterError(f"costs must be positive numbers, got {miss_cost} and {false_alarm_cost}")
    if not 0 < defect_rate < 1:
        raise ParameterError(f"the defect rate must lie between 0 and 1, got {defect_rate}")


def _check_lengths(labels: NDArray[np.generic], scores: NDArray[np.float64]) -> None:
    if labels.shape != scores.shape or labels.ndim != 1:
        raise ParameterError(f"expected labels and scores of one length, got {labels.shape} and {scores.shape}")


def _by_label(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores of the good images, and of the anomalous ones."""
    label, score = np.asarray(labels), np.asarray(scores, np.float64)
    _check_lengths(label, score)
    if not np.isfinite(score).all():
        raise ParameterError("scores must be finite")
    return score[label == 0], score[label != 0]
