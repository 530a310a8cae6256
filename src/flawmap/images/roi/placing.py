"""The region of a model: found on the photo that it was drawn on, then on every image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flawmap.errors import ParameterError
from flawmap.images.photo import Reduction
from flawmap.images.preprocessing import Preprocessing
from flawmap.images.read import ImageSource
from flawmap.images.roi.drawing import Drawing
from flawmap.images.roi.record import RoiRecord
from flawmap.images.stream import stream
from flawmap.options import OnBad
from flawmap.prediction import Placement, Size

LEAST_SEEN = 0.99
"""Share of a region that the model's input shows; less is remarked on."""


@dataclass(frozen=True, eq=False)
class PlacedRoi:
    """A region on the model's input.

    Attributes:
        roi: (h, w), True where it is inspected.
        name: of the region.
        photo: name of the photo that it was drawn on.
        seen: share of the region that the input shows.
        is_guess: whether neither that photo was named nor its size stated.
    """

    roi: NDArray[np.bool_]
    name: str
    photo: str
    seen: float
    is_guess: bool

    def remarks(self, sizes: Sequence[Size]) -> dict[str, tuple[str, ...]]:
        """What is doubtful about it, in words, and the name of the photo; `sizes` are those of the good photos."""
        found: dict[str, tuple[str, ...]] = {}
        if self.seen < LEAST_SEEN:
            found[
                f"{1 - self.seen:.0%} of the region {self.name} lie outside the model's input and are not inspected: "
                f"the crop, or the alignment of this photo, cuts them off"
            ] = (self.photo,)
        if self.is_guess and len(sizes) > 1:
            found[
                f"the points of {self.name} were taken for pixels of this photo, and other good photos have other "
                f"sizes: state 'size' beside the polygons, or the photo (roi_photo, --roi-photo)"
            ] = (self.photo,)
        return found


def place_roi(
    drawing: Drawing,
    photo: ImageSource | None,
    good: Sequence[ImageSource],
    preprocessing: Preprocessing,
    *,
    on_bad: OnBad | None = None,
) -> PlacedRoi:
    """The region on the model's input, by the photo that it was drawn on.

    Of a model that aligns, the part is found in that photo, and the region lies where the reference has it.

    Args:
        drawing: the region as it lies on that photo.
        photo: that photo; None for the first good one.
        good: the first good photos.
        preprocessing: from a photo to the model's input.
        on_bad: of the fit; without it, a first good photo that cannot be read raises ImageError.

    Raises ImageError for a `photo` that cannot be read, ParameterError for a region that cannot be of it, and where the
    part is not found in it.
    """
    photos, quietly = (good, on_bad and (lambda _: None)) if photo is None else ([photo], None)
    first = next(stream(photos, preprocessing, on_bad=quietly, live=True), None)
    if first is None:
        raise ParameterError(
            f"{drawing.name}: none of the first {len(good)} good photos can be read, on which it was drawn. Name the "
            f"photo that it was drawn on (roi_photo, --roi-photo)"
        )
    if first.placement.pose is not None and not first.placement.pose.found:
        raise ParameterError(
            f"{drawing.name}: the part is not found in {first.name}, on which the region was drawn. Draw it on a photo "
            f"that shows the part, and name that (roi_photo, --roi-photo)"
        )
    roi = drawing.on_input(first.placement, first.name)
    RoiRecord.of(roi)  # raises for what no file could keep
    seen = drawing.share_seen(first.placement)
    return PlacedRoi(roi, drawing.name, first.name, seen, is_guess=photo is None and drawing.size is None)


@dataclass(frozen=True)
class RoiPreprocessing(Preprocessing):
    """The same preprocessing, whose images are inspected in a region only.

    Attributes:
        inner: from an image to the model's input, aligned or not.
        roi: (h, w) on that input, True where it is inspected.
    """

    inner: Preprocessing = field(default_factory=Preprocessing)
    roi: NDArray[np.bool_] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of_roi(cls, inner: Preprocessing, roi: NDArray[np.bool_]) -> Self:
        """The same in a region."""
        return cls(inner.resize, inner.crop, inner.aspect, inner.bits, inner.reading, inner, roi)

    @property
    def n_channels(self) -> int:
        """Channels of the model's input."""
        return self.inner.n_channels

    def place(self, image_size: Size) -> Placement:
        """Where the input lies on an image of this size, and what of it is inspected."""
        return replace(self.inner.place(image_size), roi=self.roi)

    def apply(
        self, rgb: NDArray[np.uint8] | Image.Image, *, whole: bool = False, reduction: Reduction | None = None
    ) -> tuple[NDArray[np.uint8], Placement]:
        """The model's input from RGB (H, W, 3) uint8, where it lies on the image, and what of it is inspected."""
        pixels, placement = self.inner.apply(rgb, whole=whole, reduction=reduction)
        return pixels, replace(placement, roi=self.roi)
