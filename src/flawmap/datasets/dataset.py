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
from flawmap.images.hints import find_meant, why_missing
from flawmap.images.masks import ClassMask, DefectMasks, MaskFrame, MaskSource
from flawmap.images.search import find_images
from flawmap.images.video import VideoFrame

GOOD = "good"
"""The type of normal images, as MVTec AD calls it."""
GOOD_NAMES = frozenset({GOOD, "ok", "normal"})
"""What people call good images, in lower case."""
ANOMALOUS = "anomalous"
"""The type of anomalous images where the data set has only one."""

SHOWN_LENGTH = 200
"""Longest path in a message."""

Tell = Callable[[Path, str], None]
"""Called with a file or folder that cannot be used, and the reason; it is then left out, unless this raises."""


@dataclass(frozen=True)
class Sample:
    """A test image: its file, its type ("good" or a kind of defect), and its ground truth if there is one.

    Attributes:
        path: the image file.
        type: "good", or the kind of defect.
        mask_path: its mask (a picture, a frame of an array, a picture of class numbers), or None.
        group: the clip or series it belongs to, or None.

    Example:
        >>> Sample(Path("test/scratch/000.png"), "scratch").is_anomalous
        True
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
    """Good images to fit on, and labelled ones to evaluate on.

    Attributes:
        name: its name in tables.
        train: good images: files, or frames of videos.
        test: labelled images.
        train_groups: clip or series of each image of `train`; empty if the data set has none.
        passed_over: files in its folders that are no images that can be read, and no masks.
        remarks: what is unusual about the data set, in words.

    Example:
        >>> data = Dataset("part", tuple(Path(f"{i}.png") for i in range(5)), ())
        >>> [path.name for path in data.every(2).train]
        ['0.png', '2.png', '4.png']
    """

    name: str
    train: tuple[Path | VideoFrame, ...]
    test: tuple[Sample, ...]
    train_groups: tuple[str | None, ...] = ()
    passed_over: tuple[Path, ...] = ()
    remarks: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, train: Sequence[tuple[Path | VideoFrame, str | None]], test: Sequence[Sample]) -> Dataset:
        """A data set whose good images come with their groups."""
        groups = tuple(group for _, group in train)
        has_groups = any(group is not None for group in groups)
        return cls(name, tuple(image for image, _ in train), tuple(test), groups if has_groups else ())

    @property
    def clips(self) -> dict[str, str]:
        """The clip or series of each image of `train` that has one, by the image's name."""
        named = zip(self.train, self.train_groups, strict=False)
        return {str(image): group for image, group in named if group is not None}

    def every(self, stride: int) -> Dataset:
        """Every `stride`-th image of each group, starting with its first; without groups, of the whole."""
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


def clip_samples(
    images: Sequence[Path], anomalous: Sequence[bool], masks: Sequence[MaskSource | None], clip: str
) -> list[Sample]:
    """Labelled frames of a clip; masks count for anomalous frames alone."""
    frames = zip(images, anomalous, masks, strict=True)
    return [
        Sample(image, ANOMALOUS, mask, clip) if is_anomalous else Sample(image, GOOD, None, clip)
        for image, is_anomalous, mask in frames
    ]


def file_of(source: MaskSource | VideoFrame) -> Path:
    """The file of an image or mask, or its folder of masks; frames of a video, or of an array, share one file."""
    return source.path if isinstance(source, VideoFrame | MaskFrame | ClassMask | DefectMasks) else Path(source)


def files_of(source: MaskSource | VideoFrame) -> list[Path]:
    """The files of an image or mask: one, or those of a folder of masks."""
    return find_images(source.path) if isinstance(source, DefectMasks) else [file_of(source)]


def refuse(path: Path, reason: str) -> NoReturn:
    """The strict `Tell`: raises DatasetError."""
    raise DatasetError(f"{path}: {reason}")


def is_folder(path: Path) -> bool:
    """Whether a path, however long, is a folder."""
    return os.path.isdir(path)  # noqa: PTH112 (Path.is_dir raises for names that are too long)


def is_good(name: str) -> bool:
    """Whether a folder of this name holds good images."""
    return name.lower() in GOOD_NAMES


def find_good(parent: Path) -> Path | None:
    """The folder of good images in a folder: good, or another usual name; None without one."""
    if is_folder(parent / GOOD):
        return parent / GOOD
    return next((path for path in subfolders(parent) if is_good(path.name)), None)


def check_folder(root: str | os.PathLike[str]) -> Path:
    """The folder as a Path; DatasetError if there is none."""
    path = expand_home(root)
    if not is_folder(path):
        meant = find_meant(str(path))
        hint = f"did you mean {meant}? " if meant else ""
        raise DatasetError(
            f"{root}: no such folder; {hint}expected a data set, NAME:FOLDER, a manifest (.csv), elpv:mono or elpv:poly"
        )
    return path


def expect_folder(parent: Path, name: str, title: str) -> Path:
    """A subfolder; DatasetError if it does not exist, naming one that differs in case alone."""
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
    """For an error: the folder that was meant, up to three levels above a path or two below; or ""."""
    below = subfolders(path)
    near = [*path.absolute().parents[:3], *below, *(inner for folder in below for inner in subfolders(folder))]
    return next((f"; that is {folder}" for folder in near if holds(folder)), "")


def why_no_file(path: Path) -> str | None:
    """Why a path in a table is no file, or None; the path may be too long for any file."""
    text = str(path)
    shown = text if len(text) <= SHOWN_LENGTH else f"{text[:SHOWN_LENGTH]}... ({len(text)} characters)"
    try:
        return None if stat.S_ISREG(path.stat().st_mode) else f"{shown}: is no file"
    except (FileNotFoundError, NotADirectoryError):
        return f"{shown}: {why_missing(path, 'file') if shown is text else 'no such file'}"
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
