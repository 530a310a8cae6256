"""Regions of interest: nothing outside counts, everything inside does, wherever a model is used."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from conftest import textured
from flawmap import ITAE, SPADE, VAE, GANomaly, Inspector, MahalanobisAD, PaDiM, PatchSVDD, export_model, load
from flawmap.detectors import Detector
from flawmap.errors import ImageError, ModelFileError, ParameterError
from model_files import assemble, contents

SMALL = {"resize": 96, "layers": ["blocks.1"], "n_features": 12}
"""Its features at a pixel depend on pixels up to 9 away, and those of a cell of 4 x 4 on no others than 12 away."""
FAR = 12
ROI = np.zeros((96, 96), bool)
ROI[16:56, 20:60] = True


@pytest.fixture(scope="module")
def good():
    rng = np.random.default_rng(0)
    return np.stack([textured(rng, (96, 96)) for _ in range(12)])


@pytest.fixture(scope="module")
def model(good):
    return PaDiM(roi=ROI, **SMALL).fit(good)


@pytest.fixture(scope="module")
def new():
    return textured(np.random.default_rng(7), (96, 96))


def spotted(image, top, left, side=8):
    spoilt = image.copy()
    spoilt[top : top + side, left : left + side] = 255
    return spoilt


def test_a_defect_outside_changes_nothing(model, new):
    clean = model.predict(new)
    assert clean.pred_label == 0
    for top, left in ((80, 8), (20, 76), (16 - FAR - 8, 30), (30, 60 + FAR)):
        spoilt = model.predict(spotted(new, top, left))
        assert np.array_equal(spoilt.anomaly_map, clean.anomaly_map)
        assert (spoilt.pred_score, spoilt.pred_label, spoilt.p_value) == (clean.pred_score, 0, clean.p_value)
        assert spoilt.regions == clean.regions


def test_a_defect_just_outside_does_not_get_further_than_the_network_sees(model, new):
    clean, spoilt = (model.predict(image).anomaly_map for image in (new, spotted(new, 30, 60)))
    changed = np.flatnonzero((clean != spoilt).any(axis=0))
    assert len(changed)
    assert changed.min() >= 60 - FAR - 16 - 4  # the reach of the network, and of the smoothing: 4 sigma


def test_a_defect_inside_is_found_where_it_lies(model, new):
    prediction = model.predict(spotted(new, 24, 40))
    assert prediction.pred_label == 1
    assert 20 <= prediction.regions[0].peak_at[0] <= 36
    assert 36 <= prediction.regions[0].peak_at[1] <= 52
    assert not prediction.anomaly_map[~ROI].any()
    assert not prediction.pred_mask[~ROI].any()
    assert prediction.original_map().max() == pytest.approx(prediction.pred_score, rel=1e-3)


def test_a_defect_at_the_border_scores_as_without_a_region(good, new):
    whole = PaDiM(**SMALL, regularization="paper").fit(good)
    model = PaDiM(roi=ROI, **SMALL, regularization="paper").fit(good)
    image = spotted(new, 16, 20, side=10)  # in the region's corner
    assert model.predict(image).pred_score >= 0.95 * whole.predict(image).pred_score
    inside, outside = (one.predict(image).anomaly_map[34:38, 38:42] for one in (model, whole))
    np.testing.assert_allclose(inside, outside, rtol=1e-4)  # 4 sigma from any border


def test_what_good_photos_show_outside_changes_nothing(good, model):
    rng = np.random.default_rng(3)
    cluttered = good.copy()
    far = np.ones((96, 96), bool)
    far[16 - FAR : 56 + FAR, 20 - FAR : 60 + FAR] = False
    cluttered[:, far] = rng.integers(0, 255, (12, int(far.sum()), 3))
    other = PaDiM(roi=ROI, **SMALL).fit(cluttered)
    assert other.regularization_ == model.regularization_
    np.testing.assert_allclose(other.leave_one_out_scores_, model.leave_one_out_scores_, rtol=1e-5)
    assert np.array_equal(other.decision_.pixel_quantiles, model.decision_.pixel_quantiles)
    assert other.threshold_ == pytest.approx(model.threshold_, rel=1e-5)
    assert PaDiM(**SMALL).fit(cluttered).threshold_ > 1.1 * model.threshold_


def test_held_out_scores_are_those_of_refits_without_each_photo(good, model):
    rest = PaDiM(roi=ROI, regularization=_pair(model), calibrate=None, **SMALL).fit(good[1:])
    assert model.leave_one_out_scores_[0] == pytest.approx(rest.predict(good[0]).pred_score, rel=1e-3)


def _pair(model):
    return model.regularization_.sharing, model.regularization_.ridge


@pytest.mark.parametrize(
    "options",
    [
        {"groups": lambda name: int(name.split()[1]) // 2},
        {"refit_below": 0},
        {"calibrate": "holdout"},
        {"reduction": "pca"},
        {"regularization": (0.3, 0.1)},
        {"layers": ["blocks.1", "blocks.2"]},
        {"crop": 80},
        {"resize": 64, "crop": 56},
    ],
    ids=lambda options: "-".join(options),
)
def test_other_ways_to_fit(good, new, options):
    model = PaDiM(roi=ROI, **{**SMALL, **options}).fit(good)
    clean = model.predict(new)
    assert model.predict(spotted(new, 24, 40)).pred_score > 1.5 * clean.pred_score
    assert model.predict(spotted(new, 86, 2)).pred_score <= clean.pred_score * 1.02
    assert model.roi_.mean() == pytest.approx(
        1600 / 96**2 * (96 / 80) ** 2 if "crop" in options else 1600 / 96**2, rel=0.2
    )


def test_a_file_keeps_the_region(model, new, tmp_path):
    model.save(tmp_path / "part.flawmap")
    again = load(tmp_path / "part.flawmap", runtime="torch")
    assert np.array_equal(again.roi_, ROI)
    assert np.array_equal(again.predict(new).placement.roi, ROI)
    for image in (new, spotted(new, 24, 40), spotted(new, 80, 8)):
        np.testing.assert_allclose(again.predict(image).anomaly_map, model.predict(image).anomaly_map, rtol=1e-5)
    assert again.describe()["roi"] == {"inspected": 0.1736, "box": [16, 20, 56, 60]}
    again.save(tmp_path / "again.flawmap")
    assert (tmp_path / "again.flawmap").read_bytes() == (tmp_path / "part.flawmap").read_bytes()


@pytest.mark.parametrize("runs", [[5, 6], [96 * 96, 0], [0, -1, 96 * 96 + 1], []])
def test_a_file_whose_region_is_none_is_damaged(model, tmp_path, runs):
    model.save(tmp_path / "part.flawmap")
    document, tensors = contents(tmp_path / "part.flawmap")
    document["roi"]["runs"] = runs
    assemble(tmp_path / "part.flawmap", document, tensors)
    with pytest.raises(ModelFileError, match="damaged"):
        load(tmp_path / "part.flawmap")


@pytest.mark.parametrize("format", ["openvino", "onnx"])
@pytest.mark.parametrize("resize_inside", [False, True])
def test_an_export_inspects_the_region_alone(model, new, tmp_path, format, resize_inside):
    folder = export_model(model, tmp_path / "part", format=format, resize_inside=resize_inside)
    inspector = Inspector(folder)
    for image in (new, spotted(new, 24, 40), spotted(new, 80, 8)):
        ours, theirs = model.predict(image), inspector.predict(image)
        assert theirs.pred_score == pytest.approx(ours.pred_score, rel=1e-3)
        np.testing.assert_allclose(theirs.anomaly_map, ours.anomaly_map, atol=1e-3 * ours.pred_score)
        assert theirs.pred_label == ours.pred_label
        scores, maps = inspector.score_batch(image[None])  # what another program gets
        assert scores[0] == pytest.approx(ours.pred_score, rel=1e-3)
        assert not maps[0][~ROI].any()
    metadata = json.loads((folder / "metadata.json").read_text())
    metadata["roi"]["runs"][0] += 1
    (folder / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(ModelFileError, match="region of interest"):
        Inspector(folder)


def test_photos_of_several_sizes_and_a_rule_for_the_canvas(good, new, tmp_path):
    sizes = [(96, 96), (192, 192), (48, 48)]
    photos = [Image.fromarray(image).resize(sizes[i % 3]) for i, image in enumerate(good)]
    mask = tmp_path / "roi.png"
    Image.fromarray(ROI).resize((192, 192)).save(mask)
    polygon = [[20, 16], [60, 16], [60, 56], [20, 56]]
    by_mask = PaDiM(roi=mask, **{**SMALL, "resize": "long:96"}).fit(photos)
    assert np.array_equal(by_mask.roi_, ROI)
    for roi, photo in ((polygon, None), ({"include": [polygon], "size": [96, 96]}, photos[1]), (polygon, new)):
        model = PaDiM(roi=roi, roi_photo=photo, calibrate=None, **SMALL).fit(photos)
        assert np.array_equal(model.roi_, ROI)
        guessed = [names for remark, names in model.remarks_.items() if "state 'size'" in remark]
        assert guessed == ([("image 1",)] if isinstance(roi, list) and photo is None else [])
    with pytest.raises(ParameterError, match=r"\(60, 16\) lies outside"):
        PaDiM(roi=polygon, roi_photo=photos[2], **SMALL).fit(photos)
    large = np.asarray(Image.fromarray(spotted(new, 24, 40)).resize((192, 192)))
    region = by_mask.predict(large).regions[0]
    assert 40 <= region.peak_at[0] <= 72
    assert 72 <= region.peak_at[1] <= 104


def test_a_letterbox_keeps_the_region_in_the_frame_of_the_model(good):
    tall = [image[:, :48] for image in good]
    roi = np.zeros((96, 48), bool)
    roi[20:60, 8:40] = True
    model = PaDiM(roi=roi, aspect="letterbox", **SMALL).fit(tall)
    expected = np.zeros((96, 96), bool)
    expected[20:60, 32:64] = True
    assert np.array_equal(model.roi_, expected)
    assert model.predict(spotted(tall[0], 30, 20)).pred_label == 1
    assert model.predict(spotted(tall[0], 84, 20)).pred_label == 0
    wide = model.predict(np.ascontiguousarray(good[0][:8]))  # shows no pixel of the region's rows
    assert wide.placement.content[0] >= 40
    nothing = np.zeros((96, 48), bool)
    nothing[:16] = True
    empty = PaDiM(roi=nothing, aspect="letterbox", **SMALL).fit([*tall, good[0][:48]])
    assert empty.leave_one_out_scores_[-1] == 0  # a photo that shows nothing of it
    assert empty.predict(good[0][:48]).pred_score == 0


def test_the_region_is_drawn_on_the_first_photo_that_can_be_read(good, tmp_path):
    for i, image in enumerate(good[:6]):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    (tmp_path / "0.png").write_bytes(b"no image")
    bad = []
    model = PaDiM(roi=ROI, **SMALL).fit(tmp_path, on_bad=bad.append)
    assert model.roi_photo_ == str(tmp_path / "1.png")
    assert len(bad) == 1
    with pytest.raises(ImageError, match=r"0\.png"):
        PaDiM(roi=ROI, **SMALL).fit(tmp_path)
    with pytest.raises(ImageError, match=r"none\.png"):
        PaDiM(roi=ROI, roi_photo=tmp_path / "none.png", **SMALL).fit(tmp_path, on_bad=bad.append)
    for path in tmp_path.iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(ParameterError, match="none of the first 6 good photos can be read"):
        PaDiM(roi=ROI, **SMALL).fit(tmp_path, on_bad=bad.append)


def test_a_region_that_is_smaller_than_a_patch_is_refused(good):
    with pytest.raises(ParameterError, match="has 9 pixels of the model's input, less than one patch of 4 x 4"):
        PaDiM(roi=[[10, 10], [13, 10], [13, 13], [10, 13]], **SMALL).fit(good)
    just_one = PaDiM(roi=[[10, 10], [14, 10], [14, 14], [10, 14]], **SMALL).fit(good)
    assert just_one.roi_.sum() == 16
    assert just_one.predict(spotted(good[0], 8, 8)).pred_label == 1


def test_a_new_fit_forgets_the_region_of_the_last(good):
    model = PaDiM(roi=ROI, calibrate=None, **SMALL).fit(good)
    model.roi = None
    with pytest.raises(ParameterError, match="roi was changed after the fit"):
        model.predict(good[0])
    assert model.fit(good).roi_ is None
    assert model.predict(good[0]).placement.roi is None


@pytest.mark.parametrize("kind", [SPADE, MahalanobisAD, GANomaly, ITAE])
def test_detectors_whose_score_is_of_the_whole_image_refuse_a_region(kind, good):
    with pytest.raises(ParameterError, match=rf"roi is not for {kind.name}, .* Use crop"):
        kind(roi=ROI, resize=64).fit(good)
    with pytest.raises(ParameterError, match="give roi"):
        kind(roi_photo="part.png", resize=64).fit(good)


@pytest.mark.parametrize("kind", [VAE, PatchSVDD])
def test_trained_detectors_inspect_the_region_alone(kind, good, new, tmp_path):
    model: Detector = kind(roi=ROI, resize=96, width=4, batch_size=2, steps=2).fit(good)
    clean, spoilt = (model.predict(image) for image in (new, spotted(new, 24, 40)))
    assert not spoilt.anomaly_map[~ROI].any()
    assert spoilt.pred_score == spoilt.anomaly_map.max() > clean.pred_score
    assert len(model.leave_one_out_scores_) == 3
    model.save(tmp_path / "part.flawmap")
    assert load(tmp_path / "part.flawmap").predict(new).pred_score == pytest.approx(clean.pred_score, rel=1e-4)
    inspector = Inspector(export_model(model, tmp_path / "part"))
    assert inspector.predict(new).pred_score == pytest.approx(clean.pred_score, rel=1e-2)
    assert inspector.score_batch(new[None])[0][0] == pytest.approx(clean.pred_score, rel=1e-2)
