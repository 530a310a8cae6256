"""What files keep of a region of interest: the lengths of its runs of pixels."""

from __future__ import annotations

from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from flawmap.errors import ParameterError
from flawmap.prediction import Size

MAX_RUNS = 2**19
"""Runs of a region at most: a smooth one has some two in each row."""

Run = Annotated[int, Field(ge=0, le=2**31)]


class RoiRecord(BaseModel):
    """A region on the model's input.

    Attributes:
        runs: pixels outside, then inside, then outside, and so on, row by row.

    Example:
        >>> record = RoiRecord.of(np.array([[False, True, True], [True, False, False]]))
        >>> record.runs, record.mask((2, 3)).tolist()
        ((1, 3, 2), [[False, True, True], [True, False, False]])
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    runs: tuple[Run, ...] = Field(min_length=2, max_length=MAX_RUNS)

    @classmethod
    def of(cls, roi: NDArray[np.bool_]) -> Self:
        """The record of a region (h, w). Raises ParameterError for one that is ragged beyond all use."""
        flat = np.concatenate([[False], roi.ravel()])  # the first run is outside, and may be empty
        starts = np.flatnonzero(flat[1:] != flat[:-1])
        runs = np.diff(np.concatenate([[0], starts, [roi.size]]))
        if len(runs) > MAX_RUNS:
            raise ParameterError(
                f"the region of interest falls into {len(runs)} runs of pixels, more than {MAX_RUNS}; draw a smoother "
                f"one, or choose a smaller resize"
            )
        return cls(runs=tuple(runs.tolist()))

    def mask(self, size: Size) -> NDArray[np.bool_]:
        """The region (h, w). Raises ParameterError if it is not of this size, or empty."""
        if sum(self.runs) != size[0] * size[1] or not any(self.runs[1::2]):
            raise ParameterError(f"the region of interest is empty, or not of an input of {size[0]} x {size[1]}")
        inside = np.arange(len(self.runs)) % 2 == 1
        roi: NDArray[np.bool_] = np.repeat(inside, self.runs).reshape(size)
        return roi

    def summary(self, size: Size) -> dict[str, object]:
        """Share of the input of this size that is inspected, and its (top, left, bottom, right), for people."""
        roi = self.mask(size)
        rows, columns = (np.flatnonzero(roi.any(axis=axis)) for axis in (1, 0))
        box = [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]
        return {"inspected": round(float(roi.mean()), 4), "box": [int(side) for side in box]}
