"""Rd-MVTec AD: MVTec AD made non-aligned, for table VI of the PaDiM paper.

Each training and test image is resized to 256 x 256, rotated by a random angle within +-10 degrees and cropped to a
random window of 224 x 224, and its mask likewise. The paper leaves open: bilinear for images and nearest for masks;
empty corners after the rotation are black; a defect outside the window leaves an empty mask, and its image stays
anomalous.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flawmap.datasets.dataset import GOOD, Sample
from flawmap.datasets.mvtec_ad import find_class_folders, read_mvtec_ad
from flawmap.errors import DatasetError, ImageError
from flawmap.files import expand_home
from flawmap.images.masks import read_mask
from flawmap.images.read import read_image

RESIZE = 256
CROP = 224
MAX_DEGREES = 10.0


@dataclass(frozen=True, eq=False)
class RdImage:
    """A rotated and cropped image.

    Attributes:
        place: its path in MVTec AD's layout, such as train/good/000.png.
        type: "good" or the kind of defect.
        pixels: (224, 224, 3) uint8.
        mask: (224, 224) bool, or None for good images and those without a mask.

    Example:
        >>> image = RdImage(PurePosixPath("train/good/000.png"), "good", np.zeros((224, 224, 3), np.uint8), None)
        >>> image.place.parts[0]
        'train'
    """

    place: PurePosixPath
    type: str
    pixels: NDArray[np.uint8]
    mask: NDArray[np.bool_] | None


def rd_images(
    folder: str | os.PathLike[str], *, seed: int, on_bad: Callable[[ImageError], None] | None = None
) -> Iterator[RdImage]:
    """Images of one class of MVTec AD, training first. The same class, file and seed always give the same image.

    A mask without anomalous pixels counts as none. `on_bad` is called with an image that cannot be read, or whose mask
    cannot, and which is then left out; None raises ImageError. Raises DatasetError.
    """
    root = expand_home(folder)
    data = read_mvtec_ad(root)
    samples = [*(Sample(path, GOOD) for path in data.train if isinstance(path, Path)), *data.test]
    _check_places(samples, root)
    for sample in samples:
        path, mask = sample.path, sample.mask_path
        random = _random(f"{seed}/{data.name}/{path.relative_to(root).as_posix()}")
        try:
            pixels, truth = read_image(path), None if mask is None else read_mask(mask)
        except ImageError as error:
            if on_bad is None:
                raise
            on_bad(error)
            continue
        if truth is not None and truth.shape != pixels.shape[:2]:
            raise DatasetError(
                f"{mask}: the mask is {truth.shape[0]} x {truth.shape[1]}, but its image {path} is "
                f"{pixels.shape[0]} x {pixels.shape[1]}"
            )
        marked = truth if truth is not None and truth.any() else None
        yield RdImage(_place(path, root), sample.type, *_move(pixels, marked, random))


def write_rd_mvtec_ad(
    root: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    seed: int,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, int]:
    """Write one class, or all classes of a root, below a new folder, in MVTec AD's layout; returns images by class.

    The folder appears when all of it is written. Raises DatasetError, also if it exists and is not empty.
    """
    source, target = expand_home(root), expand_home(output)
    classes = find_class_folders(source) or [source]
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DatasetError(f"{target}: exists and is not empty; name a new folder")
    temporary = target.absolute().parent / f".{target.name}.{secrets.token_hex(8)}.partial"
    try:
        counts: Counter[str] = Counter()
        for folder in classes:
            name = folder.resolve().name
            for image in rd_images(folder, seed=seed):
                _write(temporary / name, image)
                counts[name] += 1
                advance(1)
        if target.exists():
            target.rmdir()
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return counts


def _place(path: Path, root: Path) -> PurePosixPath:
    return PurePosixPath(*path.relative_to(root).with_suffix(".png").parts)


def _mask_place(place: PurePosixPath, kind: str) -> PurePosixPath:
    return PurePosixPath("ground_truth", kind, f"{place.stem}_mask.png")


def _check_places(samples: Sequence[Sample], root: Path) -> None:
    """Raise DatasetError for two images that would be written, or whose masks would be, to one file."""
    taken: dict[PurePosixPath, Path] = {}
    for sample in samples:
        place = _place(sample.path, root)
        for own in [place] if sample.mask_path is None else [place, _mask_place(place, sample.type)]:
            if own in taken:
                raise DatasetError(
                    f"{sample.path}: would be written to {own}, as would {taken[own]}; rename one of them"
                )
            taken[own] = sample.path


def _random(key: str) -> np.random.Generator:
    """A generator seeded by a text, the same on every machine."""
    return np.random.default_rng(int.from_bytes(hashlib.blake2b(os.fsencode(key), digest_size=8).digest(), "little"))


def _move(
    pixels: NDArray[np.uint8], mask: NDArray[np.bool_] | None, random: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
    """Resize, rotate and crop an image (H, W, 3) and its mask (H, W) alike."""
    degrees = float(random.uniform(-MAX_DEGREES, MAX_DEGREES))
    top, left = (int(offset) for offset in random.integers(0, RESIZE - CROP + 1, 2))

    def move(image: Image.Image, filter_: Image.Resampling) -> Image.Image:
        turned = image.resize((RESIZE, RESIZE), filter_).rotate(degrees, filter_)
        return turned.crop((left, top, left + CROP, top + CROP))

    moved = np.asarray(move(Image.fromarray(pixels), Image.Resampling.BILINEAR))
    if mask is None:
        return moved, None
    return moved, np.asarray(move(Image.fromarray(mask.astype(np.uint8) * 255), Image.Resampling.NEAREST)) > 127


def _write(folder: Path, image: RdImage) -> None:
    path = folder / image.place
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.pixels).save(path)
    if image.mask is not None:
        mask = folder / _mask_place(image.place, image.type)
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.mask.astype(np.uint8) * 255).save(mask)
