from __future__ import annotations

import pytest

from flawmap.datasets import check_dataset, open_dataset, training_images
from flawmap.errors import DatasetError


@pytest.fixture
def manifest(tmp_path, write):
    for name in ("a.png", "b.png", "c.png", "d.png", "masks/c.png"):
        write(tmp_path / "photos" / name)

    def save(*lines, header="path,label,mask,split,group", encoding="utf-8"):
        path = tmp_path / "parts" / "parts.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join([header, *lines]), encoding=encoding)
        return path

    return save


def test_a_manifest_names_images_labels_masks_splits_and_groups(manifest):
    path = manifest(
        "../photos/a.png,good,,train,line 1",
        " ../photos/b.png , OK,,test,",
        "",
        "../photos/c.png,scratch,../photos/masks/c.png,test,line 2",
        "../photos/d.png,1,,test,",
        encoding="utf-8-sig",
    )
    data = open_dataset(path)
    assert data == open_dataset(f"csv:{path}")
    assert data.name == "parts"
    assert [item.name for item in data.train] == ["a.png"]
    assert data.train_groups == ("line 1",)
    assert [(s.path.name, s.type, s.group) for s in data.test] == [
        ("b.png", "good", None),
        ("c.png", "scratch", "line 2"),
        ("d.png", "anomalous", None),
    ]
    assert data.test[1].mask_path == path.parent / "../photos/masks/c.png"
    assert training_images(path) == data.train
    assert check_dataset(f"csv:{path}").is_whole


def test_columns_may_be_left_out_and_stand_in_any_order(manifest):
    path = manifest("train,0,../photos/a.png", "test,normal,../photos/b.png", header="split,label,path")
    assert [len(open_dataset(path).train), len(open_dataset(path).test)] == [1, 1]
    assert open_dataset(path).train_groups == ()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("../photos/none.png,good,,train,", "line 3: .*none.png: no such file"),
        ("../photos/b.png,dent,../none.png,test,", "line 3: mask .*none.png: no such file"),
        ("../photos/b.png,good,,valid,", "line 3: split must be train or test, got 'valid'"),
        ("../photos/b.png,,,test,", "line 3: no label"),
        (",good,,test,", "line 3: no path"),
        ("../photos/a.png,good,,test,", "line 3: .*a.png is named a second time, first in line 2"),
        ("../parts/../photos/./a.png,good,,test,", "line 3: .*a.png is named a second time, first in line 2"),
        ("x" * 5000 + ".png,good,,test,", r"line 3: .*x\.\.\. \(\d+ characters\): cannot be opened"),
        ("../photos/b.png,dent," + "x" * 300 + ",test,", "line 3: mask .*cannot be opened"),
        ("../photos,good,,test,", "line 3: .*photos: is no file"),
        ("../photos/b.png,dent,,train,", "line 3: .*only good images"),
        ("../photos/b.png,good,../photos/masks/c.png,test,", "line 3: .*no mask"),
        ("../photos/b.png,good,,test,x,y", "line 3: more values than columns"),
    ],
)
def test_a_wrong_line_is_named_by_its_number(manifest, line, message):
    path = manifest("../photos/a.png,good,,train,", line)
    with pytest.raises(DatasetError, match=rf"parts\.csv: {message}"):
        open_dataset(path)


def test_a_check_names_all_wrong_lines(manifest):
    path = manifest(
        "../photos/a.png,good,,train,", "x.png,good,,test,", "../photos/b.png,good,,test,", "y.png,bad,,test,"
    )
    reasons = [problem.reason for problem in check_dataset(f"csv:{path}").classes[0].problems]
    assert [reason.partition(":")[0] for reason in reasons] == ["line 3", "line 5"]


def test_a_check_names_all_that_is_wrong_even_if_nothing_is_right(manifest):
    path = manifest("x.png,good,none.png,valid,", "a,b,c,d,e,f", '"cut short,good,,test,')
    [report] = check_dataset(f"csv:{path}").classes
    reasons = [problem.reason for problem in report.problems]
    assert [reason.partition(":")[0] for reason in reasons] == ["line 2"] * 3 + ["line 3", "line 4"]
    assert [part in reason for part, reason in zip(("x.png", "valid", "no mask", "more", "CSV"), reasons, strict=True)]
    path = manifest("x.png,good,none.png,valid,")
    assert len(check_dataset(f"csv:{path}").classes[0].problems) == 4  # and that no image is left


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("file,label,split", "line 1: no column path"),
        ("path;label;split", "separate them by commas"),
        ("path,label,split,colour", "line 1: unknown column colour"),
        ("path,label,split,path", "line 1: column path more than once"),
        ("path,lable,split,split", "line 1: no column label; unknown column lable; column split more than once"),
        ("", "line 1: no column path, label, split"),
    ],
)
def test_a_wrong_header_is_said(manifest, header, message):
    with pytest.raises(DatasetError, match=message):
        open_dataset(manifest("a.png,good,train", header=header))


def test_what_is_no_table_is_said(manifest):
    path = manifest()
    with pytest.raises(DatasetError, match="names no image"):
        open_dataset(path)
    path.write_bytes("päth,label,split\n".encode("latin-1"))
    with pytest.raises(DatasetError, match="no text in UTF-8"):
        open_dataset(path)
    with pytest.raises(DatasetError, match="cannot be read"):
        open_dataset(f"csv:{path.parent / 'none.csv'}")
