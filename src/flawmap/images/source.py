"""What a user may hand in as images: a path, folder, glob, video, array, PIL image, or an iterable of these."""

from __future__ import annotations

import glob
import os
import re
import stat
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from flawmap.errors import DatasetError, ImageError, ParameterError, PassedOverWarning
from flawmap.files import expand_home
from flawmap.images.formats import RUN, TIFF_MARKS, VIDEO_SUFFIXES, describe_passed_over, describe_results
from flawmap.images.hints import refuse_stream, why_missing
from flawmap.images.pages import ImagePage, find_pages
from flawmap.images.read import ImageSource
from flawmap.images.search import Found, find_matches, list_folder
from flawmap.images.video import VideoFrame, find_frames

ImageInput = ImageSource | Iterable[ImageSource]
"""A path, folder or glob; a video; `photo.tif#2` or `clip.mp4#17`; an array (H, W), (H, W, C) or batch (N, H, W, C); a
PIL image; a page of a file; a frame of a video; or an iterable of these."""

PART = re.compile(r"(.+)#(\d{1,9})", re.DOTALL)
"""A page of an image file, or a frame of a video."""

START = 4096
"""First bytes of a file that are looked at for signs of several pages."""


@dataclass(frozen=True, eq=False)
class ImageCollection:
    """Images to read, one after the other.

    Attributes:
        items: paths, pages of files, frames of videos, arrays and PIL images.
        count: how many there are; None where only reading on will tell.
        single: whether the user gave one image and not a collection.
        passed_over: files in folders and globs that are no images; none are known of an iterator.
        results: pictures in folders and globs that an earlier run left; they are not among the images.
    """

    items: Iterable[ImageSource]
    count: int | None
    single: bool
    passed_over: tuple[Path, ...] = ()
    results: tuple[Path, ...] = ()


def collect(images: ImageInput, *, stride: int = 1, warn: bool = True) -> ImageCollection:
    """The images meant by an input; files that are none are a PassedOverWarning, unless the caller tells of them.

    Of videos every `stride`-th frame is taken. Raises DatasetError for a folder or glob without images, ImageError for
    no file, ParameterError for what can be no image, such as an empty path or an address.
    """
    if isinstance(images, (list, tuple)):
        found = list(_each(images, stride))
        passed_over, results = (
            tuple(chain.from_iterable(column))
            for column in ((one.passed_over for one in found), (one.results for one in found))
        )
        items = [item for one in found for item in one.images]
        collection = ImageCollection(items, len(items), False, passed_over, results)
    elif isinstance(images, (str, os.PathLike, np.ndarray, Image.Image, VideoFrame, ImagePage)):
        [one] = _each([images], stride)
        if isinstance(images, (str, os.PathLike)) and one.single and not _exists(_file_of(one.images[0])):
            raise ImageError(str(images), why_missing(images))
        collection = ImageCollection(
            one.images, len(one.images), one.single, tuple(one.passed_over), tuple(one.results)
        )
    elif not isinstance(images, Iterable) or isinstance(images, (bytes, bytearray, memoryview)):
        raise ParameterError(
            f"images must be a path, folder, glob, array, PIL image or iterable of these, not {type(images).__name__}"
        )
    else:
        return ImageCollection(_flatten(images, stride, warn), None, False)
    if warn:
        _warn(collection.passed_over, collection.results)
    return collection


def _flatten(images: Iterable[object], stride: int, warn: bool) -> Iterator[ImageSource]:
    for found in _each(images, stride):
        if warn:
            _warn(found.passed_over, found.results)
        yield from found.images


def _warn(passed_over: Sequence[Path], results: Sequence[Path]) -> None:
    if passed_over:
        warnings.warn(describe_passed_over(passed_over), PassedOverWarning, stacklevel=4)
    if results:
        warnings.warn(describe_results(results), PassedOverWarning, stacklevel=4)


