"""UCSD Pedestrian (Mahadevan et al. 2010): UCSDped1 and UCSDped2, a fixed camera above a walkway each.

Train/TrainNNN/*.tif, Test/TestNNN/*.tif, Test/TestNNN_gt/*.bmp (all clips of Ped2, ten of Ped1), and in
Test/UCSDpedN.m a line for each clip with its anomalous frames, counted from 1:
TestVideoFile{end+1}.gt_frame = [5:90, 140:200];
A clip with masks is labelled by them, another one by that file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from flawmap.datasets.dataset import Dataset, Sample, Tell, clip_samples, expect_folder, subfolders
from flawmap.datasets.layout import Layout, files_below, folders_that
from flawmap.errors import DatasetError, ImageError
from flawmap.files import open_file
from flawmap.images.masks import read_mask
from flawmap.images.search import find_images
from flawmap.images.video import VideoFrame

TRAIN_CLIP = re.compile(r"Train(\d{3})")
TEST_CLIP = re.compile(r"Test(\d{3})")
GT_FRAMES = re.compile(r"^[^%\n]*gt_frame\s*=\s*\[([^\]]*)\]", re.MULTILINE)
MAX_DIGITS = 10
"""Digits of a frame's number that are read; no clip is so long."""
Ranges = list[tuple[int, int]]
"""First and last frames, counted from 1."""
RANGE = re.compile(r"(\d+)(?::(\d+))?")


def _holds(path: Path) -> bool:
    return any(TRAIN_CLIP.fullmatch(clip.name) for clip in subfolders(path / "Train"))


def _read(folder: Path, tell: Tell) -> Dataset:
    title = "UCSD Pedestrian"
    train: list[tuple[Path | VideoFrame, str | None]] = [
        (image, clip.name)
        for clip in subfolders(expect_folder(folder, "Train", title))
        if TRAIN_CLIP.fullmatch(clip.name)
        for image in find_images(clip)
    ]
    test = expect_folder(folder, "Test", title)
    listed = _listed_frames(test, tell)
    samples: list[Sample] = []
    for clip in subfolders(test):
        if match := TEST_CLIP.fullmatch(clip.name):
            samples += _clip(clip, listed.get(int(match[1])), tell)
    if not train and not samples:
        raise DatasetError(f"{folder}: expected Train/Train001 and Test/Test001 with .tif frames (UCSD Pedestrian)")
    return Dataset.of(folder.resolve().name, train, samples)


def _listed_frames(test: Path, tell: Tell) -> dict[int, Ranges]:
    """Anomalous frames of each clip, both counted from 1, as the .m file lists them; empty without such a file."""
    tables = sorted(path for path in test.glob("*.m") if not path.name.startswith("."))
    if not tables:
        return {}
    try:
        with open_file(tables[0]) as table:
            text = table.read().decode("latin-1")
    except OSError as error:
        tell(tables[0], f"cannot be read ({error.strerror})")
        return {}
    return {
        number: [(int(first[:MAX_DIGITS]), int((last or first)[:MAX_DIGITS])) for first, last in RANGE.findall(ranges)]
        for number, ranges in enumerate(GT_FRAMES.findall(text), start=1)
    }


def _clip(clip: Path, listed: Ranges | None, tell: Tell) -> list[Sample]:
    """Labelled frames of a test clip; none, reported to `tell`, if it has no labels."""
    images = find_images(clip)
    folder = clip.with_name(f"{clip.name}_gt")
    masks = find_images(folder) if folder.is_dir() else []
    if masks and len(masks) != len(images):
        tell(folder, f"holds {len(masks)} masks, but {clip} has {len(images)} frames")
        masks = []
    if masks:
        # frames and masks are paired by their order: the masks of some clips have other names
        marks = [_is_anomalous(mask, tell) for mask in masks]
        readable = [mask if mark else None for mask, mark in zip(masks, marks, strict=True)]
        return clip_samples(images, [mark is not False for mark in marks], readable, clip.name)
    if listed is None:
        tell(clip, f"has no masks ({folder.name}) and no line in a .m file beside it; its frames have no labels")
        return []
    for first, last in listed:
        if not 1 <= first <= last <= len(images):
            tell(clip, f"has {len(images)} frames, but the .m file beside it lists {first}:{last} as anomalous")
            return []
    numbers = range(1, len(images) + 1)
    anomalous = [any(first <= number <= last for first, last in listed) for number in numbers]
    return clip_samples(images, anomalous, [None] * len(images), clip.name)


def _is_anomalous(mask: Path, tell: Tell) -> bool | None:
    """Whether a mask has anomalous pixels; None, reported to `tell`, if it cannot be read."""
    try:
        return bool(read_mask(mask).any())
    except ImageError as error:
        tell(mask, error.reason)
        return None


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in files_below(folder) if path.suffix != ".m")


UCSD = Layout.of("ucsd", holds=_holds, read=_read, find_classes=folders_that(_holds), files=_files, has_masks=False)
