from __future__ import annotations

import numpy as np
import pytest

from flawmap.datasets import check_dataset, open_dataset, training_images
from flawmap.errors import DatasetError, ImageError
from flawmap.images import Preprocessing, VideoFrame, read_image, read_mask, stream
from videos import cut_short, damage, number, write_video

SIZE = (48, 64)
NUMBERS = {"train": 18, "test": 14, "train_groups": 3, "test_groups": 3}


@pytest.fixture
def campus(tmp_path, write):
    """Two scenes: 01 has two videos and two test clips, 02 one of each; frames 2 and 3 of each clip are anomalous."""
    root = tmp_path / "shanghaitech"
    for name, n_frames in (("01_001", 8), ("01_002", 6), ("02_001", 4)):
        write_video(root / "training" / "videos" / f"{name}.avi", n_frames, SIZE)
    for name, n_frames in (("01_0014", 5), ("01_0015", 5), ("02_0128", 4)):
        for i in range(n_frames):
            write(root / "testing" / "frames" / name / f"{i:03}.jpg", 20 * i, SIZE)
        pixels = np.zeros((n_frames, *SIZE), bool)
        pixels[2:4, 10:20, 30:40] = True
        for folder, content in (
            ("test_frame_mask", pixels.any(axis=(1, 2)).astype(np.int8)),
            ("test_pixel_mask", pixels),
        ):
            path = root / "testing" / folder / f"{name}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, content)
    return root


def problems(report):
    return [(problem.path, problem.reason) for part in (*report.classes, report) for problem in part.problems]


def test_a_scene_gives_video_frames_to_learn_from_and_labelled_frames(campus):
    data = open_dataset(f"stc:{campus}/01")
    assert data == open_dataset(campus / "01") == open_dataset(f"{campus}/01")
    assert data.name == "ShanghaiTech Campus 01"
    assert data.train[0] == VideoFrame(campus / "training/videos/01_001.avi", 0)
    assert data.train_groups == ("01_001",) * 8 + ("01_002",) * 6
    assert [sample.group for sample in data.test] == ["01_0014"] * 5 + ["01_0015"] * 5
    assert [sample.is_anomalous for sample in data.test] == [False, False, True, True, False] * 2
    assert {sample.type for sample in data.test} == {"good", "anomalous"}
    mask = read_mask(data.test[7].mask_path)
    assert (mask.shape, mask.sum(), bool(mask[10, 30])) == (SIZE, 100, True)
    assert read_image(data.test[0].path).shape == (*SIZE, 3)
    assert [len(open_dataset(f"stc:{campus}/02").train), len(open_dataset(f"stc:{campus}/02").test)] == [4, 4]


def test_the_frames_to_learn_from_stream_in_order_and_by_a_stride(campus):
    data = open_dataset(f"stc:{campus}/01")
    assert training_images(campus / "01") == data.train
    seen = [number(image.pixels) for image in stream(data.train, Preprocessing.of(16))]
    assert seen == [*range(8), *range(6)]
    third = data.every(3)
    assert [number(image.pixels) for image in stream(third.train, Preprocessing.of(16))] == [0, 3, 6, 0, 3]
    assert third.train_groups == ("01_001",) * 3 + ("01_002",) * 2
    assert [sample.path.name for sample in third.test] == ["000.jpg", "003.jpg"] * 2


def test_a_model_is_for_one_scene(campus):
    for use in (open_dataset, training_images):
        with pytest.raises(DatasetError, match=r"several classes \(01, 02\), a model is for one; .*stc:.*/01"):
            use(campus)
    with pytest.raises(DatasetError, match="no scene 07; found 01, 02"):
        open_dataset(f"stc:{campus}/07")


def test_a_scene_without_test_clips_can_be_learnt_and_is_whole(campus, publish):
    write_video(campus / "training/videos/13_001.avi", 2, SIZE)
    assert [len(open_dataset(f"stc:{campus}/13").train), open_dataset(f"stc:{campus}/13").test] == [2, ()]
    publish("stc", whole=NUMBERS | {"train_groups": 4})
    report = check_dataset(f"stc:{campus}")
    assert report.is_whole, report
    assert [note.reason for note in report.classes[2].notes] == ["has no test images"]


def test_a_whole_tree_has_no_problems(campus, publish):
    publish("stc", whole=NUMBERS)
    (campus / "training" / "videos" / "Thumbs.db").write_bytes(b"x")
    (campus / "testing" / "frames" / "01_0014" / "._000.jpg").write_bytes(b"x")
    report = check_dataset(f"stc:{campus}")
    assert report.is_whole
    assert problems(report) == []
    assert [part.name for part in report.classes] == ["01", "02"]
    assert [part.found.train for part in report.classes] == [14, 4]


