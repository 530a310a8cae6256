from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from flawmap.errors import ImageError
from flawmap.images import ClassMask, MaskFrame, read_mask


def test_a_frame_of_an_array_is_anomalous_where_it_is_not_0(tmp_path):
    stack = np.zeros((3, 4, 5), np.uint8)
    stack[1, 2:] = 1
    stack[2, 0, 0] = 255
    np.save(tmp_path / "a.npy", stack)
    for i in range(3):
        np.testing.assert_array_equal(read_mask(MaskFrame(tmp_path / "a.npy", i)), stack[i] != 0)


@pytest.mark.parametrize("values", [[0, 1, 4], [0, 3, 255]])
@pytest.mark.parametrize("mode", ["L", "P"])
def test_a_class_mask_is_anomalous_where_it_is_not_0(tmp_path, values, mode):
    image = Image.fromarray(np.array([values], np.uint8))
    if mode == "P":
        image.putpalette([0, 0, 0] * 256)
    image.save(tmp_path / "a.png")
    assert read_mask(ClassMask(tmp_path / "a.png")).tolist() == [[False, True, True]]


def test_a_class_mask_in_colour_counts_by_brightness(tmp_path):
    Image.fromarray(np.array([[[0, 0, 0, 255], [0, 90, 0, 255]]], np.uint8)).save(tmp_path / "a.png")
    assert read_mask(ClassMask(tmp_path / "a.png")).tolist() == [[False, True]]


def test_arrays_that_are_no_masks_are_refused(tmp_path):
    np.save(tmp_path / "flat.npy", np.zeros(3))
    np.save(tmp_path / "text.npy", np.array([["a"]]))
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "flat.npy").read_bytes()[:90])
    for name, message in [
        ("flat", "expected an array"),
        ("text", "array of numbers"),
        ("object", "no array of numbers"),
        ("cut", "no array of numbers"),
        ("none", "no such file"),
    ]:
        with pytest.raises(ImageError, match=f"{name}.npy.*{message}"):
            read_mask(MaskFrame(tmp_path / f"{name}.npy", 0))
    np.save(tmp_path / "b.npy", np.zeros((2, 3, 3)))
    with pytest.raises(ImageError, match="with this frame"):
        read_mask(MaskFrame(tmp_path / "b.npy", 2))
