"""What every detector can do; the commands and the evaluation know detectors by this alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from typing import Protocol, Self

import numpy as np

from flawmap.errors import ImageError, ParameterError
from flawmap.images import ImageInput, Preprocessing
from flawmap.prediction import Prediction
from flawmap.progress import Progress

__all__ = ["Detector", "OnBad", "check_calibration", "check_number", "check_seed"]

OnBad = Callable[[ImageError], None]
"""Is told of each image that cannot be used, which is then left out; without it, the first such image raises."""


class Detector(Protocol):
    """Learns from good images alone, then scores new ones; higher means more anomalous."""

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image becomes the detector's input."""
        ...

    def fit(self, images: ImageInput, *, progress: Progress = False, on_bad: OnBad | None = None) -> Self:
        """Learn from good images."""
        ...

    def iter_predict(self, images: ImageInput, *, on_bad: OnBad | None = None) -> Iterator[Prediction]:
        """Score images one after the other, in input order, in bounded memory."""
        ...

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a model file atomically."""
        ...

    def describe(self) -> dict[str, object]:
        """What the model is and what it was fitted on, as plain JSON values."""
        ...

    @property
    def map_scale(self) -> tuple[float, float] | None:
        """Anomaly-map values that pictures show as coolest and as hottest, the same for every image of a model.

        None for a detector that makes no maps.
        """
        ...


def check_calibration(calibrate: object, methods: Collection[object], false_alarm_rate: float) -> None:
    """Raise ParameterError for values that `calibrate`, one of the `methods`, and `false_alarm_rate` cannot have."""
    if calibrate not in methods:
        raise ParameterError(f"calibrate must be {' or '.join(map(repr, methods))}, got {calibrate!r}")
    if not 0 < false_alarm_rate < 1:
        raise ParameterError(f"false_alarm_rate must lie between 0 and 1, got {false_alarm_rate}")


def check_seed(seed: object) -> None:
    """Raise ParameterError for what is no seed of every generator of random numbers."""
    check_number("seed", seed, least=0, most=2**63 - 1)


def check_number(name: str, value: object, *, least: int = 1, most: int | None = None) -> None:
    """Raise ParameterError for a parameter that is no whole number from `least` to `most`."""
    is_number = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_number or int(value) < least or (most is not None and int(value) > most):  # type: ignore[call-overload]
        limit = "" if most is None else f" to {most}"
        raise ParameterError(f"{name} must be a whole number from {least}{limit}, got {value!r}")
