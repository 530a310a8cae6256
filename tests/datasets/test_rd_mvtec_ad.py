from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from flawmap.datasets import open_dataset, rd_images, write_rd_mvtec_ad
from flawmap.errors import DatasetError, ImageError
from flawmap.images import read_image, read_mask


@pytest.fixture
def parts(tmp_path):
    """Two classes whose images are as bright as their masks, so that both can be compared after the same move."""
    random = np.random.default_rng(0)
    for name in ("bolt", "nut"):
        for place in ("train/good/000", "train/good/001", "test/good/000", "test/bent/000", "test/bent/001"):
            path = tmp_path / "mvtec" / name / f"{place}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            mask = np.zeros((300, 280), np.uint8)
            if "bent" in place:
                top, left = random.integers(60, 140, 2)
                mask[top : top + 60, left : left + 50] = 255
                truth = tmp_path / "mvtec" / name / "ground_truth" / "bent" / f"{path.stem}_mask.png"
                truth.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(truth)
            Image.fromarray(np.maximum(mask, 100)).save(path)
    return tmp_path / "mvtec"


def test_every_image_and_its_mask_move_alike(parts):
    images = {(image.place.as_posix(), image.type): image for image in rd_images(parts / "bolt", seed=3)}
    assert next(iter(images)) == ("train/good/000.png", "good")
    assert len(images) == 5
    for (place, kind), image in images.items():
        assert (image.pixels.shape, image.pixels.dtype) == ((224, 224, 3), np.uint8), place
        assert (image.mask is not None) == (kind == "bent")
    for number in ("000", "001"):
        image = images[f"test/bent/{number}.png", "bent"]
        assert image.mask.any()
        assert (image.mask != (image.pixels[..., 0] > 177)).mean() < 0.005


def test_the_move_is_a_rotation_within_ten_degrees_and_a_window(tmp_path):
    y, x = np.mgrid[:256, :256]
    original = np.stack([x, y, np.full_like(x, 255)], axis=-1).astype(np.uint8)
    for i in range(20):
        path = tmp_path / "ramp" / "train" / "good" / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(original).save(path)
    (tmp_path / "ramp" / "test" / "good").mkdir(parents=True)
    Image.fromarray(original).save(tmp_path / "ramp" / "test" / "good" / "000.png")
    angles, centres = [], []
    for image in rd_images(tmp_path / "ramp", seed=0):
        middle = image.pixels[62:162, 62:162].astype(float)  # never reached by the black corners
        assert (middle[..., 2] == 255).all()
        rows, columns = np.gradient(middle[..., 0])
        angles.append(np.degrees(np.arctan2(rows.mean(), columns.mean())))
        assert np.hypot(rows.mean(), columns.mean()) == pytest.approx(1, abs=0.01)
        centres.append(middle[49:51, 49:51, :2].mean(axis=(0, 1)))
    assert max(np.abs(angles)) < 10.1
    assert max(angles) > 3
    assert min(angles) < -3
    offsets = np.array(centres) - 127.5
    assert np.abs(offsets).max() < 24  # 16 from the window, rotated
    assert np.ptp(offsets, axis=0).min() > 15


def test_a_seed_fixes_all_wherever_the_data_lies(parts, tmp_path):
    shutil.copytree(parts / "bolt", tmp_path / "elsewhere" / "bolt")
    first, again, moved, other = (
        [image.pixels for image in rd_images(folder, seed=seed)]
        for folder, seed in (
            (parts / "bolt", 1),
            (parts / "bolt", 1),
            (tmp_path / "elsewhere" / "bolt", 1),
            (parts / "bolt", 2),
        )
    )
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, moved)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first[0], first[1])  # the same photo under two names


def test_the_written_tree_is_mvtec_ad_again(parts, tmp_path):
    counts = write_rd_mvtec_ad(parts, tmp_path / "rd", seed=1)
    assert counts == {"bolt": 5, "nut": 5}
    data = open_dataset(tmp_path / "rd" / "bolt")
    assert (len(data.train), len(data.test)) == (2, 3)
    for image in rd_images(parts / "bolt", seed=1):
        np.testing.assert_array_equal(read_image(tmp_path / "rd" / "bolt" / image.place), image.pixels)
    masks = [sample.mask_path for sample in data.test if sample.is_anomalous]
    assert all(mask is not None and read_mask(mask).shape == (224, 224) for mask in masks)
    assert write_rd_mvtec_ad(parts / "nut", tmp_path / "one", seed=1) == {"nut": 5}


def test_images_that_would_be_written_to_one_file_are_refused(parts, tmp_path):
    twin = parts / "bolt/train/good/001.bmp"
    Image.new("RGB", (300, 280)).save(twin)
    with pytest.raises(DatasetError, match=r"001\.png: would be written to train/good/001\.png, as would .*001\.bmp"):
        write_rd_mvtec_ad(parts, tmp_path / "out", seed=0)
    twin.unlink()
    (parts / "bolt/test/bent/more").mkdir()
    (parts / "bolt/test/bent/001.png").rename(parts / "bolt/test/bent/more/000.png")
    (parts / "bolt/ground_truth/bent/more").mkdir()
    (parts / "bolt/ground_truth/bent/001_mask.png").rename(parts / "bolt/ground_truth/bent/more/000_mask.png")
    with pytest.raises(DatasetError, match=r"would be written to ground_truth/bent/000_mask\.png"):
        write_rd_mvtec_ad(parts, tmp_path / "out", seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["mvtec"]


def test_a_mask_of_another_size_is_refused(parts):
    Image.new("L", (30, 28)).save(parts / "bolt/ground_truth/bent/001_mask.png")
    with pytest.raises(DatasetError, match=r"001_mask\.png: the mask is 28 x 30, but its image .* is 300 x 280"):
        list(rd_images(parts / "bolt", seed=0))


def test_nothing_is_overwritten_and_nothing_is_left_half_written(parts, tmp_path):
    with pytest.raises(DatasetError, match="not empty; name a new folder"):
        write_rd_mvtec_ad(parts, parts, seed=0)
    (parts / "nut/test/bent/001.png").write_bytes(b"no image")
    (tmp_path / "out").mkdir()
    with pytest.raises(ImageError, match=r"001\.png"):
        write_rd_mvtec_ad(parts, tmp_path / "out", seed=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mvtec", "out"]
    assert not any((tmp_path / "out").iterdir())
