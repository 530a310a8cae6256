"""What a user may hand in as images: a path, folder, glob, array, PIL image, or an iterable of these."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flawmap.errors import DatasetError, ImageError, ParameterError
from flawmap.images.read import ImageSource

__all__ = ["SUFFIXES", "ImageCollection", "ImageInput", "collect", "list_folder"]

ImageInput = str | os.PathLike[str] | NDArray[Any] | Image.Image | Iterable[ImageSource]
"""A path, folder or glob; an array (H, W), (H, W, C) or batch (N, H, W, C); a PIL image; or an iterable of these."""

SUFFIXES = frozenset(
    {
        ".bmp",
        ".dib",
        ".gif",
        ".jp2",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    }
)
"""File names in folders and globs that are taken for images; others are passed over."""

SKIPPED = "__MACOSX"
"""Folder of an archive's metadata, whose files are named like images."""


@dataclass(frozen=True, eq=False)
class ImageCollection:
    """Images to read, one after the other.

    Attributes:
        items: paths, arrays and PIL images.
        count: how many there are; None where only reading on will tell.
        single: whether the user gave one image and not a collection.
    """

    items: Iterable[ImageSource]
    count: int | None
    single: bool


def collect(images: ImageInput) -> ImageCollection:
    """The images meant by an input. Raises DatasetError for a folder or glob without images, ImageError for no file."""
    if isinstance(images, np.ndarray):
        if images.ndim == 4:
            return ImageCollection(list(images), len(images), False)
        return ImageCollection([images], 1, True)
    if isinstance(images, Image.Image):
        return ImageCollection([images], 1, True)
    if isinstance(images, (str, os.PathLike)):
        paths = _expand(images)
        if not paths[0].exists():
            raise ImageError(str(images), "no such file or folder")
        return ImageCollection(paths, len(paths), single=paths == [Path(images)] and not Path(images).is_dir())
    if isinstance(images, (list, tuple)):
        items = list(_flatten(images))
        return ImageCollection(items, len(items), False)
    if not isinstance(images, Iterable):
        raise ParameterError(
            f"images must be a path, folder, glob, array, PIL image or iterable of these, not {type(images).__name__}"
        )
    return ImageCollection(_flatten(images), None, False)


def list_folder(folder: Path) -> list[Path]:
    """Image files below a folder, sorted by their path; hidden files and folders are passed over."""
    found = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name != SKIPPED]
        found += [Path(root, name) for name in files if _looks_like_image(name)]
    if not found:
        raise DatasetError(
            f"{folder}: no images in this folder; expected files ending in {', '.join(sorted(SUFFIXES))}"
        )
    return sorted(found, key=lambda path: path.parts)


def _flatten(images: Iterable[object]) -> Iterator[ImageSource]:
    """Elements of an iterable, with folders, globs and batches among them spread out; a missing file is passed on."""
    for image in images:
        if isinstance(image, np.ndarray) and image.ndim == 4:
            yield from image
        elif isinstance(image, (np.ndarray, Image.Image)):
            yield image
        elif isinstance(image, (str, os.PathLike)):
            yield from _expand(image)
        else:
            raise ParameterError(f"expected paths, arrays or PIL images, got {type(image).__name__}")


def _expand(where: str | os.PathLike[str]) -> list[Path]:
    """A file as it is; the images of a folder; the matches of a glob (an existing path is never taken for one)."""
    path = Path(where).expanduser()
    if path.is_dir():
        return list_folder(path)
    if path.exists():
        return [path]
    if not glob.has_magic(str(path)):
        return [path]
    matches = [Path(match) for match in glob.glob(str(path), recursive=True)]  # noqa: PTH207 (takes absolute patterns)
    found = [match for match in matches if match.is_file() and _looks_like_image(match.name)]
    found = [match for match in found if SKIPPED not in match.parts]
    if not found:
        raise DatasetError(f"{where}: no image matches this pattern")
    return sorted(set(found), key=lambda path: path.parts)


def _looks_like_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 (a bare name)
