"""BTAD, beanTech Anomaly Detection (Mishra et al. 2021): NN/train/ok, NN/test/ok and ko, NN/ground_truth/ko."""

from __future__ import annotations

from pathlib import Path

from flawmap.datasets.dataset import GOOD, Dataset, Sample, Tell, expect_folder, subfolders
from flawmap.datasets.layout import Layout, folders_that
from flawmap.datasets.mask_files import find_masks, mask_folders, why_no_masks
from flawmap.images.search import find_images


def _holds(path: Path) -> bool:
    # other data may call good images ok, too
    return (path / "train" / "ok").is_dir() and any(kind.name.lower() == "ko" for kind in subfolders(path / "test"))


def _read(folder: Path, _: Tell) -> Dataset:
    train, test = (expect_folder(folder, name, "BTAD") for name in ("train", "test"))
    good = find_images(expect_folder(train, "ok", "BTAD"))
    samples = [Sample(path, GOOD) for path in find_images(expect_folder(test, "ok", "BTAD"))]
    images = find_images(expect_folder(test, "ko", "BTAD"))
    folders = mask_folders(folder)
    masks = find_masks(folders, {test / "ko": images})  # they end in .png or .bmp, not always as their images
    samples += [Sample(path, "ko", masks.get(path)) for path in images]
    return Dataset(f"BTAD {folder.name}", tuple(good), tuple(samples), remarks=why_no_masks(samples, folders))


BTAD = Layout.of("btad", holds=_holds, read=_read, find_classes=folders_that(_holds))
