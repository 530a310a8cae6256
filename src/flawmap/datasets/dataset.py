"""Labelled images: what a data set is, and the folders it lies in."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from flawmap.errors import DatasetError, ParameterError
from flawmap.files import expand_home
from flawmap.images.masks import MaskSource
from flawmap.images.video import VideoFrame

__all__ = [
    "GOOD",
    "Dataset",
    "Sample",
    "Tell",
    "check_folder",
    "expect_folder",
    "on_another_level",
    "refuse",
    "subfolders",
    "why_no_file",
]

GOOD = "good"
"""The type of normal images, as MVTec AD calls it."""

SHOWN_LENGTH = 200
"""Characters of a path that are shown."""

Tell = Callable[[Path, str], None]
"""Is told of a file or folder that cannot be used, and why; it is then left out, unless this raises."""


@dataclass(frozen=True)
class Sample:
    """A test image: its file, its type ("good" or a kind of defect), and its ground truth if there is one.

    Attributes:
        path: the image file.
        type: "good", or what is wrong with it.
        mask_path: its mask (a picture, a frame of an array, a picture of class numbers), or None.
        group: the clip or series it belongs to, or None.
    """

    path: Path
    type: str
    mask_path: MaskSource | None = None
    group: str | None = None

    @property
    def is_anomalous(self) -> bool:
        """Whether it is of any type but "good"."""
        return self.type != GOOD


@dataclass(frozen=True)
class Dataset:
    """Good images to learn from, and labelled ones to evaluate on.

    Attributes:
        name: what it is called in tables.
        train: good images: files, or frames of videos.
        test: labelled images.
        train_groups: clip or series of each image of `train`; empty if the data set knows none.
    """

    name: str
    train: tuple[Path | VideoFrame, ...]
    test: tuple[Sample, ...]
    train_groups: tuple[str | None, ...] = ()

    def every(self, stride: int) -> Dataset:
        """Every `stride`-th image of each group, from its first on; without groups, of the whole."""
        if stride < 1:
            raise ParameterError(f"the stride must be at least 1, got {stride}")
        groups = self.train_groups or (None,) * len(self.train)
        kept = _every(groups, stride)
        return replace(
            self,
            train=tuple(self.train[i] for i in kept),
            train_groups=tuple(self.train_groups[i] for i in kept) if self.train_groups else (),
            test=tuple(self.test[i] for i in _every([sample.group for sample in self.test], stride)),
        )


def _every(groups: Sequence[str | None], stride: int) -> list[int]:
    """Indices of every `stride`-th member of each group."""
    seen: Counter[str | None] = Counter()
    kept = []
    for i, group in enumerate(groups):
        if seen[group] % stride == 0:
            kept.append(i)
        seen[group] += 1
    return kept


def refuse(path: Path, reason: str) -> NoReturn:
    """The strict `Tell`: raises DatasetError."""
    raise DatasetError(f"{path}: {reason}")


def check_folder(root: str | os.PathLike[str]) -> Path:
    """The folder as a Path; DatasetError if it is none."""
    path = expand_home(root)
    if not os.path.isdir(path):  # noqa: PTH112 (Path.is_dir raises for names that are too long)
        raise DatasetError(
            f"{root}: no such folder; expected a data set, NAME:FOLDER, a manifest (.csv), elpv:mono or elpv:poly"
        )
    return path


def expect_folder(parent: Path, name: str, title: str) -> Path:
    """A subfolder; DatasetError if it is not there, naming one that differs in case alone."""
    folder = parent / name
    if folder.is_dir():
        return folder
    others = sorted(path.name for path in parent.iterdir()) if parent.is_dir() else []
    twins = [other for other in others if other.lower() == name.lower()]
    if twins:
        raise DatasetError(f"{parent}: expected a folder {name} ({title}), found {twins[0]}; rename it, case matters")
    raise DatasetError(
        f"{parent}: expected a folder {name} ({title}); found {', '.join(others[:8]) or 'an empty folder'}"
    )


def on_another_level(path: Path, holds: Callable[[Path], bool]) -> str:
    """For an error: where what was expected at a path lies instead, up to three folders above or two below; or ""."""
    below = subfolders(path)
    near = [*path.absolute().parents[:3], *below, *(inner for folder in below for inner in subfolders(folder))]
    return next((f"; that is {folder}" for folder in near if holds(folder)), "")


def why_no_file(path: Path) -> str | None:
    """Why a path that a table names is no file, or None; it may be too long for any."""
    text = str(path)
    shown = text if len(text) <= SHOWN_LENGTH else f"{text[:SHOWN_LENGTH]}... ({len(text)} characters)"
    try:
        return None if stat.S_ISREG(path.stat().st_mode) else f"{shown}: is no file"
    except (FileNotFoundError, NotADirectoryError):
        return f"{shown}: no such file"
    except OSError as error:
        return f"{shown}: cannot be opened ({error.strerror})"
    except ValueError:
        return f"{shown!r}: is no path"


def subfolders(folder: Path) -> list[Path]:
    """Folders in a folder, by name, without hidden ones; none if it cannot be listed."""
    try:
        # scandir tells folders from files without a look at each, which counts where a folder holds many images
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if not entry.name.startswith((".", "__")) and entry.is_dir()]
    except OSError:
        return []
    return [folder / name for name in sorted(names)]
