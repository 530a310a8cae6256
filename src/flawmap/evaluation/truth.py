"""The masks of anomalous images, as anomaly maps see them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flawmap.datasets import Sample
from flawmap.errors import ImageError
from flawmap.evaluation.metrics import Defect
from flawmap.images import DefectMasks, Preprocessing, inspect_mask
from flawmap.images.masks import Defects
from flawmap.prediction import Placement, Prediction


@dataclass(frozen=True, eq=False)
class Truth:
    """The ground truth of an anomalous image, in the part of the model's input that shows image and not padding.

    Nothing outside the region of interest is marked.

    Attributes:
        mask: (h, w), True where anomalous; None if the file marks nothing.
        defects: those parts of it that have a saturation, and the pixels of each that must be found.
        remark: what is unusual about the file, in words, or None.
    """

    mask: NDArray[np.bool_] | None
    defects: tuple[Defect, ...] = ()
    remark: str | None = None

    @classmethod
    def of(cls, sample: Sample, prediction: Prediction, preprocessing: Preprocessing) -> Truth | None:
        """That of a sample, resized (nearest) and cropped as its image; None for one that is good, or has no mask.

        Raises ImageError for a mask that cannot be read, or is not of its image's size.
        """
        source = sample.mask_path
        if source is None or not sample.is_anomalous:
            return None
        placement, parts, remark = prediction.placement.unaligned, Defects(), None
        if isinstance(source, DefectMasks):
            parts = source.read()
            marked = np.logical_or.reduce([mask for mask, _ in parts])
        else:
            found = inspect_mask(source)
            marked, remark = found.marked, found.remark
        if marked.shape != placement.image_size:
            (height, width), (own_height, own_width) = placement.image_size, marked.shape
            raise ImageError(
                str(source),
                f"the mask is {own_height} x {own_width}, but its image {sample.path} is {height} x {width}",
            )
        if not marked.any():
            return cls(None, remark=remark)
        return cls(_seen(marked, placement, preprocessing), tuple(_defects(parts, placement, preprocessing)), remark)


def _seen(mask: NDArray[np.bool_], placement: Placement, preprocessing: Preprocessing) -> NDArray[np.bool_]:
    """A mask (H, W) of the photo in the content of the model's input, as far as that is inspected."""
    top, left, bottom, right = placement.content
    seen = preprocessing.apply_mask(mask, placement)
    seen = seen if placement.roi is None else seen & placement.roi
    return seen[top:bottom, left:right]


def _defects(parts: Defects, placement: Placement, preprocessing: Preprocessing) -> list[Defect]:
    """Defects with a saturation, without those of which the model sees no pixel."""
    scale = float(np.prod(placement.resized_size) / np.prod(placement.image_size))
    seen = [(_seen(mask, placement, preprocessing), saturation) for mask, saturation in parts]
    return [
        (mask, saturation.area(int(np.count_nonzero(mask)), scale))
        for mask, saturation in seen
        if saturation is not None and mask.any()
    ]
