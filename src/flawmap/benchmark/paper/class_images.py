"""The images of one class, with labels and masks: from a data set on disk, or rotated and cropped on the way."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flawmap.datasets import GOOD, Dataset, open_dataset, rd_images
from flawmap.datasets.dataset import files_of
from flawmap.errors import DatasetError, ImageError
from flawmap.images import ImageSource, MaskSource, Preprocessing, VideoFrame, read_mask, stream
from flawmap.options import OnBad
from flawmap.prediction import Placement

RD = "rd_mvtec_ad"
Mask = MaskSource | NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """A labelled image.

    Attributes:
        source: the image.
        type: "good" or its type of defect.
        mask: source of its mask, or the mask; None for a good image and one without.
    """

    source: ImageSource
    type: str
    mask: Mask | None

    @property
    def is_anomalous(self) -> bool:
        """Whether it is of any type but "good"."""
        return self.type != GOOD


@dataclass(frozen=True, eq=False)
class ClassImages:
    """One class.

    Attributes:
        dataset, path: the data set, and the folder of the class.
        train: good images to fit on.
        test: images to score.
        digest: over its files' names below the class's folder, sizes and types, of images and masks alike.
        n_skipped: images that were left out because they cannot be read.
        passed_over: files that are no images that can be read, and no masks.
    """

    dataset: str
    path: Path
    train: Sequence[ImageSource]
    test: Sequence[LabelledImage]
    digest: str
    n_skipped: int = 0
    passed_over: tuple[Path, ...] = ()
    _packed: dict[tuple[int, Preprocessing], NDArray[np.uint8] | None] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.train or not self.test:
            raise DatasetError(f"{self.path}: has no {'test' if self.train else 'training'} images")

    @property
    def name(self) -> str:
        """Name of the class."""
        return self.path.name

    @property
    def sources(self) -> list[ImageSource]:
        """Training images, then test images."""
        return [*self.train, *(image.source for image in self.test)]

    def mask(self, index: int, preprocessing: Preprocessing, placement: Placement) -> NDArray[np.bool_] | None:
        """Mask (h, w) of a test image, resized and cropped as the detector's input; cached in bits.

        None without a mask, and for a file without anomalous pixels, which would make a defect count as good.
        """
        source = self.test[index].mask
        if source is None:
            return None
        key = index, preprocessing
        if key not in self._packed:
            mask = source if isinstance(source, np.ndarray) else read_mask(source)
            if mask.shape != placement.image_size:
                raise DatasetError(
                    f"the mask {index if isinstance(source, np.ndarray) else source} is of {mask.shape}, its image "
                    f"{self.test[index].source} of {placement.image_size}"
                )
            marks = isinstance(source, np.ndarray) or mask.any()
            self._packed[key] = np.packbits(preprocessing.apply_mask(mask, placement), axis=1) if marks else None
        if (packed := self._packed[key]) is None:
            return None
        return np.unpackbits(packed, axis=1, count=preprocessing.input_size[1]).astype(bool)


def open_class(dataset: str, path: Path, *, stride: int = 1) -> ClassImages:
    """A class of a data set, without reading its images. Raises DatasetError."""
    data = open_dataset(f"{dataset}:{path}").every(stride)
    test = [LabelledImage(sample.path, sample.type, sample.mask_path) for sample in data.test]
    return ClassImages(dataset, path, data.train, test, _digest(data, path), passed_over=data.passed_over)


def _digest(data: Dataset, path: Path) -> str:
    sizes: dict[Path, int] = {}
    digest = hashlib.blake2b(digest_size=16)
    labelled: list[tuple[MaskSource | VideoFrame, str]] = [(source, "") for source in data.train]
    for sample in data.test:
        labelled += [(sample.path, sample.type)]
        labelled += [] if sample.mask_path is None else [(sample.mask_path, "mask")]
    of_files = [(file, getattr(source, "index", ""), kind) for source, kind in labelled for file in files_of(source)]
    for file, index, kind in of_files:
        if file not in sizes:
            sizes[file] = file.stat().st_size if file.exists() else -1
        name = os.path.relpath(file, path.parent)
        digest.update(os.fsencode(f"{name}\0{index}\0{sizes[file]}\0{kind}\n"))
    return digest.hexdigest()


def readable(images: ClassImages, on_bad: OnBad) -> ClassImages:
    """The class without images and masks that cannot be read; `on_bad` is called with each."""

    def with_mask(image: LabelledImage) -> LabelledImage:
        if image.mask is not None and not isinstance(image.mask, np.ndarray):
            try:
                read_mask(image.mask)
            except ImageError as error:
                on_bad(error)
                return replace(image, mask=None)
        return image

    numbers = {one.number for one in stream(images.sources, Preprocessing.of(8), on_bad=on_bad)}
    train = [source for number, source in enumerate(images.train, 1) if number in numbers]
    test = [with_mask(image) for number, image in enumerate(images.test, len(images.train) + 1) if number in numbers]
    n_skipped = images.n_skipped + len(images.sources) - len(numbers)
    return replace(images, train=train, test=test, n_skipped=n_skipped, _packed={})


def rotated(images: ClassImages, *, seed: int, stride: int = 1, on_bad: OnBad | None = None) -> ClassImages:
    """The class of Rd-MVTec AD made from one of MVTec AD, in memory: 150 KB an image. Raises DatasetError.

    `on_bad` is called with each image that cannot be read, which is then left out; None raises ImageError.
    """
    bad: list[ImageError] = []

    def skip(error: ImageError) -> None:
        if on_bad is None:
            raise error
        bad.append(error)
        on_bad(error)

    made = list(rd_images(images.path, seed=seed, on_bad=skip))
    train = [image.pixels for image in made if image.place.parts[0] == "train"][::stride]
    test = [LabelledImage(one.pixels, one.type, one.mask) for one in made if one.place.parts[0] != "train"][::stride]
    return replace(images, dataset=RD, train=train, test=test, n_skipped=len(bad), _packed={})
