from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from flawmap.errors import ImageError
from flawmap.images import ClassMask, DefectMasks, MaskFrame, Saturation, inspect_mask, read_mask


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


SHAPE = np.zeros((24, 32), bool)
SHAPE[6:15, 10:20] = True


def painted(shape, colour, background=(0, 0, 0)):
    return np.where(shape[..., None], np.uint8(colour), np.uint8(background)).astype(np.uint8)


def shaped_alpha(colour, hidden, shape):
    return np.dstack([painted(shape, colour, hidden), shape.astype(np.uint8) * 255])


@pytest.mark.parametrize(
    "pixels",
    [
        *(SHAPE.astype(np.uint8) * np.uint8(value) for value in (1, 2, 31, 100, 127, 128, 254, 255)),
        *(SHAPE.astype(np.uint16) * np.uint16(value) for value in (1, 2, 300, 65535)),
        painted(SHAPE, (255, 0, 0)),
        painted(SHAPE, (0, 0, 90)),
        painted(SHAPE, (7, 3, 0)),
        painted(SHAPE, (255, 0, 0), (255, 255, 255)),
        painted(SHAPE, (255, 255, 0), (0, 0, 255)),
        shaped_alpha((255, 255, 255), (255, 255, 255), SHAPE),
        shaped_alpha((255, 255, 255), (0, 0, 0), SHAPE),
        shaped_alpha((0, 0, 0), (0, 0, 0), SHAPE),
        np.dstack([painted(SHAPE, (255, 255, 255)), np.full(SHAPE.shape, 255, np.uint8)]),
        np.dstack([painted(SHAPE, (255, 0, 0)), np.full(SHAPE.shape, 128, np.uint8)]),
        np.dstack([painted(SHAPE, (255, 0, 0), (9, 9, 9)), np.pad(np.full((22, 30), 255, np.uint8), 1)]),
    ],
)
def test_every_usual_convention_marks_the_shape(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = inspect_mask(tmp_path / "a.png")
    np.testing.assert_array_equal(found.marked, SHAPE)
    assert found.remark is None


def test_bits_palettes_and_negative_numbers_mark_what_is_not_the_background(tmp_path):
    pictures = {"bits.png": Image.fromarray(SHAPE), "negative.tif": Image.fromarray(-SHAPE.astype(np.int32))}
    for name, colours in {"white": [255] * 3 + [255, 0, 0], "black": [0, 0, 0, 1, 1, 1]}.items():
        picture = Image.fromarray(SHAPE.astype(np.uint8), "P")
        picture.putpalette(colours)
        pictures[f"{name}.png"] = picture
    for name, picture in pictures.items():
        picture.save(tmp_path / name)
        np.testing.assert_array_equal(read_mask(tmp_path / name), SHAPE, name)


@pytest.mark.parametrize("value", [40, 100, 255])
@pytest.mark.parametrize("colour", [(1, 1, 1), (1, 0, 0)])
@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_the_noise_of_a_lossy_format_is_no_defect(tmp_path, value, colour, suffix):
    shape = np.kron(SHAPE, np.ones((8, 8), bool))
    Image.fromarray(painted(shape, np.array(colour) * value)).save(tmp_path / f"a.{suffix}", quality=80)
    found = inspect_mask(tmp_path / f"a.{suffix}")
    assert np.count_nonzero(found.marked != shape) <= 0.03 * shape.sum()  # along its edge
    assert not found.marked[:24].any()
    assert found.remark is None


@pytest.mark.parametrize(("good", "bad"), [(1, 2), (255, 254), (50, 200), (200, 50)])
def test_of_two_values_without_0_the_rarer_marks_with_a_remark(tmp_path, good, bad):
    Image.fromarray(np.where(SHAPE, bad, good).astype(np.uint8)).save(tmp_path / "a.bmp")
    found = inspect_mask(tmp_path / "a.bmp")
    np.testing.assert_array_equal(found.marked, SHAPE)
    assert f"and no 0; {good} is taken for good" in found.remark


def test_several_values_are_classes_if_dark_or_coloured_and_else_brightness(tmp_path):
    for values, marked in [
        ([0, 1, 2, 8], [False, True, True, True]),
        ([0, 3, 250, 255], [False, False, True, True]),
        ([0, 60, 120, 240], [False, False, False, True]),
    ]:
        Image.fromarray(np.array([[0, 0, 0, 0, *values]], np.uint8)).save(tmp_path / "a.png")
        found = inspect_mask(tmp_path / "a.png")
        assert found.marked[0, 4:].tolist() == marked
        assert (found.remark is not None) == (values[1] == 60)
    assert "holds 0, 60, 120, 240; those above 120" in found.remark
    colours = np.array([[[0, 0, 0]] * 4 + [[255, 0, 0], [0, 64, 0]]], np.uint8)
    Image.fromarray(colours).save(tmp_path / "a.png")
    assert read_mask(tmp_path / "a.png").tolist() == [[False] * 4 + [True] * 2]


def test_masks_of_one_value_mark_nothing_or_all_and_an_inverted_one_is_said(tmp_path):
    for value in (0, 2, 255):
        Image.new("L", (4, 4), value).save(tmp_path / "a.png")
        found = inspect_mask(tmp_path / "a.png")
        assert found.marked.all() if value else not found.marked.any()
        assert (found.remark is None) == (value == 0)
    Image.fromarray(np.where(SHAPE, 0, 255).astype(np.uint8)).save(tmp_path / "a.png")
    assert inspect_mask(tmp_path / "a.png").remark == (
        "marks more than 50% of its image; if it is inverted, paint defects white on black"
    )


def test_float_masks_are_refused_by_their_kind(tmp_path):
    Image.fromarray(SHAPE.astype(np.float32) * 0.5).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match=r"a\.tif: is a TIFF of a kind that is not read: 32-bit floating-point grey"):
        read_mask(tmp_path / "a.tif")


def test_a_folder_of_masks_has_the_defects_of_one_image(tmp_path):
    for name, value, column in (("000", 255, 0), ("001", 254, 1)):
        picture = np.zeros((2, 3), np.uint8)
        picture[:, column] = value
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    (half, all_), source = (Saturation(0.5, True), Saturation(1.0, True)), DefectMasks(tmp_path)
    assert read_mask(source).tolist() == [[True, True, False]] * 2
    assert [saturation for _, saturation in source.read()] == [None, None]
    first, second = DefectMasks(tmp_path, ((255, half), (254, all_))).read()
    assert (first[0].tolist(), first[1]) == ([[True, False, False]] * 2, half)
    assert (second[0].tolist(), second[1]) == ([[False, True, False]] * 2, all_)
    with pytest.raises(ImageError, match=r"001\.png: holds the value 254; defects_config\.json has 255"):
        DefectMasks(tmp_path, ((255, half),)).read()
    Image.new("L", (4, 4)).save(tmp_path / "002.png")
    with pytest.raises(ImageError, match=r"002\.png: is 4 x 4, others in .* are 2 x 3"):
        read_mask(source)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="holds no mask"):
        read_mask(DefectMasks(tmp_path / "empty"))


def test_a_saturation_is_a_share_or_a_number_of_pixels_of_the_photo():
    assert Saturation(0.25, True).area(40) == Saturation(0.25, True).area(40, 0.1) == 10
    assert Saturation(100, False).area(40) == 40
    assert Saturation(100, False).area(40, 0.1) == 10
