"""A region of interest of parts that are turned: it is drawn on one photo and turns with the part."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from PIL import Image, ImageDraw

from flawmap import Inspector, PaDiM, export_model, load
from flawmap.errors import ParameterError
from flawmap.evaluation.metrics import image_auroc
from turned import photo

OPTIONS = {"align": "rigid", "resize": 64, "layers": ["blocks.1"], "n_features": 24, "regularization": (0.3, 0.3)}
AROUND = [(-0.06, -0.085), (0.13, -0.085), (0.13, 0.085), (-0.06, 0.085)]
"""The region's corners (x, y) on the part, in longer sides from its middle."""
INSIDE, OUTSIDE = (0.035, 0.0), (0.27, -0.14)
DRAWN = {"angle": 70.0, "shift": (4.0, -3.0)}
"""How the part lies in the photo that the region is drawn on."""


def on_photo(points, *, angle, shift):
    """Points of the part, in pixels (x, y) of a photo of 128 x 128."""
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return [
        [(cosine * x - sine * y) * 128 + 64 + shift[1], (sine * x + cosine * y) * 128 + 64 + shift[0]]
        for x, y in points
    ]


def part(seed, *, spot=None, angle, shift):
    """A photo of a part with a spot."""
    image = Image.fromarray(photo(angle=angle, shift=shift, seed=seed))
    if spot is not None:
        [(x, y)] = on_photo([spot], angle=angle, shift=shift)
        ImageDraw.Draw(image).ellipse([x - 3, y - 3, x + 3, y + 3], fill=(150, 150, 150))
    return np.asarray(image)


@pytest.fixture(scope="module")
def good():
    rng = np.random.default_rng(0)
    poses = [(float(rng.uniform(0, 360)), tuple(rng.uniform(-6, 6, 2))) for _ in range(40)]
    return [part(i, angle=angle, shift=shift) for i, (angle, shift) in enumerate(poses)]


@pytest.fixture(scope="module")
def model(good):
    return PaDiM(roi=on_photo(AROUND, **DRAWN), roi_photo=part(99, **DRAWN), refit_below=0, **OPTIONS).fit(good)


@pytest.mark.parametrize("angle", [30.0, 200.0])
def test_a_defect_counts_inside_and_not_outside(model, angle):
    pose = {"angle": angle, "shift": (3.0, -2.0)}
    clean, inside, outside = (model.predict(part(7, spot=spot, **pose)) for spot in (None, INSIDE, OUTSIDE))
    assert clean.pred_label == outside.pred_label == 0
    assert outside.pred_score == pytest.approx(clean.pred_score, rel=0.1)
    assert inside.pred_label == 1
    assert inside.pred_score > 1.5 * clean.pred_score
    [(x, y)] = on_photo([INSIDE], **pose)
    assert np.hypot(inside.regions[0].peak_at[0] - y, inside.regions[0].peak_at[1] - x) < 6
    heat = outside.original_map()
    [(x, y)] = on_photo([OUTSIDE], **pose)
    assert not heat[round(y) - 4 : round(y) + 4, round(x) - 4 : round(x) + 4].any()


def test_the_region_lies_on_the_part_in_every_photo(model):
    for angle in (0.0, 30.0, 135.0):
        pose = {"angle": angle, "shift": (-4.0, 5.0)}
        placement = model.predict(part(3, **pose)).placement
        seen = placement.to_original(placement.roi.astype(np.float32)) > 0.5
        expected = Image.new("1", (128, 128))
        ImageDraw.Draw(expected).polygon([tuple(point) for point in on_photo(AROUND, **pose)], fill=1)
        wanted = np.asarray(expected)
        assert (seen & wanted).sum() / (seen | wanted).sum() > 0.85
        plain = placement.unaligned
        assert (plain.to_original(plain.roi.astype(np.float32)) > 0.5)[wanted].mean() > 0.9


def test_a_mask_and_the_first_photo(good, model):
    first = np.random.default_rng(0)
    pose = {"angle": float(first.uniform(0, 360)), "shift": tuple(first.uniform(-6, 6, 2))}
    mask = Image.new("1", (128, 128))
    ImageDraw.Draw(mask).polygon([tuple(point) for point in on_photo(AROUND, **pose)], fill=1)
    other = PaDiM(roi=np.asarray(mask), calibrate=None, **OPTIONS).fit(good)
    assert (other.roi_ & model.roi_).sum() / (other.roi_ | model.roi_).sum() > 0.8


def test_file_and_exports_inspect_alike(model, tmp_path):
    model.save(tmp_path / "part.flawmap")
    export_model(model, tmp_path / "export")
    others = [load(tmp_path / "part.flawmap"), Inspector(tmp_path / "export")]
    for spot in (None, INSIDE, OUTSIDE):
        image = part(5, spot=spot, angle=30.0, shift=(0.0, 2.0))
        ours = model.predict(image)
        for other in others:
            theirs = other.predict(image)
            assert theirs.pred_score == pytest.approx(ours.pred_score, rel=1e-3)
            assert theirs.pred_label == ours.pred_label
            np.testing.assert_allclose(theirs.anomaly_map, ours.anomaly_map, atol=1e-3 * ours.pred_score)
    assert json.loads((tmp_path / "export" / "metadata.json").read_text())["model"]["roi"] == model.describe()["roi"]


def test_a_photo_without_the_part_is_none_to_draw_on(good):
    with pytest.raises(ParameterError, match=r"not found in image 1, .* \(roi_photo"):
        PaDiM(roi=[[10, 10], [50, 10], [50, 50]], roi_photo=np.full((128, 128, 3), 190, np.uint8), **OPTIONS).fit(good)


def test_the_heads_of_real_screws(screw):
    head = [[300, 55], [335, 50], [440, 140], [430, 175], [350, 180], [300, 150]]  # on the first good photo
    good = sorted((screw / "train" / "good").iterdir())[:40]
    model = PaDiM(roi={"include": [head], "size": (512, 512)}, align="rigid", refit_below=0).fit(good)
    assert model.roi_photo_ == str(good[0])

    def scores(kind):
        return [model.predict(path).pred_score for path in sorted((screw / "test" / kind).iterdir())[:12]]

    new = scores("good")
    for kind, low, high in (("scratch_head", 0.95, 1.0), ("thread_top", 0.2, 0.8), ("manipulated_front", 0.2, 0.8)):
        assert low <= image_auroc([0] * len(new) + [1] * 12, new + scores(kind)) <= high
