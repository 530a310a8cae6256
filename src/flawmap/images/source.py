"""What a user may hand in as images: a path, folder, glob, video, array, PIL image, or an iterable of these."""

from __future__ import annotations

import glob
import os
import re
import stat
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from flawmap.errors import DatasetError, ImageError, ParameterError, PassedOverWarning
from flawmap.files import expand_home
from flawmap.images.formats import (
    SKIPPED,
    SUFFIXES,
    SYSTEM_FILES,
    TIFF_MARKS,
    VIDEO_SUFFIXES,
    describe_passed_over,
    is_image,
)
from flawmap.images.hints import refuse_stream, why_missing, why_no_match
from flawmap.images.pages import ImagePage, find_pages
from flawmap.images.read import ImageSource
from flawmap.images.video import VideoFrame, find_frames

ImageInput = ImageSource | Iterable[ImageSource]
"""A path, folder or glob; a video; `photo.tif#2` or `clip.mp4#17`; an array (H, W), (H, W, C) or batch (N, H, W, C); a
PIL image; a page of a file; a frame of a video; or an iterable of these."""

PART = re.compile(r"(.+)#(\d{1,9})", re.DOTALL)
"""A page of an image file, or a frame of a video."""

START = 4096
"""First bytes of a file that are looked at for signs of several pages."""


EXPECTED = "expected files ending in .bmp, .jpg, .png, .tif, .webp, ..."


@dataclass(frozen=True, eq=False)
class ImageCollection:
    """Images to read, one after the other.

    Attributes:
        items: paths, pages of files, frames of videos, arrays and PIL images.
        count: how many there are; None where only reading on will tell.
        single: whether the user gave one image and not a collection.
        passed_over: files in folders and globs that are no images; none are known of an iterator.
    """

    items: Iterable[ImageSource]
    count: int | None
    single: bool
    passed_over: tuple[Path, ...] = ()


class Found(NamedTuple):
    """Images that are meant by one input, and files beside them that are none."""

    images: Sequence[ImageSource]
    passed_over: Sequence[Path] = ()
    single: bool = False


def collect(images: ImageInput, *, stride: int = 1, warn: bool = True) -> ImageCollection:
    """The images meant by an input; files that are none are a PassedOverWarning, unless the caller tells of them.

    Of videos every `stride`-th frame is taken. Raises DatasetError for a folder or glob without images, ImageError for
    no file, ParameterError for what can be no image, such as an empty path or an address.
    """
    if isinstance(images, (list, tuple)):
        found = list(_each(images, stride))
        passed_over = tuple(chain.from_iterable(one.passed_over for one in found))
        items = [item for one in found for item in one.images]
        collection = ImageCollection(items, len(items), False, passed_over)
    elif isinstance(images, (str, os.PathLike, np.ndarray, Image.Image, VideoFrame, ImagePage)):
        [one] = _each([images], stride)
        if isinstance(images, (str, os.PathLike)) and one.single and not _exists(_file_of(one.images[0])):
            raise ImageError(str(images), why_missing(images))
        collection = ImageCollection(one.images, len(one.images), one.single, tuple(one.passed_over))
    elif not isinstance(images, Iterable) or isinstance(images, bytes):
        raise ParameterError(
            f"images must be a path, folder, glob, array, PIL image or iterable of these, not {type(images).__name__}"
        )
    else:
        return ImageCollection(_flatten(images, stride, warn), None, False)
    if warn:
        _warn(collection.passed_over)
    return collection


def _flatten(images: Iterable[object], stride: int, warn: bool) -> Iterator[ImageSource]:
    for found in _each(images, stride):
        if warn:
            _warn(found.passed_over)
        yield from found.images


def _warn(passed_over: Sequence[Path]) -> None:
    if passed_over:
        warnings.warn(describe_passed_over(passed_over), PassedOverWarning, stacklevel=4)


def list_folder(folder: Path) -> Found:
    """Images below a folder, and the other files; DatasetError if there are no images."""
    found = search_folder(folder)
    if found.images:
        return found
    others = f"; {describe_passed_over(found.passed_over)}" if found.passed_over else ""
    raise DatasetError(f"{folder}: no images in this folder{others}; {EXPECTED}")


def find_images(folder: Path) -> list[Path]:
    """Image files below a folder, sorted by their path's parts; maybe none. The other rules are those of `walk`."""
    return _sorted(path for path in walk(folder) if _is_image(path))


