from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2.functional import center_crop

from flawmap.errors import ParameterError
from flawmap.images import Preprocessing
from flawmap.prediction import Placement

side = st.integers(1, 40)
size = st.tuples(side, side)


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (64, None), (64, 63), ((40, 61), (33, 20)), (16, 16)])
def test_squash_is_pils_bilinear_resize_and_torchvisions_centre_crop(resize, crop):
    rgb = picture(97, 130)
    preprocessing = Preprocessing.of(resize, crop)
    height, width = preprocessing.resize
    expected = Image.fromarray(rgb).resize((width, height), Image.Resampling.BILINEAR)
    if crop is not None:
        expected = center_crop(expected, list(preprocessing.input_size))
    pixels, placement = preprocessing.apply(rgb)
    assert np.array_equal(pixels, np.asarray(expected))
    assert placement.image_size == (97, 130)
    assert placement.content == (0, 0, *preprocessing.input_size)


def test_masks_take_the_same_way_by_nearest_pixel():
    mask = picture(512, 512)[..., 0] > 127
    preprocessing = Preprocessing.of(256, 224)
    pil = Image.fromarray(mask.astype(np.uint8) * 255).resize((256, 256), Image.Resampling.NEAREST)
    expected = np.asarray(center_crop(pil, [224, 224])) > 127
    assert np.array_equal(preprocessing.apply_mask(mask, preprocessing.place((512, 512))), expected)


@given(image_size=size, resize=size)
def test_a_letterbox_shows_the_whole_image_in_its_proportions(image_size, resize):
    rgb = np.full((*image_size, 3), 200, np.uint8)
    pixels, placement = Preprocessing.of(resize, None, "letterbox").apply(rgb)
    top, left, bottom, right = placement.content
    assert pixels.shape == (*resize, 3)
    assert (bottom - top, right - left) == placement.resized_size
    assert bottom - top == resize[0] or right - left == resize[1]
    inside = np.zeros(resize, bool)
    inside[top:bottom, left:right] = True
    assert np.all(pixels[inside] == 200)
    assert np.all(pixels[~inside] == 127)


@given(image_size=size, resize=size, crop=st.floats(0.1, 1), letterbox=st.booleans())
def test_the_way_back_agrees_with_a_naive_resampling(image_size, resize, crop, letterbox):
    window = max(1, int(resize[0] * crop)), max(1, int(resize[1] * crop))
    placement = Preprocessing.of(resize, window, "letterbox" if letterbox else "squash").place(image_size)
    values = np.random.default_rng(0).random(window).astype(np.float32)
    back = placement.to_original(values, outside=-1.0)
    top, left, bottom, right = placement.content
    for y in range(image_size[0]):
        for x in range(image_size[1]):
            v = (y + 0.5) * placement.resized_size[0] / image_size[0] - placement.offset[0]
            u = (x + 0.5) * placement.resized_size[1] / image_size[1] - placement.offset[1]
            if min(abs(v - top), abs(v - bottom), abs(u - left), abs(u - right)) < 1e-9:
                continue  # on the border, where rounding decides
            if not (top < v < bottom and left < u < right):
                assert back[y, x] == -1
                continue
            v, u = np.clip(v - 0.5, top, bottom - 1), np.clip(u - 0.5, left, right - 1)
            y0, x0 = int(v), int(u)
            y1, x1 = min(y0 + 1, bottom - 1), min(x0 + 1, right - 1)
            upper = values[y0, x0] * (1 - (u - x0)) + values[y0, x1] * (u - x0)
            lower = values[y1, x0] * (1 - (u - x0)) + values[y1, x1] * (u - x0)
            assert back[y, x] == pytest.approx(upper * (1 - (v - y0)) + lower * (v - y0), abs=1e-5)


@given(image=st.integers(1, 2000), resized=st.integers(1, 600))
def test_source_indices_are_pillows_nearest(image, resized):
    row = Image.fromarray(np.arange(image, dtype=np.int32)[None])
    expected = np.asarray(row.resize((resized, 1), Image.Resampling.NEAREST))[0]
    assert np.array_equal(Placement((1, image), (1, resized), (0, 0), (1, resized)).source_indices(1), expected)


@pytest.mark.parametrize("image", [64, 512, 700, 1024])
def test_masks_agree_with_pillow_where_centres_fall_between_two_pixels(image):
    mask = picture(image, image)[..., 0] > 127
    preprocessing = Preprocessing.of(224)
    pil = Image.fromarray(mask.astype(np.uint8)).resize((224, 224), Image.Resampling.NEAREST)
    assert np.array_equal(preprocessing.apply_mask(mask, preprocessing.place(mask.shape)), np.asarray(pil) > 0)


