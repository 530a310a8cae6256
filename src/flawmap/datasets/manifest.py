"""A manifest: a CSV file with the columns path, label, split, and optionally mask and group.

Paths are relative to the file. `split` is train or test. `label` is good (also: ok, normal, 0, false), or the
kind of defect; 1 and true stand for "anomalous". `mask` is a file, or a folder in which the mask has its image's name.
"""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from io import TextIOWrapper
from pathlib import Path

from flawmap.datasets.dataset import ANOMALOUS, GOOD, GOOD_NAMES, Dataset, Sample, Tell, is_folder, why_no_file
from flawmap.datasets.layout import Layout, no_files
from flawmap.datasets.mask_files import find_masks, named_files
from flawmap.errors import DatasetError
from flawmap.files import open_file
from flawmap.images.masks import DefectMasks
from flawmap.images.video import VideoFrame

REQUIRED = ("path", "label", "split")
COLUMNS = (*REQUIRED, "mask", "group")
GOOD_LABELS = GOOD_NAMES | {"0", "0.0", "false"}
BAD_LABELS = frozenset({"1", "1.0", "true"})
"""Labels that only say that an image is not good."""
NO_LABELS = frozenset({"", "-", "?", "n/a", "na", "nan", "none", "null", "unknown"})
"""What tables hold where nobody has labelled an image, in lower case."""
Row = dict[str, str]


def _holds(path: Path) -> bool:
    return path.suffix.lower() == ".csv" and path.is_file()


def _read(path: Path, tell: Tell) -> Dataset:
    train: list[tuple[Path | VideoFrame, str | None]] = []
    samples: list[Sample] = []
    folder, rows = path.parent, [*_rows(path, tell)]
    masks = _find_masks(folder, [row for _, row in rows])
    for number, row in rows:
        image, kind, group = folder / row["path"], _kind(row["label"]), row["group"] or None
        mask = masks.get((row["path"], row["mask"]))
        if row["mask"] and mask is None:
            reason = why_no_file(folder / row["mask"])
            if is_folder(folder / row["mask"]):
                reason = f"{row['mask']}: a folder without a mask of the name of {row['path']}"
            tell(path, f"line {number}: mask {reason}")
        elif row["split"] == "train":
            train.append((image, group))
        else:
            samples.append(Sample(image, kind, mask, group))
    if not train and not samples:
        raise DatasetError(f"{path}: names no image that can be used; expected a line for each")
    return replace(Dataset.of(path.stem, train, samples), remarks=(*_alike(samples),))


def _rows(path: Path, tell: Tell) -> Iterator[tuple[int, Row]]:
    """Line numbers and rows, without those that are wrong, which are reported; masks are not looked for."""
    first_lines: dict[str, int] = {}
    for number, row in read_table(path, COLUMNS, REQUIRED, tell):
        if problems := [*_problems(path.parent, row)]:
            for problem in problems:
                tell(path, f"line {number}: {problem}")
            continue
        first = first_lines.setdefault(os.path.realpath(path.parent / row["path"]), number)
        if first != number:
            tell(path, f"line {number}: {row['path']} is named a second time, first in line {first}")
        else:
            yield number, row


def _find_masks(folder: Path, rows: Sequence[Row]) -> dict[tuple[str, str], Path | DefectMasks]:
    """The masks that lines name, by image and mask.

    A mask is a file, in whatever case; a folder in which it has its image's name; or a folder of its image's name, with
    a mask for each defect.
    """
    find = named_files()
    found: dict[tuple[str, str], Path | DefectMasks | None] = {}
    shared: dict[str, list[str]] = defaultdict(list)
    for image, mask in ((row["path"], row["mask"]) for row in rows if row["mask"]):
        place = folder / mask
        if not is_folder(place):
            found[image, mask] = find(place)
        elif place.name.lower() == Path(image).stem.lower():
            found[image, mask] = DefectMasks(place)
        else:
            shared[mask].append(image)
    for mask, images in shared.items():
        types: dict[Path, list[Path]] = defaultdict(list)
        for image in dict.fromkeys(images):
            types[(folder / image).parent].append(folder / image)
        by_image = find_masks([folder / mask], types)
        found |= {(image, mask): by_image.get(folder / image) for image in images}
    return {names: mask for names, mask in found.items() if mask is not None}


def _alike(samples: Sequence[Sample]) -> Iterator[str]:
    """Types whose names differ in case alone."""
    spellings: dict[str, str] = {}
    for sample in samples:
        first = spellings.setdefault(sample.type.lower(), sample.type)
        if first != sample.type:
            yield f"the types '{first}' and '{sample.type}' differ in case alone, and count as two"


def _problems(folder: Path, row: Row) -> Iterator[str]:
    """Everything wrong with a line."""
    image, label, split, mask = (row[name] for name in ("path", "label", "split", "mask"))
    if not image:
        yield "no path"
    elif reason := why_no_file(folder / image):
        yield reason
    if split not in ("train", "test"):
        yield f"split must be train or test, got '{split}'"
    if label.lower() in NO_LABELS:
        yield f"no label{label and f', got {label!r}'}; expected good, or the kind of defect"
    elif split == "train" and _kind(label) != GOOD:
        yield f"{image} is '{label}'; only good images are for training, expected split test"
    if mask and _kind(label) == GOOD:
        yield f"{image} is good and needs no mask; leave the column empty"
    elif mask and os.path.realpath(folder / mask) == os.path.realpath(folder / image):
        yield f"mask {mask} is the image itself; name its mask, or leave the column empty"


def _kind(label: str) -> str:
    """The type meant by a label."""
    if label.lower() in GOOD_LABELS:
        return GOOD
    return ANOMALOUS if label.lower() in BAD_LABELS else label


def read_table(path: Path, columns: Sequence[str], required: Sequence[str], tell: Tell) -> Iterator[tuple[int, Row]]:
    """Line numbers and rows of a CSV file, without empty lines; wrong lines are reported. DatasetError for no table."""
    try:
        with TextIOWrapper(open_file(path), encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, restval="", skipinitialspace=True, strict=True)
            header = [(name or "").strip() for name in reader.fieldnames or ()]
            _check_header(path, header, columns, required)
            reader.fieldnames = header
            for row in reader:
                if None in row:
                    reason = "more values than columns; put quotes around what holds a comma"
                    tell(path, f"line {reader.line_num}: {reason}")
                else:
                    yield reader.line_num, {name: str(row.get(name, "")).strip() for name in columns}
    except csv.Error as error:
        raise DatasetError(f"{path}: line {reader.reader.line_num}: is no CSV table ({error})") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: is no text in UTF-8; save it as 'CSV UTF-8'") from error
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror}); check the path") from error


def _check_header(path: Path, header: list[str], columns: Sequence[str], required: Sequence[str]) -> None:
    """Raise DatasetError, which names every error."""
    wrong = []
    if missing := [name for name in required if name not in header]:
        hint = " (separate them by commas)" if len(header) == 1 else ""
        wrong.append(f"no column {', '.join(missing)}{hint}")
    if unknown := [name for name in header if name not in columns]:
        wrong.append(f"unknown column {', '.join(unknown)}")
    if twice := [name for name in columns if header.count(name) > 1]:
        wrong.append(f"column {', '.join(twice)} more than once")
    if wrong:
        raise DatasetError(f"{path}: line 1: {'; '.join(wrong)}; expected {','.join(columns)}")


MANIFEST = Layout.of("csv", holds=_holds, read=_read, files=no_files, has_masks=False)
