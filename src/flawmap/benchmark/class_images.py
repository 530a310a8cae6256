"""The images of one class, with labels and masks: from a data set on disk, or rotated and cropped on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawmap.errors import DatasetError
from flawmap.images import ImageSource, MaskSource, Preprocessing, open_dataset, read_mask
from flawmap.images.datasets import GOOD, RdImage, rd_images
from flawmap.records import Placement

__all__ = ["RD", "ClassImages", "read_class"]

RD = "rd_mvtec_ad"

INPUTS: dict[str, dict[str, Any]] = {
    "mvtec_ad": {"resize": 256, "crop": 224},
    RD: {"resize": 224, "crop": None},  # its images are of that size already
    "stc": {"resize": 256, "crop": None},
}
"""Size of the detectors' input by data set (PaDiM section IV)."""


@dataclass(frozen=True, eq=False)
class ClassImages:
    """One class.

    Attributes:
        dataset, name: of which data set, and which class.
        train: good images to learn from.
        test: images to score. types: "good" or what is wrong, of each.
        masks: where the mask of each is, or the mask; None for good images and those without one.
    """

    dataset: str
    name: str
    train: Sequence[ImageSource]
    test: Sequence[ImageSource]
    types: Sequence[str]
    masks: Sequence[MaskSource | NDArray[np.bool_] | None]
    _packed: dict[tuple[int, Preprocessing], NDArray[np.uint8]] = field(default_factory=dict, repr=False)

    @property
    def input(self) -> dict[str, Any]:
        """`resize` and `crop` of the paper's protocol."""
        return INPUTS[self.dataset]

    def is_anomalous(self, index: int) -> bool:
        """Whether a test image is."""
        return self.types[index] != GOOD

    def mask(self, index: int, preprocessing: Preprocessing, placement: Placement) -> NDArray[np.bool_] | None:
        """Mask (h, w) of a test image as the detector's input shows it, or None; kept in bits once it was read."""
        source = self.masks[index]
        if source is None:
            return None
        key = index, preprocessing
        if key not in self._packed:
            mask = source if isinstance(source, np.ndarray) else read_mask(source)
            if mask.shape != placement.image_size:
                raise DatasetError(
                    f"the mask {index if isinstance(source, np.ndarray) else source} is of {mask.shape}, its image "
                    f"{self.test[index]} of {placement.image_size}"
                )
            self._packed[key] = np.packbits(preprocessing.apply_mask(mask, placement), axis=1)
        width = preprocessing.input_size[1]
        return np.unpackbits(self._packed[key], axis=1, count=width).astype(bool)


def read_class(dataset: str, path: Path, *, seed: int = 0, stride: int = 1) -> ClassImages:
    """A class of a data set; of Rd-MVTec AD made from one of MVTec AD, with this seed. Raises DatasetError."""
    if dataset == RD:
        return _rotated(path, seed, stride)
    data = open_dataset(f"{dataset}:{path}").every(stride)
    if not data.train or not data.test:
        raise DatasetError(f"{path}: has no images to {'test on' if data.train else 'learn from'}")
    return ClassImages(
        dataset,
        path.name,
        data.train,
        [sample.path for sample in data.test],
        [sample.type for sample in data.test],
        [sample.mask_path for sample in data.test],
    )


def _rotated(path: Path, seed: int, stride: int) -> ClassImages:
    """In memory: 150 KB an image."""
    train: list[RdImage] = []
    test: list[RdImage] = []
    for image in rd_images(path, seed=seed):
        (train if image.place.parts[0] == "train" else test).append(image)
    train, test = train[::stride], test[::stride]
    return ClassImages(
        RD,
        path.name,
        [image.pixels for image in train],
        [image.pixels for image in test],
        [image.type for image in test],
        [image.mask for image in test],
    )
