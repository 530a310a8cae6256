"""How a user changes a decision: by a rate, by a rate with a confidence, or by a value."""

from __future__ import annotations

from flawmap.decision.decision import Decision
from flawmap.errors import ParameterError


def changed(
    decision: Decision,
    *,
    false_alarm_rate: float | None = None,
    value: float | None = None,
    certify: float | None = None,
    pixel_false_alarm_rate: float | None = None,
) -> Decision:
    """The decision by another rate, or by a score, which guarantees no rate.

    Args:
        decision: thresholds and held-out scores.
        false_alarm_rate: share of good images that may be flagged, on average.
        value: the threshold itself.
        certify: confidence with which no more than the false-alarm rate are flagged: `false_alarm_rate`, or the one
            that the decision has.
        pixel_false_alarm_rate: share of good images' pixels above the pixel threshold.

    Raises ParameterError for values that are impossible or contradict each other, and for too few good images.
    """
    if false_alarm_rate is not None and value is not None:
        raise ParameterError("give either false_alarm_rate or value")
    if certify is not None and value is not None:
        raise ParameterError("certify chooses the threshold: give either certify or value")
    rate = decision.false_alarm_rate if false_alarm_rate is None else false_alarm_rate
    if certify is not None:
        if rate is None:
            raise ParameterError("the model guarantees no false-alarm rate: give the rate to certify, false_alarm_rate")
        decision = decision.certified(rate, certify)
    elif false_alarm_rate is not None:
        decision = decision.at_rate(false_alarm_rate)
    elif value is not None:
        decision = decision.at_value(value)
    if pixel_false_alarm_rate is not None:
        decision = decision.at_pixel_rate(pixel_false_alarm_rate)
    return decision
