"""What a user may hand in as images: a path, folder, glob, array, PIL image, or an iterable of these."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from flawmap.errors import DatasetError, ImageError, ParameterError
from flawmap.files import expand_home
from flawmap.images.read import ImageSource
from flawmap.images.video import VideoFrame

ImageInput = ImageSource | Iterable[ImageSource]
"""A path, folder or glob; an array (H, W), (H, W, C) or batch (N, H, W, C); a PIL image; a frame of a video; or an
iterable of these."""

SUFFIXES = frozenset(
    f".{ending}"
    for ending in "bmp dib gif jp2 jpe jpeg jpg pbm pgm png pnm ppm tif tiff webp".split()  # noqa: SIM905 (a table)
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
    if isinstance(images, (Image.Image, VideoFrame)):
        return ImageCollection([images], 1, True)
    if isinstance(images, (str, os.PathLike)):
        path = _path(images)
        paths = _expand(path)
        if not _exists(paths[0]):
            raise ImageError(str(images), "no such file or folder; check the path")
        return ImageCollection(paths, len(paths), single=paths == [path])
    if isinstance(images, (list, tuple)):
        items = list(_flatten(images))
        return ImageCollection(items, len(items), False)
    if not isinstance(images, Iterable) or isinstance(images, bytes):
        raise ParameterError(
            f"images must be a path, folder, glob, array, PIL image or iterable of these, not {type(images).__name__}"
        )
    return ImageCollection(_flatten(images), None, False)


def list_folder(folder: Path) -> list[Path]:
    """Image files below a folder, as `find_images`; DatasetError if there are none."""
    if not (found := find_images(folder)):
        raise DatasetError(f"{folder}: no images in this folder; expected files ending in {_endings()}")
    return found


def find_images(folder: Path) -> list[Path]:
    """Image files below a folder, sorted by their path's parts; maybe none.

    Hidden files and folders are passed over, and links to folders are not followed (the folder itself may be a link).
    Raises DatasetError if a folder may not be listed, for its images would be missed without a word.
    """
    found = []
    for root, folders, files in os.walk(folder, onerror=_cannot_list):
        folders[:] = [name for name in folders if not name.startswith(".") and name != SKIPPED]
        found += [Path(root, name) for name in files if _looks_like_image(name)]
    return sorted(found, key=lambda path: path.parts)


def _cannot_list(error: OSError) -> None:
    remedy = "check the path" if isinstance(error, FileNotFoundError) else "change its permissions"
    raise DatasetError(f"{error.filename}: this folder cannot be listed ({error.strerror}); {remedy}")


def _flatten(images: Iterable[object]) -> Iterator[ImageSource]:
    """Elements of an iterable, with folders, globs and batches among them spread out; a missing file is passed on."""
    for image in images:
        if isinstance(image, np.ndarray) and image.ndim == 4:
            yield from image
        elif isinstance(image, (np.ndarray, Image.Image, VideoFrame)):
            yield image
        elif isinstance(image, (str, os.PathLike)):
            yield from _expand(_path(image))
        else:
            raise ParameterError(f"expected paths, arrays or PIL images, got {type(image).__name__}")


def _expand(path: Path) -> list[Path]:
    """A file as it is; the images of a folder; the matches of a glob (an existing path is never taken for one).

    A glob finds images only, unless it names an ending itself ("*.raw").
    """
    if not _exists(path) and glob.has_magic(str(path)):
        return _matches(path)
    return list_folder(path) if _exists(path) and path.is_dir() else [path]


def _matches(pattern: Path) -> list[Path]:
    names_its_ending = pattern.suffix != "" and not glob.has_magic(pattern.suffix)
    matches = [Path(match) for match in glob.glob(str(pattern), recursive=True)]  # noqa: PTH207 (takes absolute ones)
    found = {
        match
        for match in matches
        if match.is_file() and SKIPPED not in match.parts and (names_its_ending or _looks_like_image(match.name))
    }
    if not found:
        raise DatasetError(f"{pattern}: no image matches this pattern; expected files ending in {_endings()}")
    return sorted(found, key=lambda path: path.parts)


def _path(where: str | os.PathLike[str]) -> Path:
    path = Path(where)
    return expand_home(path) if path.parts[:1] and path.parts[0].startswith("~") else path


def _exists(path: Path) -> bool:
    return os.path.exists(path)  # noqa: PTH110 (Path.exists raises for names that are too long or may not be seen)


def _endings() -> str:
    return ", ".join(sorted(SUFFIXES))


def _looks_like_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 (a bare name)
