"""VisA (Zou et al. 2022), as published and as its authors' script rearranges it.

As published: CLASS/Data/Images/{Normal,Anomaly}/*.JPG, CLASS/Data/Masks/Anomaly/*.png, and split_csv/1cls.csv beside
the classes, with the columns object, split, label, image, mask. Rearranged: CLASS/train/good, CLASS/test/{good,bad},
CLASS/ground_truth/bad, maybe below a folder 1cls. Masks number the kinds of defects; all but 0 is anomalous.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from flawmap.datasets.dataset import GOOD, Dataset, Sample, Tell, subfolders, why_no_file
from flawmap.datasets.layout import Layout
from flawmap.datasets.manifest import read_table
from flawmap.datasets.mask_files import named_files, why_no_masks
from flawmap.datasets.mvtec_ad import find_class_folders, read_mvtec_ad
from flawmap.errors import DatasetError
from flawmap.images.masks import ClassMask

SPLIT = Path("split_csv", "1cls.csv")
COLUMNS = ("object", "split", "label", "image", "mask")


def _is_original(path: Path) -> bool:
    return (path / "Data" / "Images").is_dir()


def _holds(path: Path) -> bool:
    return _is_original(path) or (path.name in VISA.classes and (path / "test" / "bad").is_dir())


def _find_classes(root: Path) -> list[Path]:
    original = [path for path in subfolders(root) if _is_original(path)]
    base = root / "1cls" if (root / "1cls").is_dir() else root
    return original or [path for path in find_class_folders(base) if path.name in VISA.classes]


def _read(folder: Path, tell: Tell) -> Dataset:
    name = f"VisA {folder.name}"
    if not _is_original(folder):
        data = read_mvtec_ad(folder)
        test = [
            replace(sample, mask_path=ClassMask(sample.mask_path)) if isinstance(sample.mask_path, Path) else sample
            for sample in data.test
        ]
        return replace(data, name=name, test=tuple(test))
    return _read_original(folder, name, tell)


def _read_original(folder: Path, name: str, tell: Tell) -> Dataset:
    root, table, find = folder.parent, folder.parent / SPLIT, named_files()
    train: list[Path] = []
    samples: list[Sample] = []
    first_lines: dict[str, int] = {}
    for number, row in read_table(table, COLUMNS, COLUMNS, tell):
        if row["object"] != folder.name:
            continue
        path, split, label = root / row["image"], row["split"].lower(), row["label"].lower()
        first = first_lines.setdefault(row["image"], number)
        if why_no_file(path) is not None:
            tell(path, f"no such file; {SPLIT.as_posix()} names it in line {number}")
        elif first != number:
            tell(table, f"line {number}: {row['image']} is named a second time, first in line {first}")
        elif split == "train" and label == "normal":
            train.append(path)
        elif split == "test" and label and not (label == "normal" and row["mask"]):
            mask = find(root / row["mask"]) if row["mask"] else None
            found = None if mask is None else ClassMask(mask)
            samples.append(Sample(path, GOOD if label == "normal" else label, found))
        else:
            expected = "a normal training image, or a test image with a label, and a mask if it is not normal"
            tell(table, f"line {number}: expected {expected}; got {list(row.values())}")
    if not train and not samples:
        raise DatasetError(f"{table}: names no image of {folder.name}; expected it in the column object")
    remarks = why_no_masks(samples, [Path(folder.name, "Data", "Masks")])
    return Dataset(name, tuple(train), tuple(samples), remarks=remarks)


VISA = Layout.of("visa", holds=_holds, read=_read, find_classes=_find_classes)
