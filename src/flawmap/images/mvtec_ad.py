"""MVTec AD layout (Bergmann et al. 2019): train/good, test/<type>, ground_truth/<type>/NNN_mask.png.

A folder that holds good/ and other types directly, without test/, is read the same way; it has no masks.
"""

from __future__ import annotations

import os
from pathlib import Path

from flawmap.errors import DatasetError
from flawmap.images.dataset import GOOD, Dataset, Sample, check_folder
from flawmap.images.source import find_images

__all__ = ["read_mvtec_ad"]


def read_mvtec_ad(root: str | os.PathLike[str]) -> Dataset:
    """Data set below a folder in MVTec AD layout."""
    folder = check_folder(root)
    test = folder / "test" if (folder / "test").is_dir() else folder
    types = sorted(path for path in test.iterdir() if path.is_dir() and not path.name.startswith("."))
    if test is folder:
        types = [path for path in types if path.name not in ("train", "ground_truth")]
        if GOOD not in [path.name for path in types]:
            raise DatasetError(
                f"{root}: expected test/good and test/<type> (MVTec AD layout), or good/ and folders of other types; "
                f"found {', '.join(sorted(path.name for path in folder.iterdir())[:8]) or 'an empty folder'}"
            )
    samples = [
        Sample(image, path.name, _mask(image, folder / "ground_truth" / path.name))
        for path in types
        for image in find_images(path)
    ]
    if not samples:
        raise DatasetError(f"{root}: the folders of test images are empty; expected images in good/ and <type>/")
    train = folder / "train" / GOOD
    return Dataset(folder.resolve().name, tuple(find_images(train)) if train.is_dir() else (), tuple(samples))


def _mask(path: Path, masks: Path) -> Path | None:
    """The mask of an image: NNN_mask.png, or of the image's own name."""
    candidates = [masks / f"{path.stem}_mask.png", masks / f"{path.stem}.png", masks / path.name]
    return next((mask for mask in candidates if mask.is_file()), None)