def _each(images: Iterable[object], stride: int) -> Iterator[Found]:
    """What each element of an iterable means; a missing file is passed on, and reading it will tell."""
    for image in images:
        if isinstance(image, np.ndarray) and image.ndim == 4:
            yield Found(list(image))
        elif isinstance(image, (np.ndarray, Image.Image, VideoFrame, ImagePage)):
            yield Found([image], single=True)
        elif isinstance(image, (str, os.PathLike)):
            yield _expand(_path(image), stride)
        else:
            raise ParameterError(f"expected paths, arrays or PIL images, got {type(image).__name__}")


def _expand(path: Path, stride: int) -> Found:
    """A file's pages or frames; the images of a folder; the matches of a glob (an existing path is no glob)."""
    if not _exists(path):
        if (part := _part(path)) is not None:
            return Found([part], single=True)
        if glob.has_magic(str(path)):
            return _split_all(find_matches(path), stride)
        return Found([path], single=True)
    if path.is_dir():
        found = list_folder(path)
        return _split_all(found, stride)
    images = _split(path, stride)
    return Found(images, single=len(images) == 1 and path.suffix.lower() not in VIDEO_SUFFIXES)


def named_source(path: Path) -> Path | ImagePage | VideoFrame:
    """What the `path` of a prediction names: a file, or a page or frame of one."""
    return path if _exists(path) else _part(path) or path


def _part(path: Path) -> ImagePage | VideoFrame | None:
    """The page or frame meant by `photo.tif#2` or `clip.mp4#17`, if there is such a file."""
    match = PART.fullmatch(str(path))
    if match is None or not _exists(file := Path(match[1])) or file.is_dir():
        return None
    number = int(match[2])
    if file.suffix.lower() in VIDEO_SUFFIXES:
        return VideoFrame(file, number)
    return ImagePage(file, number) if number else None


def _split_all(found: Found, stride: int) -> Found:
    """The pages and frames of what was found; a picture that names the run it is of is one of the results."""
    images, results = list[ImageSource](), [*found.results]
    for path in map(_file_of, found.images):
        items = _split(path, stride, results)
        images += items
    if results and not images:
        raise DatasetError(f"{describe_results(results)}; there are no other images")
    return Found(images, found.passed_over, results=results)


def _split(path: Path, stride: int, results: list[Path] | None = None) -> Sequence[ImageSource]:
    """A file as it is, or its pages, or its frames. What cannot be read stays as it is: reading it will tell.

    The picture of an earlier run is added to `results`, where there is such a list, and not given.
    """
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return find_frames(path)[::stride]
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return [path]
        with path.open("rb") as stream:
            start = stream.read(START)
    except (OSError, ValueError):
        return [path]
    if results is not None and RUN.search(start):
        results.append(path)
        return []
    return find_pages(path) if _may_hold_pages(start) else [path]


def _may_hold_pages(start: bytes) -> bool:
    """Whether a file that begins so can have several pages."""
    if start.startswith(b"\x89PNG"):  # that of an animation stands before the pixels
        return b"acTL" in start or b"IDAT" not in start
    if start.startswith(b"RIFF"):
        return start[8:16] == b"WEBPVP8X" and bool(start[20] & 2)
    return start.startswith((*TIFF_MARKS, b"GIF8")) or (start[4:8] == b"ftyp" and b"avis" in start[8:32])


def _path(where: str | os.PathLike[str]) -> Path:
    text = os.fspath(where)
    if isinstance(where, str) and not where.strip():
        raise ParameterError("a path is empty; give a file, folder or glob (. is the current folder)")
    if text.startswith("/dev/") or not _exists(where):
        refuse_stream(text)
    return expand_home(where) if text.startswith("~") else Path(where)


def _file_of(item: ImageSource) -> Path:
    return item.path if isinstance(item, (ImagePage, VideoFrame)) else Path(item)  # type: ignore[arg-type]


def _exists(path: str | os.PathLike[str]) -> bool:
    return os.path.exists(path)  # noqa: PTH110 (Path.exists raises for names that are too long or may not be seen)
