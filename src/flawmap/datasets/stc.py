"""ShanghaiTech Campus (Luo et al. 2017, Liu et al. 2018): surveillance videos of thirteen scenes, one model for each.

training/videos/SS_CCC.avi, testing/frames/SS_CCCC/NNN.jpg, testing/test_frame_mask/SS_CCCC.npy (N,) and
testing/test_pixel_mask/SS_CCCC.npy (N, H, W), where SS is the scene. A scene is named ROOT/SS, though there is no such
folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flawmap.datasets.dataset import Dataset, Sample, Tell, clip_samples, on_another_level, subfolders
from flawmap.datasets.layout import Layout, files_below
from flawmap.errors import DatasetError, ImageError
from flawmap.images.masks import MaskFrame, is_marked, load_array
from flawmap.images.search import find_images
from flawmap.images.video import VideoFrame, count_frames

VIDEOS = Path("training", "videos")
FRAMES = Path("testing", "frames")
FRAME_MASKS = Path("testing", "test_frame_mask")
PIXEL_MASKS = Path("testing", "test_pixel_mask")
SCENE = re.compile(r"(\d\d)_\d+")
SHOWN = 8
"""Wrong frames that a message names."""


def _find_classes(root: Path) -> list[Path]:
    names = [path.stem for path in _videos(root)] + [path.name for path in subfolders(root / FRAMES)]
    matches = [SCENE.fullmatch(name) for name in names]
    return [root / scene for scene in sorted({match[1] for match in matches if match})]


def _holds(path: Path) -> bool:
    return re.fullmatch(r"\d\d", path.name) is not None and _is_root(path.parent)


def _is_root(root: Path) -> bool:
    return (root / VIDEOS).is_dir() or (root / FRAMES).is_dir()


def _read(path: Path, tell: Tell) -> Dataset:
    root, scene = path.parent, path.name
    if not _is_root(root):
        raise DatasetError(
            f"{path}: expected ROOT, or a scene ROOT/01 of it, where ROOT is the folder that holds {VIDEOS.as_posix()} "
            f"and {FRAMES.as_posix()} (ShanghaiTech Campus)"
            f"{on_another_level(path, _is_root) or on_another_level(root, _is_root)}"
        )
    train: list[tuple[Path | VideoFrame, str | None]] = []
    for video in _videos(root, scene):
        if (n_frames := count_frames(video)) == 0:
            tell(video, "is not a video that can be decoded; copy it again")
        train += [(VideoFrame(video, i), video.stem) for i in range(n_frames)]
    samples: list[Sample] = []
    for clip in subfolders(root / FRAMES):
        if clip.name.startswith(f"{scene}_"):
            samples += _clip(root, clip, tell)
    if not train and not samples:
        scenes = ", ".join(found.name for found in _find_classes(root))
        raise DatasetError(f"{root}: there is no scene {scene}; found {scenes or 'none'}")
    return Dataset.of(f"ShanghaiTech Campus {scene}", train, samples)


def _videos(root: Path, scene: str = "") -> list[Path]:
    found = (root / VIDEOS).glob(f"{scene}*.avi")
    return sorted(path for path in found if SCENE.fullmatch(path.stem))


def _clip(root: Path, clip: Path, tell: Tell) -> list[Sample]:
    """Labelled frames of a test clip; none, reported to `tell`, unless it has a label for each frame."""
    images = find_images(clip)
    labels_path = root / FRAME_MASKS / f"{clip.name}.npy"
    masks_path = root / PIXEL_MASKS / f"{clip.name}.npy"
    try:
        n_masks = _n_masks(masks_path, len(images), tell)
        if labels_path.is_file():
            labels = _labels(labels_path)
        elif n_masks:
            labels = np.array([MaskFrame(masks_path, i).read().any() for i in range(n_masks)])
        else:
            tell(labels_path, f"no such file; the frames of clip {clip.name} have no labels without it")
            return []
    except ImageError as error:
        tell(Path(error.name), error.reason)
        return []
    if len(labels) != len(images):
        tell(labels_path, f"labels {len(labels)} frames, but {clip} holds {len(images)}")
        return []
    masks = [MaskFrame(masks_path, i) if n_masks else None for i in range(len(images))]
    return clip_samples(images, labels.tolist(), masks, clip.name)


def _labels(path: Path) -> NDArray[np.bool_]:
    return is_marked(np.asarray(load_array(path)).reshape(-1), str(path))


def _contradictions(path: Path, tell: Tell) -> None:
    """Frames that are labelled normal, but have anomalous pixels in their masks."""
    root = path.parent
    for labels_path in sorted((root / FRAME_MASKS).glob(f"{path.name}_*.npy")):
        masks_path = root / PIXEL_MASKS / labels_path.name
        try:
            labels, n_masks = _labels(labels_path), len(load_array(masks_path)) if masks_path.is_file() else 0
            if n_masks != len(labels):  # there are no masks, or reading the clip has reported it
                continue
            marked = [i for i in np.flatnonzero(~labels) if MaskFrame(masks_path, int(i)).read().any()]
        except ImageError as error:
            tell(Path(error.name), error.reason)
            continue
        if marked:
            first = ", ".join(str(i) for i in marked[:SHOWN]) + (", ..." if len(marked) > SHOWN else "")
            tell(masks_path, f"marks {len(marked)} frames (from 0: {first}) that {labels_path} labels normal")


def _n_masks(path: Path, n_frames: int, tell: Tell) -> int:
    """Frames of a clip's pixel masks; 0 without masks, or, reported to `tell`, if their number is wrong."""
    if not path.is_file():
        return 0
    shape = load_array(path).shape
    if len(shape) != 3 or shape[0] != n_frames:
        tell(path, f"expected masks of the clip's {n_frames} frames, (N, H, W); got an array {shape}")
        return 0
    return int(shape[0])


def _files(path: Path) -> Iterator[Path]:
    root, scene = path.parent, path.name
    for folder in (VIDEOS, FRAMES, FRAME_MASKS, PIXEL_MASKS):
        for file in files_below(root / folder):
            if file.relative_to(root / folder).parts[0].startswith(f"{scene}_"):
                yield file


STC = Layout.of(
    "stc",
    holds=_holds,
    read=_read,
    find_classes=_find_classes,
    files=_files,
    counts_frames=False,
    contradictions=_contradictions,
)
