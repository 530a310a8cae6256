"""Data sets by the name or folder a user gives."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from flawmap.datasets.btad import BTAD
from flawmap.datasets.dataset import Dataset, check_folder, find_good, is_folder, refuse
from flawmap.datasets.elpv import ELPV, packaged_folder
from flawmap.datasets.layout import Layout, find_passed_over
from flawmap.datasets.magnetic_tile import MAGNETIC_TILE
from flawmap.datasets.manifest import MANIFEST
from flawmap.datasets.mvtec_ad import MVTEC_AD, find_class_folders
from flawmap.datasets.mvtec_loco import MVTEC_LOCO
from flawmap.datasets.stc import STC
from flawmap.datasets.ucsd import UCSD
from flawmap.datasets.visa import VISA
from flawmap.errors import DatasetError
from flawmap.files import expand_home
from flawmap.images.source import ImageInput

LAYOUTS = {
    layout.name: layout for layout in (MVTEC_AD, MVTEC_LOCO, VISA, BTAD, MAGNETIC_TILE, ELPV, STC, UCSD, MANIFEST)
}
"""Known layouts, by name."""

RECOGNISED = tuple(layout.name for layout in (MANIFEST, STC, UCSD, MVTEC_LOCO, BTAD, VISA, MAGNETIC_TILE, ELPV))
"""Names of layouts that are recognised by their folders; everything else is read as MVTec AD."""


def open_dataset(where: str | os.PathLike[str]) -> Dataset:
    """The data set at a path, NAME:PATH, or elpv, elpv:mono, elpv:poly (the images of the installed package).

    A class of a data set of several is named ROOT/CLASS. Without a NAME the layout is recognised by its folders. Raises
    DatasetError, also for the root of several classes: one model is for one class.
    """
    layout, path = find_layout(where)
    if not layout.holds(path) and (classes := layout.find_classes(path)):
        if len(classes) > 1:
            raise _several(layout, where, classes)
        [path] = classes
    data = layout.read(path, refuse)
    return replace(data, passed_over=find_passed_over(layout, path, data))


def training_images(where: str | os.PathLike[str]) -> ImageInput:
    """Good images of a data set, folder or glob, as `training_data` finds them, without their groups."""
    found = training_data(where)
    return found.train if isinstance(found, Dataset) else found


def training_data(where: str | os.PathLike[str]) -> ImageInput | Dataset:
    """A data set whose good images may have groups; else the folder of good images, or `where` itself.

    What is no data set is returned unchanged, for `collect`. Defects and masks are never among them. Raises
    DatasetError for a folder that has test images or masks, but no good images by known names.
    """
    layout, path = find_layout(where)
    if layout.name != MVTEC_AD.name:
        return open_dataset(where)
    if (good := find_good(path / "train") or find_good(path)) is not None:
        return good
    if any(is_folder(path / part) for part in ("test", "ground_truth")):
        raise DatasetError(
            f"{where}: expected train/good beside its test images and masks, found none; name the folder of good images"
        )
    if classes := find_class_folders(path):
        if len(classes) == 1 and (good := find_good(classes[0] / "train")) is not None:
            return good
        raise _several(layout, where, classes)
    if path != expand_home(where):  # it was named as a data set
        check_folder(path)
        return path
    return where


def find_layout(where: str | os.PathLike[str]) -> tuple[Layout, Path]:
    """The layout and path of a name; MVTec AD's if it is no other. Reads folders' names only."""
    text = os.fspath(where)
    if not text.strip():
        raise DatasetError("the path of the images is empty; name a folder or data set (. is the current folder)")
    path = expand_home(text)
    if not os.path.exists(path):  # noqa: PTH110 (Path.exists raises for names that are too long)
        if text in ("elpv", "elpv:mono", "elpv:poly"):
            return LAYOUTS[ELPV.name], packaged_folder() / text.partition(":")[2]
        name, colon, rest = text.partition(":")
        if colon and rest and name in LAYOUTS:
            return LAYOUTS[name], expand_home(rest)
    try:
        for layout in (LAYOUTS[name] for name in RECOGNISED):
            if layout.holds(path) or layout.find_classes(path):
                return layout, path
    except (OSError, ValueError):  # a name that can be no path
        pass
    return LAYOUTS[MVTEC_AD.name], path


def find_classes(where: str | os.PathLike[str]) -> tuple[Layout, list[Path]]:
    """The layout of a path and its classes; the path itself if it is one class."""
    layout, path = find_layout(where)
    return layout, layout.find_classes(path) or [path]


def _several(layout: Layout, where: str | os.PathLike[str], classes: list[Path]) -> DatasetError:
    names = ", ".join(path.name for path in classes)
    example = f"{layout.name}:{classes[0]}"
    return DatasetError(f"{where}: holds several classes ({names}), a model is for one; name it, such as {example}")
