from __future__ import annotations

import pytest

from flawmap.datasets import check_dataset, open_dataset, training_images
from flawmap.errors import DatasetError
from flawmap.images import read_mask

SIZE = (24, 36)
TABLE = """TestVideoFile = {};
TestVideoFile{end+1}.gt_frame = [2:3];
% TestVideoFile{end+1}.gt_frame = [1:4];
TestVideoFile{end+1}.gt_frame = [1, 3:4];
"""
NUMBERS = {"train": 6, "test": 8, "train_groups": 2, "test_groups": 2}


@pytest.fixture
def ped(tmp_path, write):
    """UCSDped1: two clips to learn from; Test001 with masks (frames 2 and 3), Test002 by the .m file alone."""
    root = tmp_path / "UCSD_Anomaly_Dataset.v1p2" / "UCSDped1"
    for clip in ("Train001", "Train002"):
        for i in range(1, 4):
            write(root / "Train" / clip / f"{i:03}.tif", None, SIZE)
    for clip in ("Test001", "Test002"):
        for i in range(1, 5):
            write(root / "Test" / clip / f"{i:03}.tif", None, SIZE)
    for i in range(1, 5):
        write(root / "Test" / "Test001_gt" / f"{i:03}.bmp", 255 if i in (2, 3) else 0, SIZE)
    (root / "Test" / "UCSDped1.m").write_text(TABLE)
    (root / "Test" / "Test001" / "._001.tif").write_bytes(b"resource fork")
    (root / "Test" / ".DS_Store").write_bytes(b"x")
    return root


def test_clips_are_labelled_by_masks_or_by_the_table(ped):
    data = open_dataset(ped)
    assert data == open_dataset(f"ucsd:{ped}") == open_dataset(ped.parent)
    assert (data.name, len(data.train), data.train_groups) == ("UCSDped1", 6, ("Train001",) * 3 + ("Train002",) * 3)
    assert [s.is_anomalous for s in data.test] == [False, True, True, False, True, False, True, True]
    assert [s.group for s in data.test] == ["Test001"] * 4 + ["Test002"] * 4
    assert [s.mask_path is not None for s in data.test] == [False, True, True] + [False] * 5
    assert read_mask(data.test[1].mask_path).all()
    assert training_images(ped) == data.train


def test_a_whole_tree_has_no_problems(ped, publish):
    publish("ucsd", UCSDped1=NUMBERS)
    report = check_dataset(f"ucsd:{ped}")
    assert report.is_whole, report
    first, second = (note.reason for note in report.classes[0].notes)
    assert first == "3 of 5 anomalous images have no mask"
    assert second.startswith("marks more than 50% of its image; if it is inverted")
    assert second.endswith("; the same of 1 more")


def test_broken_trees_are_told_file_by_file(ped, publish, write):
    publish("ucsd", UCSDped1=NUMBERS | {"train": 7})
    write(ped / "Test/Test001_gt/002.bmp", 255, (12, 36))
    (ped / "Train/Train002/003.tif").write_bytes(b"II*\0")
    write(ped / "Test/Test009_gt/001.bmp", 255, SIZE)
    for i in range(1, 4):
        write(ped / f"Train/Train001/{i:03}.tif", 10 * i, (16, 36))
    found = {problem.path: problem.reason for problem in check_dataset(f"ucsd:{ped}").classes[0].problems}
    assert found[str(ped)] == "6 training images, published are 7"
    assert "is 12 x 36, its image" in found[str(ped / "Test/Test001_gt/002.bmp")]
    assert str(ped / "Train/Train002/003.tif") in found
    assert found[str(ped / "Train/Train001/001.tif")] == "is 16 x 36, other clips are 24 x 36"
    assert found[str(ped / "Test/Test009_gt/001.bmp")] == "is a mask without an image"


def test_a_clip_with_other_masks_than_frames_is_refused(ped):
    (ped / "Test/Test001_gt/004.bmp").unlink()
    with pytest.raises(DatasetError, match=r"Test001_gt: holds 3 masks, but .*Test001 has 4 frames"):
        open_dataset(ped)


def test_a_clip_without_masks_and_table_is_refused(ped):
    (ped / "Test" / "UCSDped1.m").unlink()
    with pytest.raises(DatasetError, match=r"Test002: has no masks .* its frames have no labels"):
        open_dataset(ped)


@pytest.mark.parametrize("listed", ["1:1000000000", "3:9999999999999999999999", "3:2", "5", "0:2"])
def test_listed_frames_that_a_clip_does_not_have_are_refused(ped, listed):
    (ped / "Test" / "UCSDped1.m").write_text(TABLE.replace("3:4", listed))
    with pytest.raises(DatasetError, match=r"Test002: has 4 frames, but the \.m file beside it lists \d+:\d+"):
        open_dataset(ped)


def test_folders_in_another_case_are_named(ped):
    (ped / "Test").rename(ped / "test")
    with pytest.raises(DatasetError, match=r"expected a folder Test .*, found test; rename it, case matters"):
        open_dataset(f"ucsd:{ped}")
