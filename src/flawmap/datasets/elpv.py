"""ELPV (Deitsch et al. 2021): 2,624 electroluminescence images of solar cells, from the PyPI package elpv-dataset.

Each cell carries the probability that it is defective: 0, 1/3, 2/3 or 1. Licence of the images: CC BY-NC-SA 4.0.
"""

from __future__ import annotations

import importlib.util
from io import TextIOWrapper
from pathlib import Path
from typing import Literal, cast

from flawmap.datasets.dataset import GOOD, Dataset, Sample, Tell
from flawmap.datasets.layout import Layout, hold_out, no_files
from flawmap.errors import DatasetError, MissingDependencyError
from flawmap.files import open_file

Cells = Literal["mono", "poly"]
"""Monocrystalline or polycrystalline."""

LABELS = "labels.csv"


def read_elpv(cells: Cells | None = None, *, seed: int = 0, folder: Path | None = None) -> Dataset:
    """Solar cells of one kind, or of both.

    Training: a random 80 % (by `seed`) of the functional cells (probability 0). Test: the other functional ones as
    "good", and the surely defective ones (probability 1) as "defective". Cells in between are left out. `folder` holds
    labels.csv; None for the folder of the installed package.
    """
    if folder is None:
        folder = packaged_folder()
    functional: list[Path] = []
    defective: list[Path] = []
    try:
        with TextIOWrapper(open_file(folder / LABELS), encoding="utf-8") as lines:
            for line in lines:
                name, probability, kind = line.split()
                if cells is not None and kind != cells:
                    continue
                if float(probability) == 0:
                    functional.append(folder / name)
                elif float(probability) == 1:
                    defective.append(folder / name)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{folder}: labels.csv cannot be read ({error}); install elpv-dataset again") from error
    train, held_out = hold_out(functional, seed)
    test = [Sample(path, GOOD) for path in held_out] + [Sample(path, "defective") for path in defective]
    return Dataset(f"ELPV {cells or 'all'}", tuple(train), tuple(test))


def packaged_folder() -> Path:
    """Data folder of the installed package, found without running its code. Raises MissingDependencyError."""
    spec = importlib.util.find_spec("elpv_dataset")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        if (folder := Path(location) / "data").is_dir():
            return folder
    raise MissingDependencyError("the ELPV images are in the package elpv-dataset: pip install 'flawmap[demo]'")


def _holds(path: Path) -> bool:
    return _folder(path) is not None


def _folder(path: Path) -> Path | None:
    """The folder with labels.csv of ROOT, ROOT/mono or ROOT/poly."""
    root = path.parent if path.name in ("mono", "poly") and not path.is_dir() else path
    return root if (root / LABELS).is_file() and (root / "images").is_dir() else None


def _find_classes(root: Path) -> list[Path]:
    return [root / "mono", root / "poly"] if _folder(root) == root else []


def _read(path: Path, _: Tell) -> Dataset:
    if (folder := _folder(path)) is None:
        raise DatasetError(f"{path}: expected labels.csv and images/ (ELPV)")
    return read_elpv(None if folder == path else cast(Cells, path.name), folder=folder)


ELPV = Layout.of("elpv", holds=_holds, read=_read, find_classes=_find_classes, files=no_files, has_masks=False)
