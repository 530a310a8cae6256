"""Facts about a published data set: its layout on disk, its size, its origin."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from flawmap.datasets.dataset import Dataset, Tell, file_of, files_of, subfolders
from flawmap.datasets.mask_files import FOLDERS
from flawmap.images.formats import is_image
from flawmap.images.search import walk

MASK_FOLDERS = FOLDERS | {"test_pixel_mask", "test_frame_mask"}

TRAIN_SHARE = 0.8
"""Share of the good images for training, where the authors publish no split."""


@dataclass(frozen=True)
class Counts:
    """Numbers of images and clips; None where nothing is published.

    Attributes:
        train: training images.
        test: test images, good and anomalous.
        good: good test images.
        anomalous: anomalous test images.
        train_groups: training clips.
        test_groups: test clips.

    Example:
        >>> Counts(train=320, test=160).train
        320
    """

    train: int | None = None
    test: int | None = None
    good: int | None = None
    anomalous: int | None = None
    train_groups: int | None = None
    test_groups: int | None = None

    @classmethod
    def of(cls, data: Dataset) -> Counts:
        """Numbers of a data set."""
        anomalous = sum(sample.is_anomalous for sample in data.test)
        return cls(
            len(data.train),
            len(data.test),
            len(data.test) - anomalous,
            anomalous,
            len(set(data.train_groups) - {None}),
            len({sample.group for sample in data.test} - {None}),
        )


def files_below(folder: Path) -> Iterator[Path]:
    """Files below a folder, without hidden ones and those of file managers; none if there is no such folder."""
    return iter(sorted(Path(path) for path in walk(folder)) if folder.is_dir() else ())


def no_files(_: Path) -> Iterator[Path]:
    """For a data set whose folder holds images that belong to no split."""
    return iter(())


def folders_that(holds: Callable[[Path], bool]) -> Callable[[Path], list[Path]]:
    """Finds the subfolders of a root for which `holds` is true."""
    return lambda root: [path for path in subfolders(root) if holds(path)]


def hold_out(good: Sequence[Path], seed: int) -> tuple[list[Path], list[Path]]:
    """A random 80 % of the good images by `seed`, for training, and the others; each sorted."""
    order = np.random.default_rng(seed).permutation(len(good))
    n_train = round(TRAIN_SHARE * len(good))
    return sorted(good[i] for i in order[:n_train]), sorted(good[i] for i in order[n_train:])


@dataclass(frozen=True)
class Layout:
    """A data set's layout on disk, its published numbers, its origin.

    A class (a kind of part, a scene) is named by a path, ROOT/CLASS. In ShanghaiTech Campus the classes have no folders
    of their own: such a path exists by name only.

    Attributes:
        name: its name in NAME:PATH.
        title: its name in papers.
        what: content of its images.
        classes: names of its published classes; empty for a data set of one class.
        licence: licence of the images.
        origin: address of its authors' publication.
        paper: reference.
        holds: whether a path is a class of this layout, or the data set itself where it has no classes.
        read: reads the data set of one class; reports what cannot be used, or raises DatasetError for the whole.
        find_classes: paths of the classes below a root; none if it is no root of this layout.
        files: every file of a class, to find those that belong to no image or mask.
        published: numbers by class; those of the whole by "".
        counts_frames: whether the published numbers of images are exact; False for those of videos' frames.
        has_masks: whether every anomalous image has a mask.
        contradictions: reports where two sources of a class's labels disagree; it may read every mask.

    Example:
        >>> from flawmap.datasets import LAYOUTS
        >>> LAYOUTS["mvtec_ad"].title, LAYOUTS["mvtec_ad"].published["screw"].train
        ('MVTec AD', 320)
    """

    name: str
    title: str
    what: str
    classes: tuple[str, ...]
    licence: str
    origin: str
    paper: str
    holds: Callable[[Path], bool]
    read: Callable[[Path, Tell], Dataset]
    find_classes: Callable[[Path], list[Path]] = lambda _: []
    files: Callable[[Path], Iterator[Path]] = files_below
    published: Mapping[str, Counts] = field(default_factory=dict)
    counts_frames: bool = True
    has_masks: bool = True
    contradictions: Callable[[Path, Tell], None] = lambda *_: None

    @classmethod
    def of(cls, name: str, **functions: Any) -> Layout:  # noqa: ANN401 (checked by the constructor)
        """A layout by its name in layouts.json, which holds all but the functions and flags."""
        facts = dict(_facts()[name])
        published = {key: Counts(**numbers) for key, numbers in facts.pop("published").items()}
        return cls(name, **{**facts, "classes": tuple(facts["classes"])}, published=published, **functions)


def files_used(data: Dataset) -> set[Path]:
    """Files of a data set's images and masks."""
    used = {file_of(item) for item in data.train} | {sample.path for sample in data.test}
    return used | {file for sample in data.test if sample.mask_path is not None for file in files_of(sample.mask_path)}


def find_passed_over(layout: Layout, path: Path, data: Dataset) -> tuple[Path, ...]:
    """Files in the folders of a class that are neither images that can be read nor masks.

    What lies in the class's own folder is no image: a licence, a table.
    """
    others = [file for file in layout.files(path) if file.parent != path and not is_image(file)]
    used = files_used(data) if others else set()
    return tuple(file for file in others if file not in used and not is_mask(layout, path, file))


def is_mask(layout: Layout, path: Path, file: Path) -> bool:
    """Whether a file of a class lies where its masks do."""
    if layout.name == "mtd":
        return file.suffix.lower() == ".png"
    return any(part.lower() in MASK_FOLDERS or part.endswith("_gt") for part in inner_parts(path, file))


def inner_parts(path: Path, file: Path) -> tuple[str, ...]:
    """Names from a class's folder down to a file."""
    return file.relative_to(path.parent).parts if file.is_relative_to(path.parent) else file.parts


@cache
def _facts() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(files(__package__).joinpath("layouts.json").read_text("utf-8"))
    return content
