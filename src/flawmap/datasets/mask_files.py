"""Masks of images, found by their names: in folders as people keep them, in upper or lower case."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

from flawmap.datasets.dataset import Sample, is_folder, subfolders, why_no_file
from flawmap.errors import DatasetError
from flawmap.images import DefectMasks
from flawmap.images.formats import is_image
from flawmap.images.search import find_images

FOLDERS = frozenset(("ground_truth", "groundtruth", "ground-truth", "ground truth", "masks", "mask", "gt"))
"""Names of folders that hold masks, in lower case."""
MARKS = ("_mask", "-mask", ".mask", "_gt", "-gt", ".gt", "_ground_truth", "_groundtruth")
"""What a mask's name may have after its image's, in lower case; the first that is found counts."""

Masks = dict[Path, Path | DefectMasks]
"""The mask of each image that has one."""


def mask_folders(root: Path) -> list[Path]:
    """Folders of masks in a folder."""
    return [path for path in subfolders(root) if path.name.lower() in FOLDERS]


def without_masks(images: Sequence[Path]) -> list[Path]:
    """Images without those that are masks of others beside them, such as 000_mask.png beside 000.png."""
    stems = {(path.parent, path.stem.lower()) for path in images}
    return [path for path in images if not any((path.parent, name) in stems for name in image_names(path)[1:])]


def image_names(mask: Path) -> list[str]:
    """Names that the image of a mask may have, without their ending, in lower case; its own comes first."""
    stem = mask.stem.lower()
    return [stem, *(stem.removesuffix(mark) for mark in MARKS if stem.endswith(mark))]


def find_masks(folders: Sequence[Path], types: Mapping[Path, Sequence[Path]]) -> Masks:
    """Masks of anomalous images, given the images of each type by its folder.

    The mask of TYPE/NAME.jpg is sought in the folders of masks, in this order: TYPE/NAME_mask.png, TYPE/NAME.png, the
    files of a folder TYPE/NAME, then all these without TYPE/, also TYPE_NAME_mask.png; at last NAME_mask.png beside the
    image. Case and ending do not matter. Of images of one name in several folders each finds the mask that lies where
    it lies itself, below TYPE/, and no other one.
    """
    images = {path for paths in types.values() for path in paths}
    everywhere = Counter(path.stem.lower() for path in images)
    names = {kind.name.lower() for kind in types}
    look = cache(lambda folder: _Names(folder, images, names))  # each folder is listed once
    found: Masks = {}
    for kind, paths in types.items():
        of_type = Counter(path.stem.lower() for path in paths)
        typed = [path for base in folders for path in subfolders(base) if path.name.lower() == kind.name.lower()]
        for image in paths:
            stem, inner = image.stem.lower(), image.parent.relative_to(kind)
            places = [(base / inner, stem) for base in typed]
            places += [(base, stem) for base in typed if of_type[stem] == 1]
            places += [(base, f"{kind.name.lower()}{joint}{stem}") for base in folders for joint in "_-"]
            places += [(base, stem) for base in folders if everywhere[stem] == 1]
            masks = (look(folder).find(name, image) for folder, name in places)
            mask = next((mask for mask in masks if mask is not None), None) or look(image.parent).beside(image)
            if mask is not None:
                found[image] = mask
    return found


def named_files() -> Callable[[Path], Path | None]:
    """Finds the file of a path in a table, or one whose name differs in case or ending alone; None if there is none.

    Each folder is listed once.
    """
    pictures = cache(_pictures)

    def find(path: Path) -> Path | None:
        if why_no_file(path) is None:
            return path
        twins = pictures(path.parent) if is_folder(path.parent) else []
        return next((twin for twin in twins if twin.stem.lower() == path.stem.lower()), None)

    return find


def why_no_masks(samples: Iterable[Sample], folders: Sequence[Path]) -> tuple[str, ...]:
    """A remark if no anomalous image has a mask: where masks were looked for."""
    anomalous = [sample for sample in samples if sample.is_anomalous]
    if not anomalous or any(sample.mask_path is not None for sample in anomalous):
        return ()
    names = [path.name for path in folders] or ["ground_truth", "masks"]
    places = ", ".join(f"{name}/TYPE/NAME_mask.png, {name}/NAME.png" for name in names)
    return (f"none of {len(anomalous)} masks found; looked for {places}, NAME_mask.png beside the image",)


class _Names:
    """Names in a folder, in lower case and without endings; `images` are no masks, folders named as `types` neither."""

    def __init__(self, folder: Path, images: set[Path], types: set[str]) -> None:
        self._files: dict[str, list[Path]] = defaultdict(list)
        self._folders = {path.name.lower(): path for path in subfolders(folder) if path.name.lower() not in types}
        for path in _pictures(folder):
            if path not in images:
                self._files[path.stem.lower()].append(path)

    def find(self, name: str, image: Path) -> Path | DefectMasks | None:
        """The mask of a name, or a folder of masks."""
        for mark in (*MARKS[:1], "", *MARKS[1:]):
            if files := self._files.get(name + mark):
                return min(files, key=lambda path: _rank(path, image))
        folder = self._folders.get(name)
        return DefectMasks(folder) if folder is not None and find_images(folder) else None

    def beside(self, image: Path) -> Path | None:
        """The mask that lies beside an image."""
        name = next((name for mark in MARKS if (name := image.stem.lower() + mark) in self._files), None)
        return None if name is None else min(self._files[name], key=lambda path: _rank(path, image))


def _pictures(folder: Path) -> list[Path]:
    """Image files that lie in a folder itself, by name. DatasetError for one that cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_file()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be listed ({error.strerror}); change its permissions") from error
    return [path for name in sorted(names) if is_image(path := folder / name)]


def _rank(path: Path, image: Path) -> tuple[bool, bool, bool, str]:
    """Of several files of one name: that of the image's own case, a lossless one, and the first."""
    suffix = path.suffix.lower()
    return not path.stem.startswith(image.stem), suffix != ".png", suffix in (".jpg", ".jpeg"), path.name
