"""MVTec AD (Bergmann et al. 2019): CLASS/train/good, CLASS/test/<type>, CLASS/ground_truth/<type>/NNN_mask.png.

A folder of good/ and other types without test/ is read the same way; it has no masks.
"""

from __future__ import annotations

import os
from pathlib import Path

from flawmap.datasets.dataset import GOOD, Dataset, Sample, check_folder, is_folder, subfolders
from flawmap.datasets.layout import Layout
from flawmap.errors import DatasetError
from flawmap.images.source import find_images


def read_mvtec_ad(root: str | os.PathLike[str]) -> Dataset:
    """Data set below a folder in MVTec AD layout. Raises DatasetError."""
    folder = check_folder(root)
    test = folder / "test" if (folder / "test").is_dir() else folder
    types = subfolders(test)
    if test is folder:
        types = [path for path in types if path.name not in ("train", "ground_truth")]
        if GOOD not in [path.name for path in types]:
            names = sorted(path.name for path in folder.iterdir())
            hint = "; rename Test to test, case matters" if "Test" in names else ""
            raise DatasetError(
                f"{root}: expected test/good and test/<type> (MVTec AD layout), or good/ and folders of other types; "
                f"found {', '.join(names[:8]) or 'an empty folder'}{hint}"
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


def find_class_folders(root: Path) -> list[Path]:
    """Folders with train/good and test below a root."""
    return [path for path in subfolders(root) if (path / "train" / GOOD).is_dir() and (path / "test").is_dir()]


def _mask(path: Path, masks: Path) -> Path | None:
    """The mask of an image: NNN_mask.png, or of the image's own name."""
    candidates = [masks / f"{path.stem}_mask.png", masks / f"{path.stem}.png", masks / path.name]
    return next((mask for mask in candidates if mask.is_file()), None)


MVTEC_AD = Layout.of(
    "mvtec_ad",
    holds=lambda path: is_folder(path / "test") or is_folder(path / GOOD),
    read=lambda folder, _: read_mvtec_ad(folder),
    find_classes=find_class_folders,
)
