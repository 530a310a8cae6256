"""MVTec AD (Bergmann et al. 2019): CLASS/train/good, CLASS/test/<type>, CLASS/ground_truth/<type>/NNN_mask.png.

A folder of good/ and other types without test/ is read the same way. Masks may also lie elsewhere, see `mask_files`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from flawmap.datasets.dataset import GOOD, Dataset, Sample, check_folder, find_good, is_folder, is_good, subfolders
from flawmap.datasets.layout import Layout
from flawmap.datasets.mask_files import find_masks, mask_folders, why_no_masks, without_masks
from flawmap.errors import DatasetError, counted
from flawmap.images.formats import is_image
from flawmap.images.search import find_images


def read_mvtec_ad(root: str | os.PathLike[str]) -> Dataset:
    """Data set below a folder in MVTec AD layout. Raises DatasetError."""
    folder = check_folder(root)
    test = folder / "test" if (folder / "test").is_dir() else folder
    masks = [*mask_folders(folder), *(mask_folders(test) if test != folder else [])]
    types = [path for path in subfolders(test) if path not in masks and path != folder / "train"]
    if test == folder and not any(is_good(path.name) for path in types):
        names = sorted(path.name for path in folder.iterdir())
        hint = "; rename Test to test, case matters" if "Test" in names else ""
        raise DatasetError(
            f"{root}: expected test/good and test/<type> (MVTec AD layout), or good/ and folders of other types; "
            f"found {', '.join(names[:8]) or 'an empty folder'}{hint}"
        )
    images = {path: without_masks(find_images(path)) for path in types}
    found = find_masks(masks, {path: paths for path, paths in images.items() if not is_good(path.name)})
    samples = [
        Sample(image, GOOD if is_good(path.name) else path.name, found.get(image))
        for path, paths in images.items()
        for image in paths
    ]
    if not samples:
        raise DatasetError(f"{root}: the folders of test images are empty; expected images in good/ and <type>/")
    train = find_good(folder / "train")
    return Dataset(
        folder.resolve().name,
        tuple(find_images(train)) if train is not None else (),
        tuple(samples),
        remarks=(*why_no_masks(samples, masks), *_left_out(test, images)),
    )


def find_class_folders(root: Path) -> list[Path]:
    """Folders with train/good and test below a root."""
    return [path for path in subfolders(root) if (path / "test").is_dir() and find_good(path / "train") is not None]


def _left_out(test: Path, images: Mapping[Path, Sequence[Path]]) -> Iterator[str]:
    """Remarks on images that lie beside the folders of types, and on folders without images."""
    if stray := sorted(path.name for path in test.iterdir() if not path.name.startswith(".") and is_image(path)):
        yield f"{counted(len(stray), 'image')} left out: in {test} itself, in no folder of a type: first {stray[0]}"
    if empty := [path.name for path, paths in images.items() if not paths]:
        yield f"folders in {test} hold no images: {', '.join(empty)}"


MVTEC_AD = Layout.of(
    "mvtec_ad",
    holds=lambda path: is_folder(path / "test") or find_good(path) is not None,
    read=lambda folder, _: read_mvtec_ad(folder),
    find_classes=find_class_folders,
)
