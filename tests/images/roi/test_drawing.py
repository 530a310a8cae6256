from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from flawmap.errors import ParameterError
from flawmap.images import Preprocessing
from flawmap.images.roi import RoiRecord, read_roi
from flawmap.images.roi.drawing import fill
from flawmap.images.roi.placing import PlacedRoi
from flawmap.prediction import Placement


def crossings(polygon, row, column):
    """Edges that a ray to the right of a point crosses, counted one by one."""
    count = 0
    for (r0, c0), (r1, c1) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
        if (r0 <= row) != (r1 <= row) and c0 + (row - r0) * (c1 - c0) / (r1 - r0) > column:
            count += 1
    return count


@pytest.mark.parametrize("seed", range(8))
def test_polygons_are_filled_by_the_even_odd_rule(seed):
    rng = np.random.default_rng(seed)
    polygon = rng.uniform(-8, 30, (int(rng.integers(3, 9)), 2))  # nearly all of them cross themselves
    naive = [
        [crossings(polygon.tolist(), row + 0.5, column + 0.5) % 2 == 1 for column in range(24)] for row in range(20)
    ]
    assert np.array_equal(fill(polygon, (20, 24)), naive)


def test_a_square_takes_the_pixels_whose_middle_it_holds():
    square = np.array([[2.0, 3.0], [2.0, 6.0], [5.0, 6.0], [5.0, 3.0]])
    expected = np.zeros((8, 8), bool)
    expected[2:5, 3:6] = True
    assert np.array_equal(fill(square, (8, 8)), expected)
    assert np.array_equal(fill(square + 0.4, (8, 8)), expected)
    assert np.array_equal(fill(square[::-1], (8, 8)), expected)


PREPROCESSINGS = {
    "resize": Preprocessing.of((48, 96)),
    "crop": Preprocessing.of((64, 128), crop=(48, 96)),
    "letterbox": Preprocessing.of(96, aspect="letterbox"),
    "letterbox and crop": Preprocessing.of(96, crop=(56, 80), aspect="letterbox"),
}


@pytest.mark.parametrize("preprocessing", PREPROCESSINGS.values(), ids=PREPROCESSINGS)
def test_mask_and_polygon_lie_where_the_model_sees_the_same_pixels(preprocessing):
    photo = np.zeros((120, 240, 3), np.uint8)
    photo[30:90, 60:150] = 255
    seen, placement = preprocessing.apply(photo)
    mask = read_roi(photo[..., 0] > 0).on_input(placement, "photo")
    polygon = read_roi([[60, 30], [150, 30], [150, 90], [60, 90]]).on_input(placement, "photo")
    smaller = read_roi(photo[::2, ::2, 0]).on_input(placement, "photo")
    for roi in (mask, polygon, smaller):
        assert roi.shape == preprocessing.input_size
        assert np.mean(roi != (seen[..., 0] > 127)) <= 0.01  # the pixels of the border alone
    half = {"include": [[[30, 15], [75, 15], [75, 45], [30, 45]]], "size": [60, 120]}
    assert np.array_equal(read_roi(half).on_input(placement, "photo"), polygon)


def test_what_is_excluded_is_cut_out_of_what_is_included_or_of_everything():
    placement = Placement((10, 10), (10, 10), (0, 0), (10, 10))
    inner = [[4, 4], [6, 4], [6, 6], [4, 6]]
    outer = [[2, 2], [8, 2], [8, 8], [2, 8]]
    ring = read_roi({"include": [outer], "exclude": [inner]}).on_input(placement, "photo")
    assert (ring.sum(), ring[5, 5], ring[3, 3], ring[0, 0]) == (32, False, True, False)
    rest = read_roi({"exclude": [inner]}).on_input(placement, "photo")
    assert (rest.sum(), rest[5, 5], rest[0, 0]) == (96, False, True)
    both = read_roi([inner, [[0, 0], [2, 0], [2, 2], [0, 2]]]).on_input(placement, "photo")
    assert both.sum() == 8


