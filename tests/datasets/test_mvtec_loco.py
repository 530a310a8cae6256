from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from flawmap.datasets import LAYOUTS, check_dataset, open_dataset, training_images
from flawmap.errors import DatasetError
from flawmap.images import DefectMasks, Saturation, read_mask

CONFIG = [
    {"defect_name": "2_pins", "pixel_value": 255, "saturation_threshold": 6300, "relative_saturation": False},
    {"defect_name": "broken", "pixel_value": 254, "saturation_threshold": 1.0, "relative_saturation": True},
]
NUMBERS = {"train": 2, "test": 3, "good": 1, "anomalous": 2}


@pytest.fixture
def pushpins(tmp_path, write):
    root = tmp_path / "loco" / "pushpins"
    for name in ("train/good/000", "train/good/001", "validation/good/000", "test/good/000"):
        write(root / f"{name}.png")
    for kind in ("logical_anomalies", "structural_anomalies"):
        write(root / "test" / kind / "000.png")
    for place, value, row in (("logical", 255, 0), ("logical", 254, 3), ("structural", 254, 1)):
        mask = np.zeros((6, 8), np.uint8)
        mask[row] = value
        folder = root / "ground_truth" / f"{place}_anomalies" / "000"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(folder / f"{len(list(folder.iterdir())):03}.png")
    (root / "defects_config.json").write_text(json.dumps(CONFIG))
    (root / "license.txt").write_text("CC BY-NC-SA 4.0")
    return root


def test_a_class(pushpins, publish):
    data = open_dataset(pushpins)
    assert data == open_dataset(f"mvtec_loco:{pushpins}") == open_dataset(pushpins.parent)
    assert (data.name, len(data.train), data.remarks) == ("MVTec LOCO AD pushpins", 2, ())
    assert [sample.type for sample in data.test] == ["good", "logical_anomalies", "structural_anomalies"]
    saturations = (255, Saturation(6300, False)), (254, Saturation(1.0, True))
    folder = pushpins / "ground_truth/logical_anomalies/000"
    assert data.test[1].mask_path == DefectMasks(folder, saturations)
    assert read_mask(data.test[1].mask_path).sum(axis=1).tolist() == [8, 0, 0, 8, 0, 0]
    assert [saturation for _, saturation in data.test[1].mask_path.read()] == [one for _, one in saturations]
    assert training_images(pushpins) == data.train
    publish("mvtec_loco", pushpins=NUMBERS)
    report = check_dataset(f"mvtec_loco:{pushpins}")
    assert report.is_whole, report
    assert report.classes[0].notes == ()


def test_what_is_missing_or_wrong_is_said(pushpins, publish, write):
    publish("mvtec_loco", pushpins=NUMBERS)
    write(pushpins / "ground_truth/logical_anomalies/001/000.png", 255)
    write(pushpins / "ground_truth/structural_anomalies/000/001.png", 7)
    write(pushpins / "validation/000.png")
    found = {problem.path: problem.reason for problem in check_dataset(f"mvtec_loco:{pushpins}").classes[0].problems}
    assert found == {
        str(pushpins / "ground_truth/logical_anomalies/001/000.png"): "is a mask without an image",
        str(pushpins / "ground_truth/structural_anomalies/000/001.png"): (
            "holds the value 7; defects_config.json has 254, 255"
        ),
        str(pushpins / "validation/000.png"): "belongs to neither training nor test images",
    }
    flat = write(pushpins / "ground_truth/logical_anomalies/001_mask.png", 255)
    write(pushpins / "test/logical_anomalies/001.png")
    (pushpins / "ground_truth/logical_anomalies/001/000.png").unlink()
    assert open_dataset(pushpins).remarks == (
        f"1 of 3 masks are files, and not folders: sPRO leaves them out; first {flat}",
    )
    (pushpins / "defects_config.json").unlink()
    assert "defects_config.json is missing" in open_dataset(pushpins).remarks[0]
    assert open_dataset(pushpins).test[1].mask_path.saturations == ()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "at its start"),
        ([{"pixel_value": 255}], "at 0.saturation_threshold"),
        ([CONFIG[0] | {"saturation_threshold": 0}], "at 0.saturation_threshold"),
        ([CONFIG[0], CONFIG[0]], "names the pixel value 255 more than once"),
    ],
)
def test_a_wrong_configuration_is_refused(pushpins, config, message):
    (pushpins / "defects_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(DatasetError, match=f"defects_config.json: .*{message}"):
        open_dataset(pushpins)


def test_published_numbers_add_up():
    published = LAYOUTS["mvtec_loco"].published
    assert set(published) == set(LAYOUTS["mvtec_loco"].classes)
    assert [sum(getattr(part, name) for part in published.values()) for name in ("good", "anomalous")] == [575, 993]
    assert all(part.test == part.good + part.anomalous for part in published.values())
