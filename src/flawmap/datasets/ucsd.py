"""UCSD Pedestrian (Mahadevan et al. 2010): UCSDped1 and UCSDped2, a fixed camera above a walkway each.

Train/TrainNNN/*.tif, Test/TestNNN/*.tif, Test/TestNNN_gt/*.bmp (all clips of Ped2, ten of Ped1), and in
Test/UCSDpedN.m a line for each clip with its anomalous frames, counted from 1:
TestVideoFile{end+1}.gt_frame = [5:90, 140:200];
A clip with masks is labelled by them, another one by that file.
"""

from __future__ import annotations

import re
from pathlib import Path

from flawmap.datasets.dataset import GOOD, Dataset, Sample, Tell, expect_folder, subfolders
from flawmap.datasets.layout import Counts, Layout, files_below
from flawmap.errors import DatasetError, ImageError
from flawmap.images.masks import read_mask
from flawmap.images.source import find_images

__all__ = ["UCSD"]

ANOMALOUS = "anomalous"
TRAIN_CLIP = re.compile(r"Train(\d{3})")
TEST_CLIP = re.compile(r"Test(\d{3})")
GT_FRAMES = re.compile(r"^[^%\n]*gt_frame\s*=\s*\[([^\]]*)\]", re.MULTILINE)
MAX_DIGITS = 10
"""Of a frame's number that are read; no clip is so long."""
Ranges = list[tuple[int, int]]
"""First and last frames, counted from 1."""
RANGE = re.compile(r"(\d+)(?::(\d+))?")


def _holds(path: Path) -> bool:
    return any(TRAIN_CLIP.fullmatch(clip.name) for clip in subfolders(path / "Train"))


def _find_classes(root: Path) -> list[Path]:
    return [path for path in subfolders(root) if _holds(path)]


def _read(folder: Path, tell: Tell) -> Dataset:
    title = "UCSD Pedestrian"
    train = [
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
    return Dataset(
        folder.resolve().name,
        tuple(image for image, _ in train),
        tuple(samples),
        tuple(clip for _, clip in train),
    )


def _listed_frames(test: Path, tell: Tell) -> dict[int, Ranges]:
    """Anomalous frames of each clip, both counted from 1, as the .m file lists them; empty without such a file."""
    tables = sorted(path for path in test.glob("*.m") if not path.name.startswith("."))
    if not tables:
        return {}
    try:
        text = tables[0].read_text(encoding="latin-1")
    except OSError as error:
        tell(tables[0], f"cannot be read ({error.strerror})")
        return {}
    return {
        number: [(int(first[:MAX_DIGITS]), int((last or first)[:MAX_DIGITS])) for first, last in RANGE.findall(ranges)]
        for number, ranges in enumerate(GT_FRAMES.findall(text), start=1)
    }


def _clip(clip: Path, listed: Ranges | None, tell: Tell) -> list[Sample]:
    """Labelled frames of a test clip; none, and told, if it has no labels."""
    images = find_images(clip)
    folder = clip.with_name(f"{clip.name}_gt")
    masks = find_images(folder) if folder.is_dir() else []
    if masks and len(masks) != len(images):
        tell(folder, f"holds {len(masks)} masks, but {clip} has {len(images)} frames")
        masks = []
    if masks:
        # frames and masks go by their order: the masks of some clips are named otherwise
        return [_masked(image, mask, clip.name, tell) for image, mask in zip(images, masks, strict=True)]
    if listed is None:
        tell(clip, f"has no masks ({folder.name}) and no line in a .m file beside it; its frames have no labels")
        return []
    for first, last in listed:
        if not 1 <= first <= last <= len(images):
            tell(clip, f"has {len(images)} frames, but the .m file beside it lists {first}:{last} as anomalous")
            return []
    return [
        Sample(image, ANOMALOUS if any(first <= number <= last for first, last in listed) else GOOD, None, clip.name)
        for number, image in enumerate(images, start=1)
    ]


def _masked(image: Path, mask: Path, group: str, tell: Tell) -> Sample:
    try:
        anomalous = bool(read_mask(mask).any())
    except ImageError as error:
        tell(mask, error.reason)
        return Sample(image, ANOMALOUS, None, group)
    return Sample(image, ANOMALOUS, mask, group) if anomalous else Sample(image, GOOD, None, group)


UCSD = Layout(
    name="ucsd",
    title="UCSD Pedestrian",
    what="surveillance videos of two walkways; anomalies are bicycles, carts, skateboards, ...",
    classes=("UCSDped1", "UCSDped2"),
    licence="none stated; research use, with citation",
    origin="http://www.svcl.ucsd.edu/projects/anomaly/dataset.htm",
    paper="Mahadevan et al., Anomaly detection in crowded scenes, CVPR 2010",
    holds=_holds,
    find_classes=_find_classes,
    read=_read,
    files=files_below,
    published={
        "UCSDped1": Counts(6800, 7200, train_groups=34, test_groups=36),
        "UCSDped2": Counts(2550, 2010, train_groups=16, test_groups=12),
    },
    has_masks=False,
)
