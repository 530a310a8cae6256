"""Files in data sets that are no images: they are judged if they are after all, and else named."""

from __future__ import annotations

import unicodedata

import pytest
from PIL import Image

from flawmap.datasets import check_dataset, open_dataset, training_images
from flawmap.errors import DatasetError


@pytest.fixture
def bolt(tmp_path, write):
    """A class in MVTec AD's layout."""
    root = tmp_path / "bolt"
    for name in ("train/good/0.png", "test/good/0.png", "test/bent/0.png"):
        write(root / name)
    write(root / "ground_truth/bent/0_mask.png", 255)
    return root


def names(data, root):
    return [path.relative_to(root).as_posix() for path in data.passed_over]


def test_images_of_other_endings_are_judged_and_others_named(bolt):
    assert open_dataset(bolt).passed_over == ()
    Image.new("L", (8, 6)).save(bolt / "test/bent/1.dat", "PNG")
    Image.new("L", (8, 6)).save(bolt / "train/good/1.jfif", "JPEG")
    for name in ("license.txt", "ground_truth/bent/notes.txt", "test/bent/2.heic", "train/good/2.cr2", "test/a.json"):
        (bolt / name).touch()
    (bolt / "test" / "good" / "Thumbs.db").touch()
    data = open_dataset(bolt)
    assert [path.name for path in data.train] == ["0.png", "1.jfif"]
    assert [sample.path.name for sample in data.test] == ["0.png", "1.dat", "0.png"]
    assert names(data, bolt) == ["test/a.json", "test/bent/2.heic", "train/good/2.cr2"]
    report = check_dataset(f"mvtec_ad:{bolt}")
    inverted = "marks more than 50% of its image; if it is inverted, paint defects white on black"
    cannot = "is in a format that cannot be read; convert it to PNG or TIFF"
    assert {note.path.removeprefix(f"{bolt}/"): note.reason for note in report.classes[0].notes} == {
        "ground_truth/bent/0_mask.png": inverted,
        "test/a.json": "is neither an image nor a mask",
        "test/bent/2.heic": cannot,
        "train/good/2.cr2": cannot,
    }


def test_a_linked_folder_of_images_is_entered(bolt, tmp_path, write):
    far = write(tmp_path / "far" / "9.png").parent
    (bolt / "test" / "good" / "more").symlink_to(far)
    assert [sample.path.name for sample in open_dataset(bolt).test] == ["0.png", "0.png", "9.png"]


def test_tables_and_arrays_of_other_layouts_are_no_images(tmp_path, write):
    for name in ("Train/Train001/001.tif", "Test/Test001/001.tif"):
        write(tmp_path / "ped" / name)
    (tmp_path / "ped/Test/UCSDped1.m").write_text("TestVideoFile{end+1}.gt_frame = [1:1];")
    assert open_dataset(f"ucsd:{tmp_path}/ped").passed_over == ()
    (tmp_path / "ped/Test/Test001/001.raw").touch()
    assert names(open_dataset(f"ucsd:{tmp_path}/ped"), tmp_path / "ped") == ["Test/Test001/001.raw"]


def test_pages_of_samples_and_masks_are_noted(bolt):
    pages = [Image.new("L", (8, 6))] * 2
    pages[0].paste(255, (0, 0, 3, 3))
    for name in ("test/bent/0.png", "ground_truth/bent/0_mask.png"):
        (bolt / name).unlink()
        pages[0].save((bolt / name).with_suffix(".tif"), save_all=True, append_images=pages[1:])
    (bolt / "ground_truth/bent/0_mask.tif").rename(bolt / "ground_truth/bent/0.tif")
    report = check_dataset(f"mvtec_ad:{bolt}")
    assert report.is_whole
    assert {note.path.removeprefix(f"{bolt}/"): note.reason for note in report.classes[0].notes} == {
        "test/bent/0.tif": "only the first of its 2 pages is judged",
        "ground_truth/bent/0.tif": "has 2 pages; the first is the mask",
    }


@pytest.mark.parametrize("use", [open_dataset, training_images, check_dataset])
@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_path_is_not_the_current_folder(bolt, monkeypatch, use, empty):
    monkeypatch.chdir(bolt)
    with pytest.raises(DatasetError, match="path of the images is empty"):
        use(empty)


def test_paths_that_were_meant(bolt, tmp_path):
    with pytest.raises(DatasetError, match=rf"no such folder; did you mean {bolt}\?"):
        open_dataset(f"mvtec_ad:{tmp_path}/BOLT")
    manifest = tmp_path / "table.csv"
    rows = {
        "C:\\photos\\bolt\\train\\good\\0.png": "no such file; did you mean .*/bolt/train/good/0.png",
        "bolt\\train\\good\\0.png": "no such file; did you mean .*/bolt/train/good/0.png",
        unicodedata.normalize("NFC", "bolt/é.png"): r"Unicode NFC or NFD",
        "bolt/no.png": "no such file; check the path",
    }
    (bolt / unicodedata.normalize("NFD", "é.png")).touch()
    for path, reason in rows.items():
        manifest.write_text(f"path,label,split\n{path},good,train\n", encoding="utf-8")
        with pytest.raises(DatasetError, match=rf"table\.csv: line 2: .*{reason}"):
            open_dataset(manifest)