@pytest.mark.parametrize(
    ("drawing", "message"),
    [
        (np.eye(10, 20, dtype=bool), "10 x 20, but part.png has 10 x 10"),
        ({"include": [[[0, 0], [9, 0], [9, 9]]], "size": [10, 20]}, "other proportions"),
        ([[0, 0], [12, 0], [9, 9]], r"the point \(12, 0\) lies outside part.png, 10 pixels wide"),
        ([[0, 0], [9, 0], [9, -2.5]], r"\(9, -2.5\) lies outside"),
        ({"include": [[[2, 2], [4, 2], [4, 4]]], "exclude": [[[0, 0], [9, 0], [9, 9], [0, 9]]]}, "'exclude' leaves"),
        ([[1, 1], [5, 5], [9, 9]], "sees nothing of the region"),
    ],
)
def test_what_cannot_be_drawn_on_the_photo_is_refused(drawing, message):
    with pytest.raises(ParameterError, match=message):
        read_roi(drawing).on_input(Placement((10, 10), (10, 10), (0, 0), (10, 10)), "part.png")


def test_a_point_on_the_border_or_rounded_over_it_is_none_outside():
    placement = Placement((10, 10), (10, 10), (0, 0), (10, 10))
    assert read_roi([[-0.5, 0], [10, 0], [10.5, 10], [0, 10]]).on_input(placement, "photo").all()


def test_a_region_that_is_cropped_away_is_refused():
    corner = np.zeros((64, 64), bool)
    corner[:10, :10] = True
    with pytest.raises(ParameterError, match="the crop cuts it off"):
        read_roi(corner).on_input(Preprocessing.of(64, crop=32).place((64, 64)), "photo")


@pytest.mark.parametrize("seed", range(4))
def test_runs_give_the_region_again(seed):
    rng = np.random.default_rng(seed)
    roi = rng.random((9, 13)) < 0.5
    roi[0, 0] = seed % 2 == 0
    assert np.array_equal(RoiRecord.of(roi).mask((9, 13)), roi)
    assert RoiRecord.of(np.ones((3, 4), bool)).runs == (0, 12)


@pytest.mark.parametrize("runs", [(1, 2), (12, 0), (3, 4, 6)])
def test_runs_of_another_size_or_of_nothing_are_refused(runs):
    with pytest.raises(ParameterError, match="not of an input of 3 x 4"):
        RoiRecord(runs=runs).mask((3, 4))


def test_a_region_that_no_file_could_hold_is_refused():
    with pytest.raises(ParameterError, match="draw a smoother one"):
        RoiRecord.of(np.indices((1100, 1100)).sum(axis=0) % 2 == 0)


def test_points_are_only_guessed_at_where_photos_have_several_sizes():
    placed = PlacedRoi(np.ones((4, 4), bool), "part.json", "a.png", seen=1.0, is_guess=True)
    assert placed.remarks([(10, 10)]) == {}
    [names] = placed.remarks([(10, 10), (20, 20)]).values()
    assert names == ("a.png",)
    assert replace(placed, is_guess=False).remarks([(10, 10), (20, 20)]) == {}


@pytest.mark.parametrize("drawing", ["mask", "polygon"])
def test_it_is_told_what_a_crop_cuts_off(drawing):
    mask = np.zeros((64, 64), bool)
    mask[20:40, 32:64] = True
    roi = read_roi(mask if drawing == "mask" else [[32, 20], [64, 20], [64, 40], [32, 40]])
    assert roi.share_seen(Preprocessing.of(64).place((64, 64))) == 1
    assert roi.share_seen(Preprocessing.of(64, crop=32).place((64, 64))) == pytest.approx(0.5, abs=0.02)
    assert (
        read_roi({"exclude": [[[0, 0], [9, 0], [9, 9]]]}).share_seen(Preprocessing.of(64, crop=8).place((64, 64))) == 1
    )
    [remark] = PlacedRoi(mask, "roi.png", "a.png", seen=0.5, is_guess=True).remarks([(64, 64)])
    assert remark.startswith("50% of the region roi.png lie outside")