def search_folder(folder: Path) -> Found:
    """Image files below a folder, and the files that are none, both sorted by their path's parts."""
    images, others = list[str](), list[str]()
    for path in walk(folder):
        (images if _is_image(path) else others).append(path)
    return Found(_sorted(images), _sorted(others))


def walk(folder: Path) -> Iterator[str]:
    """Files below a folder, in no order, without hidden ones and those of file managers.

    Links to folders are followed. A folder that is reached several times, by a link or in a loop, is searched once, and
    without a link if there is such a way; a file with several names is several files. Raises DatasetError if a folder
    may not be listed, for its images would be missed without a word.
    """
    folders, links = [os.fspath(folder)], list[str]()
    seen = set()
    while folders or links:
        top = folders.pop() if folders else links.pop(0)
        try:
            status = os.stat(top)  # noqa: PTH116 (paths are strings here, of which there are many)
            if (key := (status.st_dev, status.st_ino)) in seen:
                continue
            seen.add(key)
            with os.scandir(top) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            remedy = "check the path" if isinstance(error, FileNotFoundError) else "change its permissions"
            raise DatasetError(f"{top}: this folder cannot be listed ({error.strerror}); {remedy}") from error
        for entry in listed:
            if entry.name.startswith(".") or entry.name == SKIPPED:
                continue
            if not _is_dir(entry):
                if entry.name.lower() not in SYSTEM_FILES:
                    yield entry.path
            elif entry.is_symlink():
                links.append(entry.path)
            else:
                folders.append(entry.path)


def _is_image(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in SUFFIXES or is_image(path)  # noqa: PTH122 (of many files the usual ones)


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


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
            return _matches(path, stride)
        return Found([path], single=True)
    if path.is_dir():
        found = list_folder(path)
        return Found(_split_all(found.images, stride), found.passed_over)
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


def _matches(pattern: Path, stride: int) -> Found:
    """Files that match a glob: images, or every file if it names an ending itself ("*.raw").

    Leading folders that exist under their very name, such as lot[1], are no part of the pattern.
    """
    parents = [*pattern.parents]
    literal = next((parent for parent in parents if glob.has_magic(str(parent)) and _exists(parent)), None)
    text = str(pattern)
    if literal is not None:
        text = os.path.join(glob.escape(str(literal)), pattern.relative_to(literal))  # noqa: PTH118
    files = {
        match
        for match in _glob(text)
        if not match.is_dir() and SKIPPED not in match.parts and match.name.lower() not in SYSTEM_FILES
    }
    names_its_ending = pattern.suffix != "" and not glob.has_magic(pattern.suffix)
    found = files if names_its_ending else {match for match in files if is_image(match)}
    others = files - found
    if not found:
        told = f"; {describe_passed_over(_sorted(others))}" if others else ""
        hint = why_no_match(str(pattern))
        raise DatasetError(f"{pattern}: no image matches this pattern{told}; {EXPECTED}{hint}")
    return Found(_split_all(_sorted(found), stride), _sorted(others))


def _glob(pattern: str) -> Iterator[Path]:
    """What a pattern matches; below `**` the rules of `walk` hold, for links may make a loop."""
    parts = Path(pattern).parts
    if "**" not in parts:
        yield from map(Path, glob.glob(pattern))  # noqa: PTH207 (takes absolute ones)
        return
    first = parts.index("**")
    for base in glob.glob(str(Path(*parts[:first]))) if first else ["."]:  # noqa: PTH207
        for path in map(Path, walk(Path(base)) if Path(base).is_dir() else ()):
            if _fits(path.relative_to(base).parts, parts[first:]):
                yield path


def _fits(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether the names of a path fit those of a pattern, of which `**` stands for any number."""
    if not patterns:
        return not names
    if patterns[0] == "**":
        return any(_fits(names[skipped:], patterns[1:]) for skipped in range(len(names) + 1))
    return bool(names) and fnmatchcase(names[0], patterns[0]) and _fits(names[1:], patterns[1:])


def _split_all(paths: Iterable[ImageSource], stride: int) -> list[ImageSource]:
    return [item for path in paths if isinstance(path, Path) for item in _split(path, stride)]


def _split(path: Path, stride: int) -> Sequence[ImageSource]:
    """A file as it is, or its pages, or its frames. What cannot be read stays as it is: reading it will tell."""
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return find_frames(path)[::stride]
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return [path]
        with path.open("rb") as stream:
            start = stream.read(START)
    except (OSError, ValueError):
        return [path]
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


def _sorted(paths: Iterable[str | Path]) -> list[Path]:
    return sorted((Path(path) for path in paths), key=lambda path: path.parts)
