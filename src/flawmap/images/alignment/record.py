"""What files keep of an aligner: numbers, and two pictures."""

from __future__ import annotations

from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from flawmap.errors import ParameterError
from flawmap.images.alignment.aligner import LONGEST, Aligner
from flawmap.images.alignment.pose import Frame
from flawmap.images.alignment.search import Reference
from flawmap.options import AlignmentKind
from flawmap.prediction import Size

GREY, COLOURS = "alignment.grey", "alignment.colours"
"""Tensors (h, w) and (h, w, 3), float32, values 0 to 255."""

Side = Annotated[int, Field(ge=8, le=LONGEST)]
Proportion = Annotated[float, Field(ge=1, le=10**6)]
Degrees = Annotated[float, Field(ge=-360, le=360)]
Factor = Annotated[float, Field(ge=0.25, le=4)]
WIDEST_SCALES = 4.0
"""Ratio of the largest and the smallest scale, at most: the search keeps a picture of each."""


class AlignmentRecord(BaseModel):
    """An aligner without its pictures; the attributes are those of `Reference` and `Aligner`.

    Example:
        >>> AlignmentRecord(
        ...     kind="shift", size=(64, 64), proportions=(1, 1), angles=(0, 0), scales=(1, 1), least_match=0.5
        ... ).shapes[GREY]
        (64, 64)
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: AlignmentKind
    size: tuple[Side, Side]
    proportions: tuple[Proportion, Proportion]
    angles: tuple[Degrees, Degrees]
    scales: tuple[Factor, Factor]
    least_match: float = Field(ge=-1, le=1)
    least_shown: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _check_ranges(self) -> Self:
        (first, last), (smallest, largest) = self.angles, self.scales
        if not first <= last <= first + 360:
            raise ValueError(f"angles must ascend, within one turn; got {self.angles}")
        if not smallest <= largest <= WIDEST_SCALES * smallest:
            raise ValueError(f"scales must ascend, by a factor of up to {WIDEST_SCALES:g}; got {self.scales}")
        return self

    @classmethod
    def of(cls, aligner: Aligner) -> Self:
        """The record of an aligner."""
        reference = aligner.reference
        return cls(
            kind=reference.kind,
            size=(reference.grey.shape[0], reference.grey.shape[1]),
            proportions=reference.proportions,
            angles=reference.angles,
            scales=reference.scales,
            least_match=aligner.least_match,
            least_shown=aligner.least_shown,
        )

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the pictures' tensors."""
        return {GREY: self.size, COLOURS: (*self.size, 3)}

    def restore(self, grey: NDArray[np.float32], colours: NDArray[np.float32], size: Size) -> Aligner:
        """The aligner of images of `size`, given its pictures. Raises ParameterError for what no fit gives."""
        expected = Frame(size, self.proportions).resized(LONGEST).size
        if self.size != expected:
            raise ParameterError(f"the alignment's pictures are {self.size}, expected {expected}")
        if not all(np.isfinite(one).all() and one.min() >= 0 and one.max() < 256 for one in (grey, colours)):
            raise ParameterError("the alignment's pictures have values outside 0 to 255")
        reference = Reference(self.kind, grey, self.proportions, self.angles, self.scales)
        return Aligner(reference, colours.astype(np.uint8), self.least_match, size, self.least_shown)


def pictures(aligner: Aligner) -> dict[str, NDArray[np.float32]]:
    """The tensors of an aligner's pictures by their names."""
    return {GREY: aligner.reference.grey, COLOURS: aligner.colours.astype(np.float32)}
