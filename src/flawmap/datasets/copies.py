"""Images of a data set that are the same file twice."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flawmap.datasets.dataset import Dataset
from flawmap.files import open_file


@dataclass(frozen=True)
class Copy:
    """An image whose file equals an earlier one.

    Attributes:
        path, label: the image, and what it is: "for training", "good", or its type of defect.
        first, first_label: the same of the earlier image.
        contradicts: whether one is good and the other is not; a still camera may see both in frames of clips.
    """

    path: Path
    label: str
    first: Path
    first_label: str
    contradicts: bool


def find_copies(data: Dataset) -> Iterator[Copy]:
    """Test images that are also for training, or have another label than an equal test image.

    Files of equal size alone are read. Frames of videos are left out, and files that cannot be read.
    """
    labelled = [(item, "for training", False) for item in data.train if isinstance(item, Path)]
    labelled += [(sample.path, sample.type, sample.is_anomalous) for sample in data.test]
    in_clips = {sample.path for sample in data.test if sample.group is not None}
    by_size: dict[int, list[tuple[Path, str, bool]]] = defaultdict(list)
    for path, label, is_anomalous in labelled:
        if path.is_file():
            by_size[path.stat().st_size].append((path, label, is_anomalous))
    for group in by_size.values():
        seen: dict[bytes, tuple[Path, str, bool]] = {}
        for path, label, is_anomalous in group if len(group) > 1 else ():
            digest = _digest(path)
            first, first_label, was_anomalous = seen.setdefault(digest, (path, label, is_anomalous))
            if label != first_label and digest:
                contradicts = is_anomalous != was_anomalous and path not in in_clips
                yield Copy(path, label, first, first_label, contradicts)


def _digest(path: Path) -> bytes:
    """Fingerprint of a file's bytes; empty if it cannot be read."""
    try:
        with open_file(path) as file:
            return hashlib.blake2b(file.read()).digest()
    except OSError:
        return b""
