"""What a fitted detector decides by, and how a user changes it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from flawmap.decision import Decision, changed
from flawmap.errors import NotFittedError, ParameterError
from flawmap.options import MIN_IMAGES, Calibration


class Decided(ABC):
    """The part of a detector that decides.

    Attributes:
        decision_: held-out scores of good images, and thresholds; None if it was not calibrated.
    """

    name: ClassVar[str]
    localises: ClassVar[bool] = True
    """Whether it makes anomaly maps."""
    calibrations: ClassVar[tuple[Calibration, ...]] = ("leave-one-out",)
    """Ways in which good images can get held-out scores."""

    def __init__(self) -> None:
        self.decision_: Decision | None = None

    @property
    def leave_one_out_scores_(self) -> NDArray[np.float32]:
        """Held-out score (N,) of each good image, in the training order."""
        return self._calibrated().scores

    @property
    def threshold_(self) -> float:
        """Image scores above it are labelled anomalous."""
        return self._calibrated().threshold

    def set_threshold(
        self,
        *,
        false_alarm_rate: float | None = None,
        value: float | None = None,
        certify: float | None = None,
        pixel_false_alarm_rate: float | None = None,
    ) -> Self:
        """Decide by another rate, by one that holds with a confidence (`certify`), or by a score without a guarantee.

        The model is not fitted again. Arguments as of `flawmap.decision.changed`.
        """
        given = {"value": value, "certify": certify, "pixel_false_alarm_rate": pixel_false_alarm_rate}
        self.decision_ = changed(self._calibrated(), false_alarm_rate=false_alarm_rate, **given)
        return self

    @property
    def map_scale(self) -> tuple[float, float] | None:
        """Map values that pictures show as coolest and hottest, the same for every image; None without maps."""
        if not self.localises:
            return None
        return self._usual_scale() if self.decision_ is None else self.decision_.map_scale

    @abstractmethod
    def _check_fitted(self) -> None:
        """Raise NotFittedError, or ParameterError for a parameter that was changed after the fit."""

    def _calibrated(self) -> Decision:
        self._check_fitted()
        if self.decision_ is None:
            raise NotFittedError(
                f"this {type(self).__name__} was not calibrated: fit it with calibrate={self.calibrations[0]!r} on at "
                f"least {MIN_IMAGES} good images"
            )
        return self.decision_

    def _usual_scale(self) -> tuple[float, float]:
        """`map_scale` of a model that was not calibrated. Raises ParameterError for a detector without one."""
        raise ParameterError(f"{self.name} has no scale for pictures without a threshold; write _usual_scale")
