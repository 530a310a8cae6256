from __future__ import annotations

import pytest

from flawmap.datasets import check_dataset, mask_files, open_dataset, training_images
from flawmap.errors import DatasetError
from flawmap.images import DefectMasks, read_mask

IMAGES = ("train/good/000.png", "test/good/000.png", "test/bent/000.png", "test/bent/001.JPG", "test/rusty/002.png")


@pytest.fixture
def place(tmp_path, write):
    """Write the images of a data set, with masks elsewhere; gives its root."""

    def write_all(*masks, images=IMAGES):
        for name in images:
            write(tmp_path / "bolt" / name)
        for name in masks:
            write(tmp_path / "bolt" / name, 255)
        return tmp_path / "bolt"

    return write_all


def masks_of(root):
    data = open_dataset(root)
    return {
        f"{s.type}/{s.path.stem}": None if s.mask_path is None else s.mask_path.relative_to(root).as_posix()
        for s in data.test
        if s.is_anomalous
    }


@pytest.mark.parametrize(
    "masks",
    [
        ("ground_truth/bent/000_mask.png", "ground_truth/bent/001_mask.png", "ground_truth/rusty/002_mask.png"),
        ("Ground_Truth/BENT/000_mask.PNG", "Ground_Truth/BENT/001_Mask.png", "Ground_Truth/rusty/002_MASK.png"),
        ("masks/bent/000.bmp", "masks/bent/001.jpg", "masks/rusty/002.tif"),
        ("GT/bent/000_gt.png", "GT/bent/001-gt.png", "GT/rusty/002.mask.png"),
        ("masks/000_mask.png", "masks/001.png", "masks/002_gt.bmp"),
        ("masks/bent_000.png", "masks/bent-001.png", "masks/rusty_002_mask.png"),
        ("test/masks/bent/000.png", "test/masks/bent/001.png", "test/masks/002.png"),
        ("test/bent/000_mask.png", "test/bent/001_mask.png", "test/rusty/002_gt.png"),
    ],
)
def test_masks_are_found_in_any_usual_place(place, masks):
    root = place(*masks)
    assert masks_of(root) == dict(zip(("bent/000", "bent/001", "rusty/002"), masks, strict=True))
    data = open_dataset(root)
    assert len(data.test) == 4  # masks are no images
    assert data.remarks == ()
    assert check_dataset(f"mvtec_ad:{root}").is_whole


def test_the_masks_of_a_folder_of_types_are_no_type(place):
    root = place(
        "masks/bent/0.png", "masks/rusty/1.png", images=("good/0.png", "good/1.png", "bent/0.png", "rusty/1.png")
    )
    assert masks_of(root) == {"bent/0": "masks/bent/0.png", "rusty/1": "masks/rusty/1.png"}


def test_a_flat_folder_may_hold_masks_of_good_images(place):
    root = place(
        "masks/7_mask.png", "masks/0.png", "masks/9.png", images=("train/ok/1.png", "test/ok/7.png", "test/bent/0.png")
    )
    [part] = check_dataset(f"mvtec_ad:{root}").classes
    assert [(problem.path, problem.reason) for problem in part.problems] == [
        (str(root / "masks/9.png"), "is a mask without an image")
    ]
    assert (str(root / "masks/7_mask.png"), "marks something, but its image is good") in [
        (note.path, note.reason) for note in part.notes
    ]


def test_a_lossless_mask_of_the_images_own_case_comes_first(place):
    root = place("ground_truth/a.jpg", "ground_truth/a.bmp", "ground_truth/A.png", images=("good/0.png", "bent/a.png"))
    assert masks_of(root) == {"bent/a": "ground_truth/a.bmp"}


def test_a_folder_for_each_image_holds_a_mask_for_each_defect(place):
    root = place("ground_truth/bent/000/000.png", "ground_truth/bent/000/001.png", "masks/rusty/002.png")
    assert {s.path.name: s.mask_path for s in open_dataset(root).test if s.is_anomalous} == {
        "000.png": DefectMasks(root / "ground_truth/bent/000"),
        "001.JPG": None,
        "002.png": root / "masks/rusty/002.png",
    }
    assert read_mask(open_dataset(root).test[0].mask_path).all()


def test_a_name_that_images_of_two_types_share_finds_no_mask_in_a_flat_folder(place):
    images = ("good/0.png", "bent/0.png", "rusty/0.png", "rusty/1.png")
    root = place("masks/0.png", "masks/1.png", images=images)
    assert masks_of(root) == {"bent/0": None, "rusty/0": None, "rusty/1": "masks/1.png"}


def test_images_in_folders_of_a_type_have_the_masks_that_lie_alike(place):
    images = ("good/0.png", "bent/a/0.png", "bent/b/0.png", "bent/c/1.png")
    root = place("ground_truth/bent/a/0.png", "ground_truth/bent/0.png", "ground_truth/bent/1_mask.png", images=images)
    found = [s.mask_path for s in open_dataset(root).test if s.is_anomalous]
    assert found == [root / "ground_truth/bent/a/0.png", None, root / "ground_truth/bent/1_mask.png"]


