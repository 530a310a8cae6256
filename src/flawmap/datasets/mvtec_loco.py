"""MVTec LOCO AD (Bergmann et al. 2022): logical anomalies, such as a part too many, and structural ones.

CLASS/train/good, CLASS/validation/good, CLASS/test/{good,logical_anomalies,structural_anomalies}, and in
CLASS/ground_truth/<type>/NNN/ a mask for each defect of test/<type>/NNN.png. The value of a mask's pixels is looked up
in CLASS/defects_config.json: it says how much of a defect must be found.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from flawmap.datasets.dataset import GOOD, Dataset, Sample, Tell, expect_folder, subfolders
from flawmap.datasets.layout import Layout, files_below, folders_that
from flawmap.datasets.mask_files import find_masks, mask_folders, why_no_masks
from flawmap.files import open_file
from flawmap.images.masks import DefectMasks, Saturation
from flawmap.images.search import find_images

TITLE = "MVTec LOCO AD"
TYPES = ("logical_anomalies", "structural_anomalies")
CONFIG = "defects_config.json"


class _Defect(BaseModel):
    """An entry of defects_config.json."""

    pixel_value: int = Field(ge=1, le=65535)
    saturation_threshold: float = Field(gt=0, allow_inf_nan=False)
    relative_saturation: bool


def _holds(path: Path) -> bool:
    return any((path / "test" / name).is_dir() for name in TYPES)


def _read(folder: Path, tell: Tell) -> Dataset:
    test = expect_folder(folder, "test", TITLE)
    train = find_images(expect_folder(expect_folder(folder, "train", TITLE), GOOD, TITLE))
    samples = [Sample(path, GOOD) for path in find_images(expect_folder(test, GOOD, TITLE))]
    types = {path: find_images(path) for path in subfolders(test) if path.name != GOOD}
    folders = mask_folders(folder)
    masks, saturations = find_masks(folders, types), _saturations(folder / CONFIG, tell)
    for kind, images in types.items():
        for image in images:
            mask = masks.get(image)
            own = replace(mask, saturations=saturations) if isinstance(mask, DefectMasks) else mask
            samples.append(Sample(image, kind.name, own))
    remarks = [] if saturations else [f"{folder / CONFIG} is missing: without its thresholds there is no sPRO"]
    remarks += why_no_masks(samples, folders)
    if flat := [mask for mask in masks.values() if not isinstance(mask, DefectMasks)]:
        remarks.append(
            f"{len(flat)} of {len(masks)} masks are files, and not folders: sPRO leaves them out; first {flat[0]}"
        )
    return Dataset(f"{TITLE} {folder.resolve().name}", tuple(train), tuple(samples), remarks=tuple(remarks))


def _saturations(path: Path, tell: Tell) -> tuple[tuple[int, Saturation], ...]:
    """The saturation of each value of a mask's pixels; none without the file, or if it is wrong, reported to `tell`."""
    try:
        with open_file(path) as file:
            defects = TypeAdapter(list[_Defect]).validate_json(file.read())
    except FileNotFoundError:
        return ()
    except OSError as error:
        tell(path, f"cannot be read ({error.strerror})")
        return ()
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        names = ", ".join(_Defect.model_fields)
        tell(path, f"expected a list of objects with {names}; at {where or 'its start'}: {first['msg']}")
        return ()
    values = [defect.pixel_value for defect in defects]
    if twice := [value for value in values if values.count(value) > 1]:
        tell(path, f"names the pixel value {twice[0]} more than once")
    return tuple((one.pixel_value, Saturation(one.saturation_threshold, one.relative_saturation)) for one in defects)


def _files(folder: Path) -> Iterator[Path]:
    """All files of a class but the good images for validation, which flawmap does not need: it leaves one out."""
    validation = folder / "validation" / GOOD
    return (path for path in files_below(folder) if not path.is_relative_to(validation))


MVTEC_LOCO = Layout.of("mvtec_loco", holds=_holds, read=_read, find_classes=folders_that(_holds), files=_files)
