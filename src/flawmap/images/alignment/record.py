"""What files keep of an aligner: numbers, and two pictures."""

from __future__ import annotations

from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from flawmap.images.alignment.aligner import LONGEST, Aligner
from flawmap.images.alignment.search import Reference
from flawmap.options import AlignmentKind
from flawmap.prediction import Size

GREY, COLOURS = "alignment.grey", "alignment.colours"
"""Tensors (h, w) and (h, w, 3), float32, values 0 to 255."""

Side = Annotated[int, Field(ge=8, le=LONGEST)]
Proportion = Annotated[float, Field(gt=0, le=10**6)]
Degrees = Annotated[float, Field(ge=-360, le=360)]
Factor = Annotated[float, Field(ge=0.1, le=10)]


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
        )

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the pictures' tensors."""
        return {GREY: self.size, COLOURS: (*self.size, 3)}

    def restore(self, grey: NDArray[np.float32], colours: NDArray[np.float32], size: Size) -> Aligner:
        """The aligner of images of `size`, given its pictures."""
        reference = Reference(self.kind, grey, self.proportions, self.angles, self.scales)
        return Aligner(reference, np.clip(colours, 0, 255).astype(np.uint8), self.least_match, size)


def pictures(aligner: Aligner) -> dict[str, NDArray[np.float32]]:
    """The tensors of an aligner's pictures by their names."""
    return {GREY: aligner.reference.grey, COLOURS: aligner.colours.astype(np.float32)}
