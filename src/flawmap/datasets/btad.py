"""BTAD, beanTech Anomaly Detection (Mishra et al. 2021): NN/train/ok, NN/test/ok and ko, NN/ground_truth/ko."""

from __future__ import annotations

from pathlib import Path

from flawmap.datasets.dataset import GOOD, Dataset, Sample, Tell, expect_folder, subfolders
from flawmap.datasets.layout import Counts, Layout, files_below
from flawmap.images.source import find_images

__all__ = ["BTAD"]

PUBLISHED = {"01": (400, 21, 49), "02": (399, 30, 200), "03": (1000, 400, 41)}
"""Training images, good and anomalous test images, as the archive holds them."""


def _holds(path: Path) -> bool:
    return (path / "train" / "ok").is_dir()


def _find_classes(root: Path) -> list[Path]:
    return [path for path in subfolders(root) if _holds(path)]


def _read(folder: Path, _: Tell) -> Dataset:
    train, test = (expect_folder(folder, name, "BTAD") for name in ("train", "test"))
    good = find_images(expect_folder(train, "ok", "BTAD"))
    # images and masks end in .png or .bmp, not always alike
    truth = folder / "ground_truth" / "ko"
    masks = {path.stem: path for path in (find_images(truth) if truth.is_dir() else [])}  # to learn takes none
    samples = [Sample(path, GOOD) for path in find_images(expect_folder(test, "ok", "BTAD"))]
    samples += [Sample(path, "ko", masks.get(path.stem)) for path in find_images(expect_folder(test, "ko", "BTAD"))]
    return Dataset(f"BTAD {folder.name}", tuple(good), tuple(samples))


BTAD = Layout(
    name="btad",
    title="BTAD",
    what="photos of three industrial products with body and surface defects",
    classes=tuple(PUBLISHED),
    licence="CC BY-NC-SA 4.0",
    origin="http://avires.dimi.uniud.it/papers/btad/btad.zip",
    paper="Mishra et al., VT-ADL, ISIE 2021",
    holds=_holds,
    find_classes=_find_classes,
    read=_read,
    files=files_below,
    published={name: Counts(train, good + bad, good, bad) for name, (train, good, bad) in PUBLISHED.items()},
)
