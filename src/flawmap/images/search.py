"""Image files below folders, and those that a glob matches."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from flawmap.errors import DatasetError
from flawmap.images.capture import EXIF_SUFFIXES, capture_times
from flawmap.images.formats import (
    RUN_FOLDERS,
    SKIPPED,
    SUFFIXES,
    SYSTEM_FILES,
    describe_passed_over,
    describe_results,
    holds_run,
    is_image,
)
from flawmap.images.hints import why_no_match
from flawmap.images.read import ImageSource

EXPECTED = "expected files ending in .bmp, .jpg, .png, .tif, .webp, ..."


def is_flat(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a folder without folders in it: it holds images, and no data set."""
    try:
        with os.scandir(path) as entries:
            return not any(entry.is_dir() for entry in entries)
    except OSError:
        return False


class Found(NamedTuple):
    """Images that are meant by one input, and files beside them that are none."""

    images: Sequence[ImageSource]
    passed_over: Sequence[Path] = ()
    single: bool = False
    results: Sequence[Path] = ()


def list_folder(folder: Path) -> Found:
    """Images below a folder, and the other files; DatasetError if there are no images."""
    found = search_folder(folder)
    if found.images:
        return found
    others = f"; {describe_passed_over(found.passed_over)}" if found.passed_over else ""
    others += f"; {describe_results(found.results)}" if found.results else ""
    raise DatasetError(f"{folder}: no images in this folder{others}; {EXPECTED}")


def find_images(folder: Path) -> list[Path]:
    """Image files below a folder, sorted by their path's parts; maybe none. The other rules are those of `walk`."""
    return _sorted(path for path in walk(folder) if _is_image(path))


def search_folder(folder: Path) -> Found:
    """Image files below a folder, those that are none, and those of earlier runs, sorted by their path's parts."""
    images, others, results = list[str](), list[str](), list[str]()
    for path in walk(folder, results):
        (images if _is_image(path) else others).append(path)
    return Found(_sorted(images), _sorted(others), results=_sorted(path for path in results if _is_image(path)))


def walk(folder: Path, results: list[str] | None = None) -> Iterator[str]:
    """Files below a folder, in no order, without hidden ones and those of file managers.

    Links to folders are followed. A folder that is reached several times, by a link or in a loop, is searched once, and
    without a link if there is such a way; a file with several names is several files. Files that an earlier run left in
    its folders are added to `results`, where there is such a list, and not given. Raises DatasetError if a folder may
    not be listed, for its images would be missed without a word.
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
            names = {entry.name for entry in listed} if results is not None else set()
            is_run = not names.isdisjoint(RUN_FOLDERS) and holds_run(top, names)
        except OSError as error:
            remedy = "check the path" if isinstance(error, FileNotFoundError) else "change its permissions"
            raise DatasetError(f"{top}: this folder cannot be listed ({error.strerror}); {remedy}") from error
        for entry in listed:
            if entry.name.startswith(".") or entry.name == SKIPPED:
                continue
            if not _is_dir(entry):
                if entry.name.lower() not in SYSTEM_FILES:
                    yield entry.path
            elif is_run and results is not None and entry.name in RUN_FOLDERS:
                results += walk(Path(entry.path))
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


def find_matches(pattern: Path) -> Found:
    """Files that match a glob: images, or every file if it names an ending itself ("*.raw").

    Leading folders that exist under their very name, such as lot[1], are no part of the pattern.
    """
    parents = [*pattern.parents]
    literal = next((parent for parent in parents if glob.has_magic(str(parent)) and os.path.exists(parent)), None)  # noqa: PTH110
    text = str(pattern)
    if literal is not None:
        text = os.path.join(glob.escape(str(literal)), pattern.relative_to(literal))  # noqa: PTH118
    results = list[str]()
    files = {
        match
        for match in _glob(text, results)
        if not match.is_dir() and SKIPPED not in match.parts and match.name.lower() not in SYSTEM_FILES
    }
    names_its_ending = pattern.suffix != "" and not glob.has_magic(pattern.suffix)
    found = files if names_its_ending else {match for match in files if is_image(match)}
    others = files - found
    if not found:
        told = f"; {describe_passed_over(_sorted(others))}" if others else ""
        hint = why_no_match(str(pattern))
        raise DatasetError(f"{pattern}: no image matches this pattern{told}; {EXPECTED}{hint}")
    return Found(_sorted(found), _sorted(others), results=_sorted(path for path in results if _is_image(path)))


def _glob(pattern: str, results: list[str]) -> Iterator[Path]:
    """What a pattern matches; below `**` the rules of `walk` hold, for links may make a loop."""
    parts = Path(pattern).parts
    if "**" not in parts:
        yield from map(Path, glob.glob(pattern))  # noqa: PTH207 (takes absolute ones)
        return
    first = parts.index("**")
    for base in glob.glob(str(Path(*parts[:first]))) if first else ["."]:  # noqa: PTH207
        for path in map(Path, walk(Path(base), results) if Path(base).is_dir() else ()):
            if _fits(path.relative_to(base).parts, parts[first:]):
                yield path


def _fits(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether the names of a path fit those of a pattern, of which `**` stands for any number."""
    if not patterns:
        return not names
    if patterns[0] == "**":
        return any(_fits(names[skipped:], patterns[1:]) for skipped in range(len(names) + 1))
    return bool(names) and fnmatchcase(names[0], patterns[0]) and _fits(names[1:], patterns[1:])


def _sorted(paths: Iterable[str | Path]) -> list[Path]:
    return sorted((Path(path) for path in paths), key=lambda path: path.parts)


def capture_order(names: Sequence[str], sources: Sequence[ImageSource | None]) -> list[int]:
    """Places of photos in the order of capture: of their EXIF times if all have one, or else of their names."""
    places = sorted(range(len(names)), key=lambda place: _natural_key(names[place]))
    if not places or not names[places[0]].lower().endswith(EXIF_SUFFIXES):
        return places
    times = capture_times([sources[place] for place in places])
    return [place for _, place in sorted(zip(times, places, strict=True), key=itemgetter(0))] if times else places


def _natural_key(name: str) -> list[tuple[bool, int, str]]:
    """What names are sorted by so that numbers in them count as numbers: photo 9 before photo 10."""
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", name)]
