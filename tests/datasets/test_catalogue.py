from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from flawmap.datasets import open_dataset, training_images
from flawmap.datasets.elpv import read_elpv
from flawmap.errors import DatasetError, MissingDependencyError


@pytest.fixture
def layout(tmp_path):
    root = tmp_path / "bolt"
    files = ["train/good/000.png", "train/good/001.png", "test/good/000.png", "test/bent/000.png", "test/bent/001.png"]
    files += ["test/rusty/000.png", "ground_truth/bent/000_mask.png", "ground_truth/rusty/000.png"]
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(path)
    return root


def test_mvtec_ad_layout(layout):
    data = open_dataset(layout)
    assert data.name == "bolt"
    assert [path.name for path in data.train] == ["000.png", "001.png"]
    found = {(s.type, s.path.name): s.mask_path.name if s.mask_path else None for s in data.test}
    assert found == {
        ("bent", "000.png"): "000_mask.png",
        ("bent", "001.png"): None,
        ("good", "000.png"): None,
        ("rusty", "000.png"): "000.png",
    }
    assert [s.is_anomalous for s in data.test] == [s.type != "good" for s in data.test]


def test_the_real_screw(screw):
    data = open_dataset(screw)
    assert len(data.train) == 320
    assert len(data.test) == 160
    assert sum(sample.mask_path is not None for sample in data.test) == 119
    assert {sample.type for sample in data.test if sample.mask_path is None} == {"good"}


def test_learning_takes_only_the_good_images_of_a_data_set(layout):
    assert training_images(layout) == layout / "train" / "good"
    assert training_images(layout / "train" / "good") == layout / "train" / "good"


def test_a_folder_of_types_is_a_data_set_without_masks(layout):
    data = open_dataset(layout / "test")
    assert {sample.type for sample in data.test} == {"good", "bent", "rusty"}
    assert all(sample.mask_path is None for sample in data.test)
    assert data.train == ()


def test_other_folders_are_refused_with_what_was_expected(layout, tmp_path):
    with pytest.raises(DatasetError, match="no such folder"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="expected test/good and test/<type>"):
        open_dataset(layout / "train" / "good")
    for path in (layout / "test").iterdir():
        shutil.rmtree(path)
    with pytest.raises(DatasetError, match="empty"):
        open_dataset(layout)


def test_elpv():
    pytest.importorskip("elpv_dataset")
    mono, poly, both = open_dataset("elpv:mono"), open_dataset("elpv:poly"), open_dataset("elpv")
    for data in (mono, poly, both):
        n_good = sum(not sample.is_anomalous for sample in data.test)
        assert len(data.train) == round(0.8 * (len(data.train) + n_good))
        assert not set(data.train) & {sample.path for sample in data.test}
    assert len(mono.train) + len(poly.train) == pytest.approx(len(both.train), abs=1)
    assert sum(sample.is_anomalous for sample in mono.test) == 313
    assert read_elpv("mono", seed=0) == read_elpv("mono", seed=0)
    assert read_elpv("mono", seed=0).train != read_elpv("mono", seed=1).train


def test_without_its_package_elpv_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'flawmap\[demo\]'"):
        read_elpv("mono")


def test_learning_finds_the_good_images_below_the_home_folder(layout, monkeypatch):
    monkeypatch.setenv("HOME", str(layout.parent))
    assert training_images("~/bolt") == layout / "train" / "good"


def test_learning_takes_only_good_of_a_folder_of_types(layout):
    assert training_images(layout / "test") == layout / "test" / "good"


@pytest.mark.parametrize("part", ["test", "ground_truth"])
def test_learning_refuses_test_images_without_good_ones(tmp_path, part):
    (tmp_path / part).mkdir()
    with pytest.raises(DatasetError, match="expected train/good"):
        training_images(tmp_path)


def test_learning_hands_on_what_is_no_data_set(tmp_path):
    for where in (tmp_path, f"{tmp_path}/*.png", "missing.png", "x" * 5000):
        assert training_images(where) == where


def test_learning_takes_the_training_images_of_elpv():
    pytest.importorskip("elpv_dataset")
    assert training_images("elpv:poly") == open_dataset("elpv:poly").train


def test_a_type_folder_without_images_is_passed_over(layout):
    (layout / "test" / "scratched").mkdir()
    (layout / "test" / "scratched" / ".DS_Store").touch()
    assert {sample.type for sample in open_dataset(layout).test} == {"bent", "good", "rusty"}


def test_a_folder_named_as_a_packaged_data_set_comes_first(layout, monkeypatch):
    layout.rename(layout.parent / "elpv")
    monkeypatch.chdir(layout.parent)
    assert [path.name for path in open_dataset("elpv").train] == ["000.png", "001.png"]