@given(image_size=size, resize=size, crop=st.floats(0.1, 1), letterbox=st.booleans())
def test_masks_agree_with_a_naive_look_up(image_size, resize, crop, letterbox):
    window = max(1, int(resize[0] * crop)), max(1, int(resize[1] * crop))
    preprocessing = Preprocessing.of(resize, window, "letterbox" if letterbox else "squash")
    placement = preprocessing.place(image_size)
    mask = picture(*image_size)[..., 0] > 127
    seen = preprocessing.apply_mask(mask, placement)
    (image_h, image_w), (resized_h, resized_w) = image_size, placement.resized_size
    for y in range(window[0]):
        for x in range(window[1]):
            v, u = y + placement.offset[0], x + placement.offset[1]
            if not (0 <= v < resized_h and 0 <= u < resized_w):
                assert not seen[y, x]
                continue
            # exact in integers; where a centre lies on an edge either neighbour is the nearest
            rows = {((2 * v + 1) * image_h) // (2 * resized_h), ((2 * v + 1) * image_h - 1) // (2 * resized_h)}
            columns = {((2 * u + 1) * image_w) // (2 * resized_w), ((2 * u + 1) * image_w - 1) // (2 * resized_w)}
            assert seen[y, x] in {mask[row, column] for row in rows for column in columns}


def test_a_mask_of_another_size_is_refused():
    preprocessing = Preprocessing.of(8)
    with pytest.raises(ParameterError, match=r"expected a mask of the image's size \(50, 40\), got \(40, 50\)"):
        preprocessing.apply_mask(np.zeros((40, 50), bool), preprocessing.place((50, 40)))


@pytest.mark.parametrize("crop", [None, (30, 50), (64, 40)])
def test_a_letterbox_holds_pils_resize_in_the_middle_of_grey(crop):
    rgb = picture(45, 80)
    canvas = np.full((64, 64, 3), 127, np.uint8)
    canvas[14:50] = np.asarray(Image.fromarray(rgb).resize((64, 36), Image.Resampling.BILINEAR))
    expected = np.asarray(center_crop(Image.fromarray(canvas), list(crop or (64, 64))))
    pixels, _ = Preprocessing.of(64, crop, "letterbox").apply(rgb)
    assert np.array_equal(pixels, expected)


@given(image_size=size, resize=size, crop=st.floats(0.05, 1), letterbox=st.booleans())
def test_the_whole_canvas_holds_the_input_at_the_window(image_size, resize, crop, letterbox):
    window = max(1, int(resize[0] * crop)), max(1, int(resize[1] * crop))
    aspect = "letterbox" if letterbox else "squash"
    rgb, preprocessing = picture(*image_size), Preprocessing.of(resize, window, aspect)
    pixels, placement = preprocessing.apply(rgb)
    canvas, same_placement = preprocessing.apply(rgb, whole=True)
    assert same_placement == placement == preprocessing.place(image_size)
    assert np.array_equal(canvas, Preprocessing.of(resize, None, aspect).apply(rgb)[0])
    assert np.array_equal(canvas[preprocessing.window], pixels)
    assert pixels.flags.c_contiguous
    # the naive twin: each pixel of the input is one of the resized image, or grey
    height, width = placement.resized_size
    resized = np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.BILINEAR))
    for y, x in np.ndindex(window):
        v, u = y + placement.offset[0], x + placement.offset[1]
        assert np.array_equal(pixels[y, x], resized[v, u] if 0 <= v < height and 0 <= u < width else [127] * 3)


def test_a_placement_knows_its_content_after_copies_too():
    placement = Placement((10, 20), (8, 16), (-4, 2), (16, 12))
    assert placement.content == (4, 0, 12, 12)
    for same in (pickle.loads(pickle.dumps(placement)), copy.deepcopy(placement), replace(placement)):
        assert (same, same.content) == (placement, placement.content)
    assert replace(placement, offset=(0, 0)).content == (0, 0, 8, 12)
    assert "content" not in repr(placement)


@given(resize=size, crop=st.floats(0.05, 1))
def test_crops_start_where_torchvisions_do(resize, crop):
    window = max(1, int(resize[0] * crop)), max(1, int(resize[1] * crop))
    rgb = picture(*resize)
    pixels, placement = Preprocessing.of(resize, window).apply(rgb)
    assert np.array_equal(pixels, np.asarray(center_crop(Image.fromarray(rgb), list(window))))
    assert placement.resized_size == resize


def test_a_flat_map_comes_back_flat_and_what_a_crop_left_out_is_marked():
    placement = Preprocessing.of(256, 224).place((512, 512))
    back = placement.to_original(np.full((224, 224), 3, np.float32), outside=float("nan"))
    assert back.shape == (512, 512)
    assert np.all(back[32:480, 32:480] == 3)
    assert np.isnan(back[:32]).all()
    assert np.isnan(back[:, 480:]).all()


def test_a_map_of_another_size_is_refused():
    placement = Placement((4, 4), (2, 2), (0, 0), (2, 2))
    with pytest.raises(ValueError, match=r"expected a window of \(2, 2\), got \(3, 2\)"):
        placement.to_original(np.zeros((3, 2), np.float32))


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (7, 2)])
@pytest.mark.parametrize("aspect", ["squash", "letterbox"])
def test_extreme_shapes(shape, aspect):
    pixels, placement = Preprocessing.of((64, 96), (48, 48), aspect).apply(picture(*shape))
    assert pixels.shape == (48, 48, 3)
    assert placement.to_original(np.ones((48, 48), np.float32)).shape == shape


@pytest.mark.parametrize("bad", [0, -1, 1.5, (64,), (64, 0), 16385, "64", True, (64, False)])
def test_impossible_sizes_are_refused(bad):
    with pytest.raises(ParameterError, match="resize must be a number of pixels"):
        Preprocessing.of(bad)


def test_numpy_integers_are_sizes():
    assert Preprocessing.of(np.int64(64), (np.int32(32), 16)) == Preprocessing.of(64, (32, 16))
    assert Preprocessing.of([64, 32]).input_size == (64, 32)


def test_a_crop_must_fit_and_the_aspect_be_known():
    with pytest.raises(ParameterError, match=r"crop \(65, 65\) must fit into resize \(64, 64\)"):
        Preprocessing.of(64, 65)
    with pytest.raises(ParameterError, match="'squash' or 'letterbox'"):
        Preprocessing.of(64, None, "stretch")
