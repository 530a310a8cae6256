from __future__ import annotations

import json
import os

import numpy as np
import pytest
from PIL import Image

from flawmap.errors import ParameterError
from flawmap.images.roi import read_roi

TRIANGLE = [[1, 2], [30, 2], [30, 20]]


@pytest.fixture
def mask():
    mask = np.zeros((24, 32), np.uint8)
    mask[5:15, 8:20] = 255
    return mask


def save(path, values, **options):
    Image.fromarray(values).save(path, **options)
    return path


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("grey.png", lambda mask: mask),
        ("faint.png", lambda mask: mask // 255),
        ("bits.png", lambda mask: mask > 0),
        ("deep.png", lambda mask: mask.astype(np.uint16) * 4),
        ("grey.tif", lambda mask: mask),
        ("colour.png", lambda mask: np.dstack([mask] * 3)),
        ("opaque.png", lambda mask: np.dstack([mask, mask, mask, np.full_like(mask, 255)])),
    ],
)
def test_what_is_not_0_in_a_mask_is_inspected(tmp_path, mask, name, change):
    drawing = read_roi(save(tmp_path / name, change(mask)))
    assert np.array_equal(drawing.mask, mask > 0)
    assert drawing.size == (24, 32)
    assert drawing.name == str(tmp_path / name)


def test_arrays_are_masks_and_lists_are_polygons(mask):
    assert np.array_equal(read_roi(mask > 0).mask, mask > 0)
    assert np.array_equal(read_roi(mask).mask, mask > 0)
    for polygons in (TRIANGLE, [TRIANGLE], np.array(TRIANGLE), np.array([TRIANGLE]), {"include": [TRIANGLE]}):
        [polygon] = read_roi(polygons).include
        assert polygon.tolist() == TRIANGLE


def test_a_file_of_polygons(tmp_path):
    path = tmp_path / "roi.JSON"
    path.write_text(json.dumps({"include": [TRIANGLE], "exclude": [TRIANGLE, TRIANGLE], "size": [24, 32]}))
    drawing = read_roi(path)
    assert [len(drawing.include), len(drawing.exclude), drawing.size] == [1, 2, (24, 32)]


def test_a_file_of_labelme(tmp_path):
    shapes = [
        {"label": "part", "shape_type": "polygon", "points": TRIANGLE},
        {"label": "exclude", "shape_type": "rectangle", "points": [[10, 12], [4, 6]]},
    ]
    path = tmp_path / "part.json"
    path.write_text(json.dumps({"version": "5.5.0", "shapes": shapes, "imageHeight": 24, "imageWidth": 32}))
    drawing = read_roi(path)
    assert drawing.include[0].tolist() == TRIANGLE
    assert drawing.exclude[0].tolist() == [[4, 6], [10, 6], [10, 12], [4, 12]]
    assert drawing.size == (24, 32)


IMAGES = {
    "empty.png": (lambda mask: mask * 0, "0 everywhere"),
    "full.png": (lambda mask: mask * 0 + 255, "0 nowhere"),
    "alpha.png": (lambda mask: np.dstack([np.full((24, 32, 3), 255, np.uint8), mask]), "without an alpha channel"),
    "half-alpha.png": (lambda mask: np.dstack([mask, mask // 2 + 100]), "without an alpha channel"),
    "lossy.jpg": (lambda mask: mask, "Save the mask as PNG or TIFF"),
    "photo.png": (lambda mask: np.dstack([mask, mask, mask * 0]), "A mask is grey"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_masks_whose_meaning_is_not_clear_are_refused(tmp_path, mask, name):
    change, message = IMAGES[name]
    with pytest.raises(ParameterError, match=message) as refused:
        read_roi(save(tmp_path / name, change(mask)))
    assert str(refused.value).startswith(str(tmp_path / name))


FILES = {
    "missing.png": (None, "no such file"),
    "missing.json": (None, "no such file"),
    "empty.png": ("", "is empty"),
    "text.png": ("a mask", "is not an image"),
    "text.json": ("a mask", "is not JSON"),
    "empty.json": ("", "is not JSON"),
    "deep.json": ("[" * 100_000, "is not JSON"),
    "list.json": ("[1]", "expected {"),
    "nothing.json": ("{}", "holds no polygon"),
    "misspelt.json": ('{"inlcude": []}', "unknown field 'inlcude'"),
    "one.json": ('{"include": [[1, 2], [3, 4], [5, 6]]}', r"write \[\[\[x, y\]"),
    "two.json": ('{"include": [[[1, 2], [3, 4]]]}', "has 2 points, it needs 3"),
    "nan.json": ('{"include": [[[1, NaN], [3, 4], [5, 6]]]}', "NaN or infinite"),
    "huge.json": ('{"include": [[[1, 1e999], [3, 4], [5, 6]]]}', "NaN or infinite"),
    "text-point.json": ('{"include": [[["1", 2], [3, 4], [5, 6]]]}', "expected points"),
    "bool-point.json": ('{"include": [[[true, false], [true, true], [false, true]]]}', "expected points"),
    "ragged.json": ('{"include": [[[1, 2, 3], [3, 4], [5, 6]]]}', "expected points"),
    "number.json": ('{"include": 5}', "expected a list of polygons"),
    "size.json": ('{"include": [[[1, 2], [3, 4], [5, 6]]], "size": [0, 5]}', "'size' must be"),
    "circle.json": ('{"shapes": [{"shape_type": "circle", "points": [[1, 1], [2, 2]]}]}', "polygon or a rectangle"),
    "shapes.json": ('{"shapes": null}', "polygon or a rectangle"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_region_are_refused_by_their_name(tmp_path, name):
    content, message = FILES[name]
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ParameterError, match=message) as refused:
        read_roi(tmp_path / name)
    assert str(refused.value).startswith(str(tmp_path / name))


@pytest.mark.parametrize(
    "value", [5, [], b"mask", np.ones((4, 5)), np.ones((4, 5, 3), np.uint8), {"size": [3, 4]}, ["a"]]
)
def test_other_values_are_refused(value):
    with pytest.raises(ParameterError, match=r"^roi: "):
        read_roi(value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "roi.png")
    with pytest.raises(ParameterError, match="is a device or pipe"):
        read_roi(tmp_path / "roi.png")


def test_a_mask_of_several_pages_is_refused(tmp_path, mask):
    pages = [Image.fromarray(mask), Image.fromarray(mask[::-1])]
    pages[0].save(tmp_path / "roi.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(ParameterError, match="holds 2 pages"):
        read_roi(tmp_path / "roi.tif")
