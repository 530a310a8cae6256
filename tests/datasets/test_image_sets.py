"""VisA, BTAD, Magnetic Tile Defects, ELPV and MVTec AD: small trees in the published layouts."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from flawmap.datasets import LAYOUTS, check_dataset, open_dataset, training_images
from flawmap.errors import DatasetError
from flawmap.images import ClassMask, read_mask


def reasons(report):
    return {problem.path: problem.reason for part in (*report.classes, report) for problem in part.problems}


@pytest.fixture
def visa(tmp_path, write):
    root = tmp_path / "VisA"
    rows = ["object,split,label,image,mask"]
    for name in ("candle", "pcb1"):
        images = root / name / "Data" / "Images"
        for i in range(4):
            write(images / "Normal" / f"{i:04}.JPG")
            split = "train" if i < 3 else "test"
            rows.append(f"{name},{split},normal,{name}/Data/Images/Normal/{i:04}.JPG,")
        write(images / "Anomaly" / "000.JPG")
        write(root / name / "Data" / "Masks" / "Anomaly" / "000.png", 2)
        rows.append(f"{name},test,anomaly,{name}/Data/Images/Anomaly/000.JPG,{name}/Data/Masks/Anomaly/000.png")
        (root / name / "image_anno.csv").write_text("image,label,mask\n")
    (root / "split_csv").mkdir()
    (root / "split_csv" / "1cls.csv").write_text("\n".join(rows))
    return root


def test_visa_as_published(visa, publish):
    data = open_dataset(visa / "candle")
    assert data == open_dataset(f"visa:{visa}/candle")
    assert (data.name, len(data.train)) == ("VisA candle", 3)
    assert [sample.type for sample in data.test] == ["good", "anomaly"]
    assert read_mask(data.test[1].mask_path).all()  # 2 is the number of a kind of defect
    assert training_images(visa / "candle") == data.train
    with pytest.raises(DatasetError, match=r"several classes \(candle, pcb1\)"):
        open_dataset(visa)
    numbers = {"train": 3, "test": 2, "good": 1, "anomalous": 1}
    publish("visa", candle=numbers, pcb1=numbers)
    report = check_dataset(f"visa:{visa}")
    assert report.is_whole, report
    assert "classes that are not here: capsules" in report.notes[0].reason


def test_visa_with_missing_files_and_another_table(visa, publish, write):
    publish("visa")
    (visa / "candle/Data/Images/Normal/0001.JPG").unlink()
    (visa / "candle/Data/Masks/Anomaly/000.png").unlink()
    write(visa / "candle/Data/Masks/Anomaly/007.png", 1)
    found = reasons(check_dataset(f"visa:{visa}/candle"))
    assert "names it in line 3" in found[str(visa / "candle/Data/Images/Normal/0001.JPG")]
    assert found[str(visa / "candle/Data/Images/Anomaly/000.JPG")] == "is anomaly, but has no mask"
    assert found[str(visa / "candle/Data/Masks/Anomaly/007.png")] == "is a mask without an image"
    with pytest.raises(DatasetError, match=r"0001\.JPG: no such file"):
        open_dataset(visa / "candle")
    (visa / "split_csv" / "1cls.csv").write_text("image,label\n")
    with pytest.raises(DatasetError, match="expected object,split,label,image,mask"):
        open_dataset(visa / "pcb1")
    (visa / "split_csv" / "1cls.csv").unlink()
    with pytest.raises(DatasetError, match=r"1cls\.csv: cannot be read"):
        open_dataset(visa / "pcb1")


def test_visa_with_doubtful_lines(visa):
    table = visa / "split_csv" / "1cls.csv"
    whole = table.read_text()
    table.write_text(whole.replace(",normal,", ",Normal,").replace(",test,", ",Test,"))
    assert [sample.type for sample in open_dataset(visa / "candle").test] == ["good", "anomaly"]
    image = "candle/Data/Images/Normal/0000.JPG"
    for line, message in {
        f"candle,test,anomaly,{image},": f"line 12: {image} is named a second time, first in line 2",
        "candle,test,,candle/image_anno.csv,": "line 12: expected a normal training image",
        "candle,test,normal,candle/image_anno.csv,candle/Data/Masks/Anomaly/000.png": "line 12: expected a normal",
    }.items():
        table.write_text(f"{whole}\n{line}")
        with pytest.raises(DatasetError, match=message):
            open_dataset(visa / "candle")


def test_visa_as_its_script_lays_it_out(tmp_path, write, publish):
    root = tmp_path / "VisA_pytorch"
    for name in ("candle", "pcb4"):
        for place in ("train/good/0000.JPG", "test/good/0001.JPG", "test/bad/000.JPG"):
            write(root / "1cls" / name / place)
        write(root / "1cls" / name / "ground_truth/bad/000.png", 255)
    numbers = {"train": 1, "test": 2, "good": 1, "anomalous": 1}
    publish("visa", candle=numbers, pcb4=numbers)
    for where in (root / "1cls" / "candle", f"visa:{root}/1cls/candle"):
        data = open_dataset(where)
        assert (data.name, len(data.train)) == ("VisA candle", 1)
        assert {sample.type: sample.mask_path for sample in data.test} == {
            "bad": ClassMask(root / "1cls/candle/ground_truth/bad/000.png"),
            "good": None,
        }
    assert check_dataset(f"visa:{root}").is_whole


@pytest.fixture
def btad(tmp_path, write):
    root = tmp_path / "BTech_Dataset_transformed"
    for name, suffix in (("01", "bmp"), ("02", "png")):
        for place in ("train/ok/0000", "train/ok/0001", "test/ok/0002", "test/ko/0000"):
            write(root / name / f"{place}.{suffix}")
        write(root / name / "ground_truth/ko/0000.png", 255)
    return root


def test_btad(btad, publish, write):
    data = open_dataset(btad / "01")
    assert (data.name, len(data.train)) == ("BTAD 01", 2)
    assert [sample.type for sample in data.test] == ["good", "ko"]
    assert data.test[1].mask_path == btad / "01/ground_truth/ko/0000.png"
    assert training_images(f"btad:{btad}/02") == open_dataset(btad / "02").train
    numbers = {"train": 2, "test": 2, "good": 1, "anomalous": 1}
    publish("btad", **{"01": numbers, "02": numbers})
    assert check_dataset(f"btad:{btad}").is_whole
    write(btad / "01/ground_truth/ko/0000.png", 255, (5, 5))
    (btad / "02/ground_truth/ko/0000.png").unlink()
    found = reasons(check_dataset(str(btad)))
    assert "is 5 x 5, its image" in found[str(btad / "01/ground_truth/ko/0000.png")]
    assert found[str(btad / "02/test/ko/0000.png")] == "is ko, but has no mask"
    shutil.rmtree(btad / "02/ground_truth")  # to learn and to score takes no masks
    assert [sample.mask_path for sample in open_dataset(btad / "02").test] == [None, None]
    (btad / "01/test/ko").rename(btad / "01/test/KO")
    with pytest.raises(DatasetError, match=r"expected a folder ko .*, found KO; rename it, case matters"):
        open_dataset(btad / "01")


@pytest.fixture
def tiles(tmp_path, write):
    root = tmp_path / "Magnetic-tile-defect-datasets"
    for i in range(10):
        write(root / "MT_Free" / "Imgs" / f"exp1_num_{i}.jpg", 100, (9 + i, 7))
        write(root / "MT_Free" / "Imgs" / f"exp1_num_{i}.png", 0, (9 + i, 7))
    for kind in ("Blowhole", "Crack"):
        write(root / f"MT_{kind}" / "Imgs" / "exp1_num_1.jpg", 100)
        write(root / f"MT_{kind}" / "Imgs" / "exp1_num_1.png", 255)
    return root


def test_magnetic_tiles(tiles, publish, write):
    data = open_dataset(tiles)
    assert data == open_dataset(f"mtd:{tiles}")
    assert len(data.train) == 8
    assert [sample.type for sample in data.test] == ["good", "good", "blowhole", "crack"]
    assert [sample.mask_path is not None for sample in data.test] == [False, False, True, True]
    assert not set(data.train) & {sample.path for sample in data.test}
    assert training_images(tiles) == data.train
    publish("mtd", whole={"train": 8, "test": 4})
    assert check_dataset(f"mtd:{tiles}").is_whole, check_dataset(f"mtd:{tiles}")
    write(tiles / "MT_Crack/Imgs/lone.png", 255)
    assert reasons(check_dataset(str(tiles))) == {str(tiles / "MT_Crack/Imgs/lone.png"): "is a mask without an image"}
    for path in (tiles / "MT_Free" / "Imgs").glob("*.jpg"):
        path.unlink()
    with pytest.raises(DatasetError, match=r"MT_Free.*no \.jpg images"):
        open_dataset(tiles)


def test_magnetic_tiles_named_one_folder_off(tiles):
    for path in (tiles.parent, tiles / "MT_Free", tiles / "MT_Crack" / "Imgs"):
        with pytest.raises(DatasetError, match=rf"expected the folder that holds MT_Free/Imgs .*; that is {tiles}$"):
            open_dataset(f"mtd:{path}")


def test_elpv_from_a_folder(tmp_path, write, publish):
    lines = []
    for i in range(8):
        write(tmp_path / "images" / f"cell{i:04}.png")
        lines.append(
            f"images/cell{i:04}.png {(0.0, 0.0, 0.3333333333333333, 1.0)[i % 4]} {'mono' if i < 4 else 'poly'}"
        )
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    assert [len(open_dataset(f"elpv:{tmp_path}").train), len(open_dataset(tmp_path).test)] == [3, 3]
    assert [len(open_dataset(f"elpv:{tmp_path}/mono").train), len(open_dataset(tmp_path / "poly").test)] == [2, 1]
    publish("elpv")
    report = check_dataset(f"elpv:{tmp_path}")
    assert [part.name for part in report.classes] == ["mono", "poly"]
    assert report.is_whole


@pytest.fixture
def parts(tmp_path, write):
    root = tmp_path / "mvtec"
    for name in ("bolt", "nut"):
        for place in ("train/good/000.png", "test/good/000.png", "test/bent/000.png"):
            write(root / name / place)
        write(root / name / "ground_truth/bent/000_mask.png", 255)
        (root / name / "license.txt").write_text("CC BY-NC-SA 4.0")
    return root


def test_misspelt_and_broken_classes_are_problems(parts, write):
    (parts / "bolt").rename(parts / "Screws")
    (parts / "nut").rename(parts / "nut2")
    write(parts / "metalnut/train/God/000.png")
    write(parts / "tile/train/Good/000.png")
    write(parts / "leftover/000.png")
    (parts / "empty").mkdir()
    report = check_dataset(f"mvtec_ad:{parts}", decode=False)
    found = {problem.path: problem.reason for problem in report.problems}
    assert found == {
        str(parts / "Screws"): "is no class of MVTec AD; if it is screw, rename it",
        str(parts / "metalnut"): "is no class of MVTec AD; if it is metal_nut, rename it",
    }
    assert [part.name for part in report.classes] == ["Screws", "nut2", "tile"]
    assert "expected test/good" in report.classes[2].problems[0].reason
    assert [note.path for note in report.notes] == [str(parts), str(parts / "leftover")]


def test_mvtec_ad_as_a_whole(parts, write):
    assert len(open_dataset(f"mvtec_ad:{parts}/bolt").train) == 1
    assert training_images(f"mvtec_ad:{parts}/bolt") == parts / "bolt" / "train" / "good"
    for use in (open_dataset, training_images):
        with pytest.raises(DatasetError, match=r"several classes \(bolt, nut\)"):
            use(parts)
    assert check_dataset(f"mvtec_ad:{parts}").is_whole
    (parts / "bolt/ground_truth/bent/000_mask.png").unlink()
    write(parts / "bolt/ground_truth/bent/009_mask.png", 255)
    write(parts / "bolt/train/bent/000.png")
    (parts / "nut/test/good/000.png").write_bytes(b"")
    write(parts / "nut/ground_truth/bent/000_mask.png", 0)
    (parts / "nut/model.bin").write_bytes(b"x")
    (parts / "nut/Thumbs.db").write_bytes(b"x")
    (parts / "nut/test/.hidden.png").write_bytes(b"x")
    report = check_dataset(f"mvtec_ad:{parts}")
    assert reasons(report) == {
        str(parts / "bolt/test/bent/000.png"): "is bent, but has no mask",
        str(parts / "bolt/ground_truth/bent/009_mask.png"): "is a mask without an image",
        str(parts / "bolt/train/bent/000.png"): "belongs to neither training nor test images",
        str(parts / "nut/test/good/000.png"): "is empty; copy or record it again",
    }
    assert [note.reason for note in report.classes[1].notes] == [
        "marks nothing, in 1 image labelled anomalous",
        "is neither an image nor a mask",
    ]
    by_names = check_dataset(f"mvtec_ad:{parts}", decode=False)
    assert str(parts / "nut/test/good/000.png") not in reasons(by_names)
    assert len(reasons(by_names)) == 3


def test_a_root_of_one_class_is_that_class(parts):
    parts.joinpath("nut").rename(parts.parent / "nut")
    assert open_dataset(parts) == open_dataset(parts / "bolt")
    assert training_images(parts) == parts / "bolt" / "train" / "good"


def test_empty_classes_are_problems_and_wrong_case_is_named(parts):
    (parts / "nut/train/good/000.png").unlink()
    assert reasons(check_dataset(f"mvtec_ad:{parts}/nut")) == {str(parts / "nut"): "has no training images"}
    (parts / "bolt" / "test").rename(parts / "bolt" / "Test")
    with pytest.raises(DatasetError, match="rename Test to test, case matters"):
        open_dataset(parts / "bolt")


def test_the_real_screw_is_whole(screw):
    report = check_dataset(f"mvtec_ad:{screw}", decode=False)
    assert report.is_whole, report
    assert report.classes[0].found == report.classes[0].found.__class__(320, 160, 41, 119, 0, 0)


def test_published_numbers_add_up():
    def total(name, figure):
        return sum(getattr(counts, figure) for counts in LAYOUTS[name].published.values())

    assert [total("mvtec_ad", figure) for figure in ("train", "good", "anomalous", "test")] == [3629, 467, 1258, 1725]
    assert [total("visa", figure) for figure in ("train", "good", "anomalous")] == [8659, 962, 1200]
    assert [total("btad", figure) for figure in ("train", "good", "anomalous")] == [1799, 451, 290]
    assert LAYOUTS["mtd"].published[""].train + LAYOUTS["mtd"].published[""].test == 1344
    assert [len(LAYOUTS[name].classes) for name in ("mvtec_ad", "visa", "btad", "stc", "ucsd")] == [15, 12, 3, 13, 2]


def test_a_mask_of_two_values_is_read_as_classes(tmp_path):
    Image.fromarray(np.array([[0, 3]], np.uint8)).save(tmp_path / "a.png")
    assert read_mask(ClassMask(tmp_path / "a.png")).tolist() == [[False, True]]
