"""Labelled images: what a data set is, and how a user names one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from flawmap.errors import DatasetError

__all__ = ["GOOD", "Dataset", "Sample"]

GOOD = "good"
"""The type of normal images, as MVTec AD calls it."""


@dataclass(frozen=True)
class Sample:
    """A test image: its file, its type ("good" or a kind of defect), and its ground truth if there is one."""

    path: Path
    type: str
    mask_path: Path | None = None

    @property
    def is_anomalous(self) -> bool:
        """Whether it is of any type but "good"."""
        return self.type != GOOD


@dataclass(frozen=True)
class Dataset:
    """Good images to learn from, and labelled ones to evaluate on."""

    name: str
    train: tuple[Path, ...]
    test: tuple[Sample, ...]


def check_folder(root: str | os.PathLike[str]) -> Path:
    """The folder as a Path; DatasetError if it is none."""
    path = Path(root).expanduser()
    if not path.is_dir():
        raise DatasetError(f"{root}: no such folder; expected a data set in MVTec AD layout, elpv:mono or elpv:poly")
    return path