def test_where_masks_were_looked_for_is_said_if_none_is_found(place):
    assert open_dataset(place()).remarks == (
        "none of 3 masks found; looked for ground_truth/TYPE/NAME_mask.png, ground_truth/NAME.png, "
        "masks/TYPE/NAME_mask.png, masks/NAME.png, NAME_mask.png beside the image",
    )
    root = place("Masks/other.png")
    [remark] = open_dataset(root).remarks
    assert "none of 3 masks found; looked for Masks/TYPE/NAME_mask.png, Masks/NAME.png" in remark
    assert remark in [note.reason for note in check_dataset(f"mvtec_ad:{root}").classes[0].notes]
    assert open_dataset(place("Masks/002.png")).remarks == ()


@pytest.mark.parametrize("good", ["ok", "OK", "Good", "normal"])
def test_good_images_have_usual_names(place, good):
    root = place(images=(f"train/{good}/0.png", f"test/{good}/0.png", "test/bent/0.png"))
    data = open_dataset(root)
    assert [sample.type for sample in sorted(data.test, key=lambda sample: sample.path.parent.name == good)] == [
        "bent",
        "good",
    ]
    assert len(data.train) == 1
    assert training_images(root) == root / "train" / good
    assert open_dataset(root.parent) == data


def test_images_without_a_type_are_said(place):
    root = place("ground_truth/bent/0.png", images=("test/good/0.png", "test/bent/0.png", "test/7.png", "test/.8.png"))
    assert open_dataset(root).remarks == (
        f"1 image left out: in {root / 'test'} itself, in no folder of a type: first 7.png",
    )
    (root / "test" / "rusty").mkdir()
    assert open_dataset(root).remarks[1:] == (f"folders in {root / 'test'} hold no images: rusty",)


def test_a_check_names_masks_of_two_images_and_equal_files(place):
    root = place(
        images=("train/good/0.png", "test/good/1.png", "test/bent/0.png", "test/rusty/0.png", "test/rusty/0.jpg")
    )
    for name in ("test/good/1.png", "test/bent/0.png"):
        (root / name).write_bytes((root / "train/good/0.png").read_bytes())
    place("ground_truth/rusty/0.png", "ground_truth/bent/0.png", images=())
    [part] = check_dataset(f"mvtec_ad:{root}").classes
    first = root / "train/good/0.png"
    assert [(problem.path, problem.reason) for problem in part.problems] == [
        (str(root / "test/bent/0.png"), f"is the same file as {first}, which is for training; this one is bent")
    ]
    reasons = {note.path: note.reason for note in part.notes}
    assert reasons[str(root / "test/good/1.png")] == (
        f"is the same file as {first}, which is for training; this one is good"
    )
    assert any("is the mask of two images" in note.reason for note in part.notes)


def test_tables_name_masks_in_any_case_or_by_their_folder(tmp_path, write):
    for name in ("a.png", "b.png", "c.png", "d.png", "e.png"):
        write(tmp_path / name)
    for name in ("masks/B_Mask.PNG", "masks/c_mask.bmp", "masks/d/000.png", "masks/e.png"):
        write(tmp_path / name, 255)
    table = tmp_path / "parts.csv"
    rows = [
        "a.png,False,train,",
        "b.png,True,test,masks/b_mask.png",
        "c.png,dent,test,masks",
        "d.png,dent,test,masks/d",
    ]
    table.write_text("\n".join(["path,label,split,mask", *rows, "e.png,Dent,test,masks/e.png"]))
    data = open_dataset(table)
    assert len(data.train) == 1
    assert [(sample.type, sample.mask_path) for sample in data.test] == [
        ("anomalous", tmp_path / "masks/B_Mask.PNG"),
        ("dent", tmp_path / "masks/c_mask.bmp"),
        ("dent", DefectMasks(tmp_path / "masks/d")),
        ("Dent", tmp_path / "masks/e.png"),
    ]
    assert data.remarks == ("the types 'dent' and 'Dent' differ in case alone, and count as two",)


def test_a_table_of_masks_in_folders_lists_each_folder_once(tmp_path, write, monkeypatch):
    names = [f"{i}.png" for i in range(12)]
    for name in names:
        write(tmp_path / "photos" / name)
        write(tmp_path / "masks" / name, 255)
    listed = []
    pictures = mask_files._pictures
    monkeypatch.setattr(mask_files, "_pictures", lambda folder: listed.append(folder.name) or pictures(folder))
    for column, folders in (("masks", ["masks"]), ("masks/{stem}.PNG", ["masks"])):
        rows = [f"photos/{name},bent,test,{column.format(stem=name.split('.')[0])}" for name in names]
        (tmp_path / "parts.csv").write_text("\n".join(["path,label,split,mask", *rows]))
        data = open_dataset(tmp_path / "parts.csv")
        assert [sample.mask_path for sample in data.test] == [tmp_path / "masks" / name for name in names]
        assert listed == folders
        listed.clear()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("b.png,dent,test,masks", "line 2: mask masks: a folder without a mask of the name of b.png"),
        ("b.png,NaN,test,", "line 2: no label, got 'NaN'; expected good"),
        ("b.png,?,test,", "line 2: no label, got"),
        ("b.png,dent,test,./b.png", "line 2: mask ./b.png is the image itself"),
    ],
)
def test_tables_with_doubtful_lines_are_refused(tmp_path, write, row, message):
    write(tmp_path / "b.png")
    write(tmp_path / "masks" / "c.png", 255)
    (tmp_path / "parts.csv").write_text(f"path,label,split,mask\n{row}")
    with pytest.raises(DatasetError) as caught:
        open_dataset(tmp_path / "parts.csv")
    assert message in str(caught.value)
