"""What flawmap knows of a published data set: how it is laid out, what it holds, who made it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flawmap.datasets.dataset import Dataset, Tell

__all__ = ["Counts", "Layout", "files_below", "no_classes", "no_contradictions", "no_files"]


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
    """

    train: int | None = None
    test: int | None = None
    good: int | None = None
    anomalous: int | None = None
    train_groups: int | None = None
    test_groups: int | None = None

    @classmethod
    def of(cls, data: Dataset) -> Counts:
        """What a data set holds."""
        anomalous = sum(sample.is_anomalous for sample in data.test)
        return cls(
            len(data.train),
            len(data.test),
            len(data.test) - anomalous,
            anomalous,
            len(set(data.train_groups) - {None}),
            len({sample.group for sample in data.test} - {None}),
        )


def no_contradictions(_: Path, __: Tell) -> None:
    """For labels that have one source."""


@dataclass(frozen=True)
class Layout:
    """A data set's layout on disk, its published numbers, its origin.

    A class (a kind of part, a scene) is named by a path, ROOT/CLASS; where the classes have no folders of their own,
    as in ShanghaiTech Campus, such a path exists by name only.

    Attributes:
        name: what stands before the colon of NAME:PATH.
        title: what papers call it.
        what: what its images show.
        classes: names of its published classes; empty for a data set of one class.
        licence: of the images.
        origin: where its authors publish it.
        paper: what to cite.
        holds: whether a path is a class of this layout, or the data set itself where it has no classes.
        find_classes: paths of the classes below a root; none if it is no root of this layout.
        read: the data set of one class; what cannot be used is told, or raises DatasetError if the whole cannot.
        files: every file that belongs to a class, to find those that no image or mask accounts for.
        published: numbers by class; by "" those of the whole.
        counts_frames: whether the published numbers of images are exact; False for those of videos' frames.
        has_masks: whether every anomalous image has a mask.
        contradictions: tells where two sources of a class's labels disagree; it may read every mask.
    """

    name: str
    title: str
    what: str
    classes: tuple[str, ...]
    licence: str
    origin: str
    paper: str
    holds: Callable[[Path], bool]
    find_classes: Callable[[Path], list[Path]]
    read: Callable[[Path, Tell], Dataset]
    files: Callable[[Path], Iterator[Path]]
    published: Mapping[str, Counts] = field(default_factory=dict)
    counts_frames: bool = True
    has_masks: bool = True
    contradictions: Callable[[Path, Tell], None] = no_contradictions


def files_below(folder: Path) -> Iterator[Path]:
    """All files below a folder."""
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def no_files(_: Path) -> Iterator[Path]:
    """For a data set whose folder holds images that belong to no split."""
    return iter(())


def no_classes(_: Path) -> list[Path]:
    """For a data set of one class."""
    return []
