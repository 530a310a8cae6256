"""Labels of a whole batch, with a bounded share of false discoveries (Benjamini & Hochberg 1995).

A threshold for q false alarms flags about q m of m good images, however few are anomalous: of a batch that is mostly
good, most of what it flags is good. The procedure of Benjamini and Hochberg bounds the expected share of good images
among those labelled anomalous instead. With the p-values p_(1) <= ... <= p_(m) of the batch and j the largest number
with p_(j) <= rate j / m, the images of the j smallest are labelled anomalous.

P-values of one set of held-out scores depend on each other, but in the way that the procedure allows (Bates, Candes,
Lei, Romano, Sesia 2023).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flawmap.errors import ParameterError
from flawmap.prediction import Prediction

ROUNDING = 1e-12
"""Relative distance at which two numbers count as equal: p-values and limits are quotients of small integers."""


def discover(p_values: ArrayLike, rate: float) -> NDArray[np.bool_]:
    """Which of a batch's p-values (N,) are discoveries (N,), at this false-discovery rate.

    Raises ParameterError for p-values outside 0 to 1 and for a rate that is not between 0 and 1.
    """
    check_rate(rate)
    values = np.asarray(p_values, np.float64)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise ParameterError(f"expected p-values (N,) from 0 to 1, got an array of shape {values.shape} or others")
    ordered = np.sort(values)
    limits = rate * np.arange(1, len(values) + 1) / max(1, len(values))
    passed = np.flatnonzero(ordered <= limits * (1 + ROUNDING))
    if not len(passed):
        return np.zeros(len(values), bool)
    found: NDArray[np.bool_] = values <= ordered[passed[-1]]
    return found


def fewest_discoveries(n_images: int, smallest: float, rate: float) -> int | None:
    """How many images of a batch must have the smallest possible p-value before any is a discovery.

    Args:
        n_images: images of the batch.
        smallest: the smallest p-value that the model can give, `Decision.lowest_rate`.
        rate: the false-discovery rate.

    1 if p-values are fine enough for the batch; None if even all of its images would not do.
    """
    check_rate(rate)
    fewest = max(1, math.ceil(smallest * n_images / rate * (1 - ROUNDING)))
    return fewest if fewest <= n_images else None


def label_batch(predictions: Iterable[Prediction], rate: float) -> Iterator[Prediction]:
    """The predictions of a batch, labelled by its false-discovery rate; all are made before the first is given.

    Raises ParameterError for a rate that is not between 0 and 1, at once, and for predictions without p-values.
    """
    check_rate(rate)
    return _label(predictions, rate)


def _label(predictions: Iterable[Prediction], rate: float) -> Iterator[Prediction]:
    batch, p_values = [], []
    for prediction in predictions:
        p_values.append(p_value_of(prediction))
        batch.append(prediction)
    for prediction, found in zip(batch, discover(p_values, rate), strict=True):
        yield replace(prediction, pred_label=int(found or not prediction.found))


def p_value_of(prediction: Prediction) -> float:
    """The p-value of a prediction. Raises ParameterError if the model was not calibrated."""
    if prediction.p_value is None:
        raise ParameterError(
            "a false-discovery rate needs p-values, which a model without calibration does not give: fit it with "
            "calibration, on at least 3 good images"
        )
    return prediction.p_value


def check_rate(rate: float) -> None:
    """Raise ParameterError for a false-discovery rate that is not between 0 and 1."""
    is_number = isinstance(rate, (int, float, np.integer, np.floating)) and not isinstance(rate, bool)
    if not (is_number and 0 < rate < 1):
        raise ParameterError(f"the false-discovery rate must lie between 0 and 1, got {rate!r}")
