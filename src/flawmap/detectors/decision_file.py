"""A decision's place in a model file: its record, its tensors, and back."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from flawmap.decision import PIXEL_FALSE_ALARM_RATE, PIXEL_RATES, Decision
from flawmap.errors import ModelFileError
from flawmap.model_file import DecisionRecord, ModelFile

__all__ = ["decision_record", "decision_shapes", "decision_tensors", "restore_decision"]

SCORES, PIXEL_QUANTILES, GROUP_SIZES = (f"calibration.{name}" for name in ("scores", "pixel_quantiles", "group_sizes"))


def decision_record(decision: Decision | None, method: Literal["leave-one-out", "holdout"]) -> DecisionRecord | None:
    """What the document of a model file says of a decision."""
    if decision is None:
        return None
    return DecisionRecord(
        method=method,
        grouped=decision.group_sizes is not None,
        n_scores=len(decision.scores),
        threshold=decision.threshold,
        false_alarm_rate=decision.false_alarm_rate,
        pixel_false_alarm_rate=decision.pixel_false_alarm_rate if decision.localises else None,
    )


def decision_tensors(decision: Decision | None) -> dict[str, Tensor]:
    """A decision's tensors by their names in the file."""
    if decision is None:
        return {}
    tensors = {SCORES: torch.from_numpy(decision.scores)}
    if decision.localises:
        tensors[PIXEL_QUANTILES] = torch.from_numpy(decision.pixel_quantiles)
    if decision.group_sizes is not None:
        tensors[GROUP_SIZES] = torch.from_numpy(decision.group_sizes)
    return tensors


def decision_shapes(record: DecisionRecord | None, *, localises: bool = True) -> dict[str, tuple[int, ...]]:
    """Shapes of a decision's tensors; `localises` if the detector makes maps."""
    if record is None:
        return {}
    shapes: dict[str, tuple[int, ...]] = {SCORES: (record.n_scores,)}
    if localises:
        shapes[PIXEL_QUANTILES] = (len(PIXEL_RATES),)
    if record.grouped:
        shapes[GROUP_SIZES] = (record.n_scores,)
    return shapes


def restore_decision(file: ModelFile[Any], tensors: dict[str, Tensor]) -> Decision | None:
    """The decision of a model file, given its tensors. Raises ModelFileError."""
    record: DecisionRecord | None = file.document.decision
    if record is None:
        return None
    arrays = {name: value.cpu().numpy() for name, value in tensors.items() if name.startswith("calibration.")}
    sizes = arrays.get(GROUP_SIZES)
    if sizes is not None and (sizes < 1).any():
        raise ModelFileError(f"{file.path}: no whole flawmap model file: empty groups; fit again or take a backup")
    return Decision(
        arrays[SCORES],
        arrays.get(PIXEL_QUANTILES, np.zeros(0, np.float32)),
        record.threshold,
        record.false_alarm_rate,
        record.pixel_false_alarm_rate or PIXEL_FALSE_ALARM_RATE,
        sizes,
    )
