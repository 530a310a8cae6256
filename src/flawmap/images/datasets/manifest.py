"""A manifest: a CSV file with the columns path, label, split and, if you like, mask and group.

Paths are relative to the file. `split` is train or test. `label` is good (also: ok, normal, 0), or what is wrong with
the image; 1 stands for "anomalous".
"""

from __future__ import annotations

import csv
from pathlib import Path

from flawmap.errors import DatasetError
from flawmap.images.datasets.dataset import GOOD, Dataset, Sample, Tell
from flawmap.images.datasets.layout import Layout, no_classes, no_files

__all__ = ["MANIFEST"]

REQUIRED = ("path", "label", "split")
COLUMNS = (*REQUIRED, "mask", "group")
GOOD_LABELS = frozenset({GOOD, "ok", "normal", "0"})
Row = dict[str, str]


def _holds(path: Path) -> bool:
    return path.suffix.lower() == ".csv" and path.is_file()


def _read(path: Path, tell: Tell) -> Dataset:
    train: list[tuple[Path, str | None]] = []
    samples: list[Sample] = []
    first_lines: dict[Path, int] = {}
    for number, row in _rows(path):
        if problem := _problem(path.parent, row, first_lines):
            tell(path, f"line {number}: {problem}")
            continue
        image = path.parent / row["path"]
        first_lines[image] = number
        kind, group = _kind(row["label"]), row["group"] or None
        if row["split"] == "train":
            train.append((image, group))
        else:
            samples.append(Sample(image, kind, path.parent / row["mask"] if row["mask"] else None, group))
    if not train and not samples:
        raise DatasetError(f"{path}: names no image that can be used; expected a line for each")
    has_groups = any(group is not None for _, group in train)
    return Dataset(
        path.stem,
        tuple(image for image, _ in train),
        tuple(samples),
        tuple(group for _, group in train) if has_groups else (),
    )


def _problem(folder: Path, row: Row, first_lines: dict[Path, int]) -> str | None:
    """What is wrong with a line, or None."""
    image, label, split, mask = (row[name] for name in ("path", "label", "split", "mask"))
    if not image:
        return "no path"
    if folder / image in first_lines:
        return f"{image} is named a second time, first in line {first_lines[folder / image]}"
    if not (folder / image).is_file():
        return f"{folder / image}: no such file"
    if split not in ("train", "test"):
        return f"split must be train or test, got '{split}'"
    if not label:
        return "no label; expected good, or what is wrong with the image"
    if split == "train" and _kind(label) != GOOD:
        return f"{image} is '{label}'; only good images are learnt from, expected split test"
    if mask and _kind(label) == GOOD:
        return f"{image} is good and takes no mask; leave the column empty"
    if mask and not (folder / mask).is_file():
        return f"{folder / mask}: no such mask"
    return None


def _kind(label: str) -> str:
    """The type meant by a label."""
    if label.lower() in GOOD_LABELS:
        return GOOD
    return "anomalous" if label == "1" else label


def _rows(path: Path) -> list[tuple[int, Row]]:
    """Line numbers and rows; empty lines are passed over. Raises DatasetError for what is no such table."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, restval="", skipinitialspace=True, strict=True)
            header = [(name or "").strip() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            if missing := [name for name in REQUIRED if name not in header]:
                hint = "; separate them by commas" if len(header) == 1 else ""
                raise DatasetError(
                    f"{path}: line 1: no column {', '.join(missing)}; expected {','.join(COLUMNS)}{hint}"
                )
            if unknown := [name for name in header if name not in COLUMNS]:
                raise DatasetError(
                    f"{path}: line 1: unknown column {', '.join(unknown)}; known are {','.join(COLUMNS)}"
                )
            return [(reader.line_num, _row(path, reader.line_num, row)) for row in reader]
    except csv.Error as error:
        raise DatasetError(f"{path}: is no CSV table ({error})") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: is no text in UTF-8; save it as 'CSV UTF-8'") from error
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror}); check the path") from error


def _row(path: Path, number: int, row: dict[str | None, object]) -> Row:
    if None in row:
        raise DatasetError(f"{path}: line {number}: more values than columns; put quotes around what holds a comma")
    return {name: str(row.get(name, "")).strip() for name in COLUMNS}


MANIFEST = Layout(
    name="csv",
    title="CSV manifest",
    what="your own images, by a table with the columns path,label,split,mask,group",
    classes=(),
    licence="yours",
    origin="your own",
    paper="-",
    holds=_holds,
    find_classes=no_classes,
    read=_read,
    files=no_files,
    has_masks=False,
)