def test_missing_labels_are_found_in_the_masks_and_missing_masks_are_problems(campus, publish):
    publish("stc", whole=NUMBERS)
    (campus / "testing/test_frame_mask/01_0014.npy").unlink()
    assert [s.is_anomalous for s in open_dataset(campus / "01").test[:5]] == [False, False, True, True, False]
    (campus / "testing/test_pixel_mask/02_0128.npy").unlink()
    data = open_dataset(campus / "02")
    assert [sample.mask_path for sample in data.test] == [None] * 4
    found = problems(check_dataset(f"stc:{campus}"))
    assert found == [
        (str(campus / f"testing/frames/02_0128/{i:03}.jpg"), "is anomalous, but has no mask") for i in (2, 3)
    ]
    (campus / "testing/test_frame_mask/02_0128.npy").unlink()
    with pytest.raises(DatasetError, match=r"02_0128\.npy: no such file; the frames of clip 02_0128 have no labels"):
        open_dataset(campus / "02")
    assert str(campus / "testing/test_frame_mask/02_0128.npy") in [
        path for path, _ in problems(check_dataset(f"stc:{campus}"))
    ]


def test_every_broken_file_is_named(campus, publish, write):
    publish("stc", whole=NUMBERS)
    frames, masks = campus / "testing/frames", campus / "testing/test_pixel_mask"
    (frames / "01_0014/001.jpg").write_bytes(b"no image")
    for i in range(5):
        write(frames / f"01_0015/{i:03}.jpg", 0, (32, 64))
    cut_short(campus / "training/videos/01_002.avi")
    np.save(masks / "01_0099.npy", np.zeros((1, 2, 2)))
    write(frames / "01_0099.png")
    np.save(masks / "02_0128.npy", np.zeros((9, *SIZE)))
    (campus / "training/videos/02_001.avi").write_bytes(b"no video" * 99)
    found = dict(problems(check_dataset(f"stc:{campus}")))
    assert "not an image" in found[str(frames / "01_0014/001.jpg")]
    assert found[str(frames / "01_0015/000.jpg")] == "is 32 x 64, other clips are 48 x 64"
    assert "is 48 x 64, its image" in found[f"{masks / '01_0015.npy'}#2"]
    assert "cannot be decoded" in found[f"{campus / 'training/videos/01_002.avi'}#5"]
    assert found[str(masks / "01_0099.npy")] == "is a mask without an image"
    assert found[str(frames / "01_0099.png")] == "belongs to neither training nor test images"
    assert "expected masks of the clip's 4 frames" in found[str(masks / "02_0128.npy")]
    assert "not a video" in found[str(campus / "training/videos/02_001.avi")]
    assert found[str(campus)] == "2 training clips, published are 3"


def test_one_unreadable_frame_of_a_video_is_named(campus, publish):
    publish("stc", whole=NUMBERS)
    damage(campus / "training/videos/01_001.avi", 3)
    [(path, reason)] = problems(check_dataset(f"stc:{campus}"))
    assert path == f"{campus / 'training/videos/01_001.avi'}#3"
    assert "this frame cannot be decoded" in reason


def test_labels_of_another_number_of_frames_are_refused(campus):
    np.save(campus / "testing/test_frame_mask/01_0014.npy", np.zeros(4))
    with pytest.raises(DatasetError, match=r"01_0014\.npy: labels 4 frames, but .*01_0014 holds 5"):
        open_dataset(campus / "01")


def test_labels_that_the_masks_contradict_are_problems(campus, publish):
    publish("stc", whole=NUMBERS)
    np.save(campus / "testing/test_frame_mask/01_0015.npy", np.array([0, 0, 0, 1, 1]))
    masks = campus / "testing/test_pixel_mask/01_0015.npy"
    report = check_dataset(f"stc:{campus}")
    [(path, reason)] = problems(report)
    assert path == str(masks)
    assert reason.startswith("marks 1 frames (from 0: 2) that ")
    assert (str(masks), "marks nothing, in 1 image labelled anomalous") in [
        (note.path, note.reason) for note in report.classes[0].notes
    ]


def test_nan_is_neither_normal_nor_anomalous(campus, publish):
    publish("stc", whole=NUMBERS)
    labels, masks = campus / "testing/test_frame_mask/01_0014.npy", campus / "testing/test_pixel_mask/02_0128.npy"
    np.save(labels, np.array([0, 0, 1, np.nan, 0]))
    np.save(masks, np.full((4, *SIZE), np.nan))
    found = dict(problems(check_dataset(f"stc:{campus}")))
    assert {str(labels), f"{masks}#0", f"{masks}#2", f"{masks}#3"} <= set(found)
    assert all("holds NaN" in found[str(path)] for path in (labels, f"{masks}#2"))
    with pytest.raises(DatasetError, match=r"01_0014\.npy: holds NaN"):
        open_dataset(campus / "01")
    with pytest.raises(ImageError, match=r"02_0128\.npy#2: holds NaN"):
        read_mask(open_dataset(campus / "02").test[2].mask_path)


def test_a_root_named_one_folder_off(campus):
    for path in (campus.parent, campus.parent / "01", campus / "training/videos", campus / "testing/frames/01_0014"):
        with pytest.raises(DatasetError, match=rf"expected ROOT, or a scene ROOT/01 .*; that is {campus}$"):
            open_dataset(f"stc:{path}")


def test_arrays_of_objects_are_never_unpickled(campus):
    np.save(campus / "testing/test_frame_mask/01_0014.npy", np.array([{}] * 5, dtype=object), allow_pickle=True)
    with pytest.raises(DatasetError, match=r"01_0014\.npy: is no array of numbers"):
        open_dataset(campus / "01")
