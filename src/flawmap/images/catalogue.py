"""Data sets by the name or folder a user gives."""

from __future__ import annotations

import os
from pathlib import Path

from flawmap.errors import DatasetError
from flawmap.images.dataset import GOOD, Dataset
from flawmap.images.elpv import read_elpv
from flawmap.images.mvtec_ad import read_mvtec_ad
from flawmap.images.source import ImageInput

__all__ = ["open_dataset", "training_images"]


def open_dataset(where: str | os.PathLike[str]) -> Dataset:
    """`elpv`, `elpv:mono`, `elpv:poly`, or a folder in MVTec AD layout. Raises DatasetError."""
    return _packaged(where) or read_mvtec_ad(where)


def training_images(where: str | os.PathLike[str]) -> ImageInput:
    """Good images meant by a name, folder or glob; what is no data set is returned as it came, for `collect`.

    Of a data set only its good images are meant, train/good or else good/: defects and masks must never be learnt.
    Raises DatasetError for a folder that has test images or masks, but no good images by those names.
    """
    if (packaged := _packaged(where)) is not None:
        return packaged.train
    folder = Path(where).expanduser()
    for good in (folder / "train" / GOOD, folder / GOOD):
        if os.path.isdir(good):  # noqa: PTH112 (Path.is_dir raises for names that are too long)
            return good
    if any(os.path.isdir(folder / part) for part in ("test", "ground_truth")):  # noqa: PTH112
        raise DatasetError(
            f"{where}: expected train/good beside its test images and masks, found none; name the folder of good images"
        )
    return where


def _packaged(where: str | os.PathLike[str]) -> Dataset | None:
    name = os.fspath(where)
    if os.path.exists(where):  # noqa: PTH110 (Path.exists raises for names that are too long)
        return None
    if name == "elpv":
        return read_elpv()
    if name in ("elpv:mono", "elpv:poly"):
        return read_elpv("mono" if name.endswith("mono") else "poly")
    return None
