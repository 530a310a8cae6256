"""What the detectors share around a decision: its parameters, its change, and its place in a model file."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from flawmap.decision import PIXEL_RATES, Decision
from flawmap.errors import ParameterError
from flawmap.model_file import DecisionRecord

__all__ = [
    "change_decision",
    "check_calibration",
    "decision_record",
    "decision_shapes",
    "decision_tensors",
    "restore_decision",
]


def check_calibration(calibrate: object, false_alarm_rate: float) -> None:
    """Raise ParameterError for values that `calibrate` and `false_alarm_rate` cannot have."""
    if calibrate not in ("leave-one-out", None):
        raise ParameterError(f"calibrate must be 'leave-one-out' or None, got {calibrate!r}")
    if not 0 < false_alarm_rate < 1:
        raise ParameterError(f"false_alarm_rate must lie between 0 and 1, got {false_alarm_rate}")


def change_decision(
    decision: Decision,
    *,
    false_alarm_rate: float | None = None,
    value: float | None = None,
    pixel_false_alarm_rate: float | None = None,
) -> Decision:
    """Decide by another promised rate, or by a score, for which nothing is promised."""
    if false_alarm_rate is not None and value is not None:
        raise ParameterError("give either false_alarm_rate or value")
    if false_alarm_rate is not None:
        decision = decision.at_rate(false_alarm_rate)
    if value is not None:
        decision = decision.at_value(value)
    if pixel_false_alarm_rate is not None:
        decision = decision.at_pixel_rate(pixel_false_alarm_rate)
    return decision


def decision_record(decision: Decision | None) -> DecisionRecord | None:
    """What the document of a model file says of a decision."""
    if decision is None:
        return None
    return DecisionRecord(
        n_scores=len(decision.scores),
        threshold=decision.threshold,
        false_alarm_rate=decision.false_alarm_rate,
        pixel_false_alarm_rate=decision.pixel_false_alarm_rate,
    )


def decision_tensors(decision: Decision | None) -> dict[str, Tensor]:
    """A decision's tensors by their names in the file."""
    if decision is None:
        return {}
    tensors = {"calibration.scores": torch.from_numpy(decision.scores)}
    if decision.localises:
        tensors["calibration.pixel_quantiles"] = torch.from_numpy(decision.pixel_quantiles)
    return tensors


def decision_shapes(record: DecisionRecord | None, *, localises: bool = True) -> dict[str, tuple[int, ...]]:
    """Shapes of a decision's tensors."""
    if record is None:
        return {}
    shapes: dict[str, tuple[int, ...]] = {"calibration.scores": (record.n_scores,)}
    if localises:
        shapes["calibration.pixel_quantiles"] = (len(PIXEL_RATES),)
    return shapes


def restore_decision(record: DecisionRecord | None, tensors: dict[str, Tensor]) -> Decision | None:
    """The decision of a model file."""
    if record is None:
        return None
    quantiles = tensors.get("calibration.pixel_quantiles")
    return Decision(
        tensors["calibration.scores"].cpu().numpy(),
        np.zeros(0, np.float32) if quantiles is None else quantiles.cpu().numpy(),
        record.threshold,
        record.false_alarm_rate,
        record.pixel_false_alarm_rate,
    )
