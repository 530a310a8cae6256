"""The images of one class, with labels and masks: from a data set on disk, or rotated and cropped on the way."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flawmap.datasets import GOOD, Dataset, RdImage, open_dataset, rd_images
from flawmap.datasets.dataset import file_of
from flawmap.errors import DatasetError, ImageError
from flawmap.images import ImageSource, MaskSource, Preprocessing, VideoFrame, read_mask, stream
from flawmap.options import OnBad
from flawmap.prediction import Placement

__all__ = ["RD", "ClassFiles", "ClassImages", "look_at_class", "read_class", "readable"]

RD = "rd_mvtec_ad"
Mask = MaskSource | NDArray[np.bool_]


@dataclass(frozen=True)
class ClassFiles:
    """Numbers of a class's images, and a digest of its files, without reading them.

    The digest is over names below the class's folder, sizes and types, of images and masks alike.
    """

    n_train: int
    n_test: int
    digest: str

    @property
    def n_images(self) -> int:
        """Training and test images."""
        return self.n_train + self.n_test


@dataclass(frozen=True, eq=False)
class ClassImages:
    """One class.

    Attributes:
        dataset, name: the data set and the class.
        train: good images to fit on.
        test: images to score. types: "good" or the defect type of each.
        masks: source of each mask, or the mask; None for good images and those without one.
        n_skipped: images that were left out because they cannot be read.
    """

    dataset: str
    name: str
    train: Sequence[ImageSource]
    test: Sequence[ImageSource]
    types: Sequence[str]
    masks: Sequence[Mask | None]
    n_skipped: int = 0
    _packed: dict[tuple[int, Preprocessing], NDArray[np.uint8] | None] = field(default_factory=dict, repr=False)

    def is_anomalous(self, index: int) -> bool:
        """Whether a test image is anomalous."""
        return self.types[index] != GOOD

    def mask(self, index: int, preprocessing: Preprocessing, placement: Placement) -> NDArray[np.bool_] | None:
        """Mask (h, w) of a test image, resized and cropped as the detector's input; cached in bits.

        None without a mask, and for a file without anomalous pixels, which would make a defect count as good.
        """
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
            marks = isinstance(source, np.ndarray) or mask.any()
            self._packed[key] = np.packbits(preprocessing.apply_mask(mask, placement), axis=1) if marks else None
        if (packed := self._packed[key]) is None:
            return None
        return np.unpackbits(packed, axis=1, count=preprocessing.input_size[1]).astype(bool)


def look_at_class(dataset: str, path: Path, *, stride: int = 1) -> ClassFiles:
    """Count and digest a class's files without reading them. Raises DatasetError."""
    data = _open(dataset, path, stride)
    sizes: dict[Path, int] = {}
    digest = hashlib.blake2b(digest_size=16)
    for source, kind in _sources(data):
        file = file_of(source)
        if file not in sizes:
            sizes[file] = file.stat().st_size if file.exists() else -1
        name = os.path.relpath(file, path.parent)
        digest.update(os.fsencode(f"{name}\0{getattr(source, 'index', '')}\0{sizes[file]}\0{kind}\n"))
    return ClassFiles(len(data.train), len(data.test), digest.hexdigest())


def read_class(dataset: str, path: Path, *, seed: int = 0, stride: int = 1, on_bad: OnBad | None = None) -> ClassImages:
    """A class of a data set; for Rd-MVTec AD made from one of MVTec AD, with this seed. Raises DatasetError.

    Images of Rd-MVTec AD are read here: `on_bad` is called with each that cannot be read; None raises ImageError.
    """
    if dataset == RD:
        return _rotated(path, seed, stride, on_bad)
    data = _open(dataset, path, stride)
    return ClassImages(
        dataset,
        path.name,
        data.train,
        [sample.path for sample in data.test],
        [sample.type for sample in data.test],
        [sample.mask_path for sample in data.test],
    )


def readable(images: ClassImages, on_bad: OnBad) -> ClassImages:
    """The class without images and masks that cannot be read; `on_bad` is called with each."""
    sources = [*images.train, *images.test]
    numbers = {one.number for one in stream(sources, Preprocessing.of(8), on_bad=on_bad)}
    n_train = len(images.train)
    train = [source for i, source in enumerate(images.train) if i + 1 in numbers]
    kept = [i for i in range(len(images.test)) if n_train + i + 1 in numbers]
    _check_counts(images.name, len(train), len(kept))
    return replace(
        images,
        train=train,
        test=[images.test[i] for i in kept],
        types=[images.types[i] for i in kept],
        masks=[_mask_or_none(images.masks[i], on_bad) for i in kept],
        n_skipped=images.n_skipped + len(sources) - len(numbers),
        _packed={},
    )


def _mask_or_none(source: Mask | None, on_bad: OnBad) -> Mask | None:
    if source is not None and not isinstance(source, np.ndarray):
        try:
            read_mask(source)
        except ImageError as error:
            on_bad(error)
            return None
    return source


def _open(dataset: str, path: Path, stride: int) -> Dataset:
    data = open_dataset(f"{'mvtec_ad' if dataset == RD else dataset}:{path}").every(stride)
    _check_counts(str(path), len(data.train), len(data.test))
    return data


def _check_counts(name: str, n_train: int, n_test: int) -> None:
    if not n_train or not n_test:
        raise DatasetError(f"{name}: has no {'test' if n_train else 'training'} images")


def _sources(data: Dataset) -> Iterator[tuple[MaskSource | VideoFrame, str]]:
    """Every image and mask, and its type."""
    yield from ((source, "") for source in data.train)
    for sample in data.test:
        yield sample.path, sample.type
        if sample.mask_path is not None:
            yield sample.mask_path, "mask"


def _rotated(path: Path, seed: int, stride: int, on_bad: OnBad | None) -> ClassImages:
    """In memory: 150 KB an image."""
    parts: dict[str, list[RdImage]] = {"train": [], "test": []}
    bad: list[ImageError] = []

    def skip(error: ImageError) -> None:
        if on_bad is None:
            raise error
        bad.append(error)
        on_bad(error)

    for image in rd_images(path, seed=seed, on_bad=skip):
        parts[image.place.parts[0]].append(image)
    train, test = parts["train"][::stride], parts["test"][::stride]
    _check_counts(str(path), len(train), len(test))
    pixels = [image.pixels for image in test]
    types, masks = [image.type for image in test], [image.mask for image in test]
    return ClassImages(RD, path.name, [image.pixels for image in train], pixels, types, masks, len(bad))
