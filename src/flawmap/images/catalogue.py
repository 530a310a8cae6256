"""Data sets by the name or folder a user gives."""

from __future__ import annotations

import os
from pathlib import Path

from flawmap.images.dataset import GOOD, Dataset
from flawmap.images.elpv import read_elpv
from flawmap.images.mvtec_ad import read_mvtec_ad
from flawmap.images.source import ImageInput

__all__ = ["open_dataset", "training_images"]


def open_dataset(where: str | os.PathLike[str]) -> Dataset:
    """`elpv`, `elpv:mono`, `elpv:poly`, or a folder in MVTec AD layout. Raises DatasetError."""
    return _packaged(where) or read_mvtec_ad(where)


def training_images(where: str | os.PathLike[str]) -> ImageInput:
    """Good images meant by a name, folder or glob.

    Of a folder in MVTec AD layout only train/good is meant: its test images and masks must never be learnt.
    """
    if (packaged := _packaged(where)) is not None:
        return packaged.train
    good = Path(where) / "train" / GOOD
    return good if good.is_dir() else where


def _packaged(where: str | os.PathLike[str]) -> Dataset | None:
    name = os.fspath(where)
    if Path(where).exists():
        return None
    if name == "elpv":
        return read_elpv()
    if name in ("elpv:mono", "elpv:poly"):
        return read_elpv("mono" if name.endswith("mono") else "poly")
    return None
