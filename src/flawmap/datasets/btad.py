"""BTAD, beanTech Anomaly Detection (Mishra et al. 2021): NN/train/ok, NN/test/ok and ko, NN/ground_truth/ko."""

from __future__ import annotations

from pathlib import Path

from flawmap.datasets.dataset import GOOD, Dataset, Sample, Tell, expect_folder
from flawmap.datasets.layout import Layout, folders_that
from flawmap.images.source import find_images


def _holds(path: Path) -> bool:
    return (path / "train" / "ok").is_dir()


def _read(folder: Path, _: Tell) -> Dataset:
    train, test = (expect_folder(folder, name, "BTAD") for name in ("train", "test"))
    good = find_images(expect_folder(train, "ok", "BTAD"))
    # images and masks end in .png or .bmp, not always alike
    truth = folder / "ground_truth" / "ko"
    masks = {path.stem: path for path in (find_images(truth) if truth.is_dir() else [])}
    samples = [Sample(path, GOOD) for path in find_images(expect_folder(test, "ok", "BTAD"))]
    samples += [Sample(path, "ko", masks.get(path.stem)) for path in find_images(expect_folder(test, "ko", "BTAD"))]
    return Dataset(f"BTAD {folder.name}", tuple(good), tuple(samples))


BTAD = Layout.of("btad", holds=_holds, read=_read, find_classes=folders_that(_holds))
