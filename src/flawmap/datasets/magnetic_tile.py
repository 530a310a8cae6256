"""Magnetic Tile Defects (Huang et al. 2020): MT_<type>/Imgs/*.jpg, each beside its mask of the same name, *.png.

The authors publish no split into training and test images. As in DifferNet and PatchCore, a random fifth of the free
tiles (MT_Free) is held out for testing, with all defective ones.
"""

from __future__ import annotations

from pathlib import Path

from flawmap.datasets.dataset import GOOD, Dataset, Sample, expect_folder, on_another_level, subfolders
from flawmap.datasets.layout import Layout, hold_out
from flawmap.datasets.mask_files import find_masks, why_no_masks
from flawmap.errors import DatasetError
from flawmap.images.search import find_images

PREFIX = "MT_"
FREE = "MT_Free"


def read_magnetic_tile(folder: Path, *, seed: int = 0) -> Dataset:
    """A random 80 % of the free tiles by `seed` for training; the others and the defective ones for testing."""
    if not _holds(folder):
        raise DatasetError(
            f"{folder}: expected the folder that holds {FREE}/Imgs and the other types (Magnetic Tile Defects)"
            f"{on_another_level(folder, _holds)}"
        )
    types = [path for path in subfolders(folder) if path.name.startswith(PREFIX)]
    free = _photos(folder / FREE)
    if not free:
        raise DatasetError(f"{folder / FREE / 'Imgs'}: no .jpg images; expected the free tiles, for training")
    train, held_out = hold_out(free, seed)
    samples = [Sample(path, GOOD) for path in held_out]
    for path in types:
        if path.name != FREE:
            folder, images = path / "Imgs", _photos(path)
            masks = find_masks([folder], {folder: images})
            samples += [Sample(image, path.name[len(PREFIX) :].lower(), masks.get(image)) for image in images]
    remarks = why_no_masks(samples, [path / "Imgs" for path in types[:1]])
    return Dataset("Magnetic Tile Defects", tuple(train), tuple(samples), remarks=remarks)


def _photos(folder: Path) -> list[Path]:
    """Photos of a type; the .png files among them are masks."""
    photos = find_images(expect_folder(folder, "Imgs", "Magnetic Tile Defects"))
    return [path for path in photos if path.suffix.lower() in (".jpg", ".jpeg")]


def _holds(path: Path) -> bool:
    return (path / FREE / "Imgs").is_dir()


MAGNETIC_TILE = Layout.of("mtd", holds=_holds, read=lambda folder, _: read_magnetic_tile(folder))
