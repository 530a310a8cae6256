"""ELPV (Deitsch et al. 2021): 2,624 electroluminescence images of solar cells, from the PyPI package elpv-dataset.

Each cell carries the probability that it is defective: 0, 1/3, 2/3 or 1. Licence of the images: CC BY-NC-SA 4.0.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal

import numpy as np

from flawmap.errors import DatasetError, MissingDependencyError
from flawmap.images.dataset import GOOD, Dataset, Sample

__all__ = ["read_elpv"]

TRAIN_SHARE = 0.8


def read_elpv(cells: Literal["mono", "poly"] | None = None, *, seed: int = 0) -> Dataset:
    """Solar cells of one kind, or of both.

    Training: a random 80 % (by `seed`) of the functional cells (probability 0). Test: the other functional ones as
    "good", and the surely defective ones (probability 1) as "defective". Cells in between are left out.
    """
    folder = _package_folder()
    functional: list[Path] = []
    defective: list[Path] = []
    try:
        with (folder / "labels.csv").open(encoding="utf-8") as lines:
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
    order = np.random.default_rng(seed).permutation(len(functional))
    n_train = round(TRAIN_SHARE * len(functional))
    train, held_out = (sorted(functional[i] for i in part) for part in (order[:n_train], order[n_train:]))
    test = [Sample(path, GOOD) for path in held_out] + [Sample(path, "defective") for path in defective]
    return Dataset(f"ELPV {cells or 'all'}", tuple(train), tuple(test))


def _package_folder() -> Path:
    """Data folder of the installed package, found without running its code."""
    spec = importlib.util.find_spec("elpv_dataset")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        if (folder := Path(location) / "data").is_dir():
            return folder
    raise MissingDependencyError("the ELPV images are in the package elpv-dataset: pip install 'flawmap[demo]'")
