from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from flawmap import Inspector, PaDiM, export_model, load
from flawmap.datasets import Sample
from flawmap.decision import judge
from flawmap.detectors.padim import fit, leave_one_out
from flawmap.errors import ModelFileError, ParameterError
from flawmap.evaluation.evaluate import evaluate
from flawmap.evaluation.metrics import image_auroc
from flawmap.images import Loaded
from flawmap.prediction import Placement
from turned import photo

OPTIONS = {"resize": 64, "n_features": 40, "regularization": (0.3, 0.3), "seed": 1}


def parts(n, first=0, **options):
    rng = np.random.default_rng(first)
    return np.stack(
        [
            photo(angle=float(rng.uniform(0, 360)), shift=tuple(rng.uniform(-6, 6, 2)), seed=first + i, **options)
            for i in range(n)
        ]
    )


@pytest.fixture(scope="module")
def good():
    return parts(60)


@pytest.fixture(scope="module")
def model(good):
    return PaDiM(align="rigid", **OPTIONS).fit(good)


@pytest.fixture(scope="module")
def tests():
    return [*parts(12, first=1000), *parts(12, first=2000, scratched=True)], [0] * 12 + [1] * 12


def test_alignment_finds_defects_of_parts_that_are_turned(model, good, tests):
    images, labels = tests
    aligned = image_auroc(labels, [model.predict(image).pred_score for image in images])
    plain = PaDiM(**OPTIONS, align="none").fit(good)
    as_it_is = image_auroc(labels, [plain.predict(image).pred_score for image in images])
    assert aligned > 0.95
    assert aligned > as_it_is + 0.05


def test_the_threshold_holds_for_parts_that_were_not_learnt(model):
    model.set_threshold(false_alarm_rate=0.1)
    flagged = np.mean([model.predict(image).pred_label for image in parts(60, first=5000)])
    model.set_threshold(false_alarm_rate=0.01)
    assert flagged <= 0.25


def test_the_map_marks_the_defect_where_it_lies_in_the_photo(model):
    image = photo(angle=90, shift=(0, 10), seed=7, scratched=True)
    heat = model.predict(image).original_map()
    assert heat.shape == (128, 128)
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    # 0.03 sides from the part's middle along its axis, turned by 90 degrees
    assert abs(row - (64 + 0.03 * 128)) < 12
    assert abs(column - 74) < 12


def test_a_part_that_is_not_found_is_flagged(model):
    blank = np.full((128, 128, 3), 190, np.uint8)
    prediction = model.predict(blank)
    assert not prediction.found
    assert prediction.pred_label == 1
    assert prediction.p_value == pytest.approx(1 / 61)
    assert model.predict(photo(angle=5, seed=3)).found


def test_good_images_without_the_part_are_named_and_count_as_flagged(good):
    spoilt = [*good[:40], np.full((128, 128, 3), 190, np.uint8)]
    model = PaDiM(align="rigid", **OPTIONS).fit(spoilt)
    assert model.n_images_ == 40
    assert [names for remark, names in model.remarks_.items() if "part was not found" in remark] == [("image 41",)]
    assert len(model.leave_one_out_scores_) == 41
    assert model.leave_one_out_scores_[40] > 1e30
    assert model.decision_.n_groups == 41


def test_a_file_keeps_the_alignment(model, tests, tmp_path):
    model.save(tmp_path / "part.flawmap")
    again = load(tmp_path / "part.flawmap")
    for image in tests[0][::6]:
        ours, theirs = model.predict(image), again.predict(image)
        assert ours.pred_score == pytest.approx(theirs.pred_score, rel=1e-4)
        assert ours.placement == theirs.placement
    assert again.describe()["alignment"]["kind"] == "rigid"


@pytest.mark.parametrize("format", ["openvino", "onnx"])
def test_an_export_aligns_as_the_model_does(model, tests, tmp_path, format):
    inspector = Inspector(export_model(model, tmp_path / "part", format=format))
    for image in [*tests[0][::6], np.full((128, 128, 3), 190, np.uint8)]:
        ours, theirs = model.predict(image), inspector.predict(image)
        assert theirs.pred_score == pytest.approx(ours.pred_score, rel=1e-3)
        assert theirs.placement == ours.placement
        assert theirs.pred_label == ours.pred_label
    (tmp_path / "part" / "alignment.safetensors").write_bytes(b"x")
    with pytest.raises(ModelFileError, match=r"alignment\.safetensors"):
        Inspector(tmp_path / "part")


def test_an_aligned_graph_resizes_nothing(model, tmp_path):
    with pytest.raises(ParameterError, match="aligns images before the graph"):
        export_model(model, tmp_path / "part", resize_inside=True)


def test_an_input_that_is_no_whole_number_of_cells_is_refused(good):
    with pytest.raises(ParameterError, match="align"):
        PaDiM(align="rigid", **{**OPTIONS, "resize": 72}).fit(good[:6])


def test_groups_and_refits_of_aligned_images(good):
    doubled = [image for image in good[:30] for _ in (0, 1)]
    names = iter(range(10**6))
    grouped = PaDiM(align="rigid", groups=lambda _: next(names) // 2, **OPTIONS).fit(doubled)
    alone = PaDiM(align="rigid", **OPTIONS).fit(good[:30])
    assert np.median(grouped.leave_one_out_scores_) == pytest.approx(np.median(alone.leave_one_out_scores_), rel=0.1)


BLANK = np.full((128, 128, 3), 190, np.uint8)


def test_a_good_image_without_the_part_does_not_switch_the_threshold_off(good):
    alone = PaDiM(align="rigid", **OPTIONS).fit(good)
    spoilt = PaDiM(align="rigid", **OPTIONS).fit([*good, BLANK])
    assert spoilt.threshold_ == pytest.approx(alone.leave_one_out_scores_.max(), rel=0.1)
    assert spoilt.decision_.false_alarm_rate == pytest.approx(2 / 62)
    assert [spoilt.predict(image).pred_label for image in parts(4, first=2000, scratched=True)] == [1] * 4
    assert spoilt.predict(BLANK).p_value == pytest.approx(2 / 62)
    spoilt.set_threshold(false_alarm_rate=0.2)
    assert np.mean(spoilt.leave_one_out_scores_ > spoilt.threshold_) <= 0.2
    with pytest.raises(ParameterError, match="1 of 61 good images was not found"):
        spoilt.set_threshold(false_alarm_rate=0.05, certify=0.95)


def test_only_parts_that_are_held_out_count_as_flagged(good):
    model = PaDiM(align="rigid", calibrate="holdout", groups=None, **OPTIONS).fit([*good, BLANK, BLANK, BLANK, BLANK])
    assert model.n_images_ == 45
    assert model.decision_.n_groups == 16
    assert np.count_nonzero(model.leave_one_out_scores_ > 1e30) == 1
    assert model.threshold_ < 1e30


def test_lost_parts_count_in_the_figures_of_an_evaluation(model, tmp_path):
    samples = []
    for kind, images in (("good", parts(3, first=7000)), ("blank", [BLANK, BLANK])):
        for i, image in enumerate(images):
            path = tmp_path / f"{kind}{i}.png"
            Image.fromarray(image).save(path)
            samples.append(Sample(path, kind))
    Image.fromarray(BLANK).save(tmp_path / "good3.png")
    samples.append(Sample(tmp_path / "good3.png", "good"))
    figures = evaluate(model, samples)
    assert figures.found_at_5 == 1.0
    assert figures.flagged_at_5 == 0.25


def test_what_was_padding_before_the_alignment_is_inspected():
    tall = Placement((64, 32), (64, 32), (0, -16), (64, 64))
    quarter = replace(tall, affine=((0, -1, 64), (0.5, 0, 0)))
    assert tall.content == (0, 16, 64, 48)
    assert quarter.content == (0, 0, 64, 64)
    images = [Loaded(1, "image 1", None, np.zeros((64, 64, 3), np.uint8), place) for place in (tall, quarter)]
    maps = np.zeros((2, 64, 64), np.float32)
    maps[:, 32, 4] = 9
    assert [prediction.pred_score for prediction in judge(images, maps, None, None)] == [0, 9]


def test_two_good_images_inspect_what_both_show():
    model = PaDiM(align="rigid", **OPTIONS).fit(parts(2))
    assert model.factor_.known.mean() >= 0.2
    assert model.predict(photo(angle=40, seed=50, scratched=True)).pred_score > 0


@pytest.mark.parametrize("n", [3, 4, 6])
def test_few_good_images_do_not_flag_all_others(n):
    flagged = []
    for draw in range(4):
        model = PaDiM(align="rigid", **OPTIONS).fit(parts(n, first=1000 * draw))
        assert model.leave_one_out_scores_.min() > 0
        flagged += [model.predict(image).pred_label for image in parts(8, first=40_000 + draw)]
    assert np.mean(flagged) <= 0.5


def four_by_four(name):
    return int(re.search(r"\d+", name)[0]) // 4


@pytest.mark.parametrize("blocks", [1, 2])
def test_a_group_of_parts_that_show_less_is_left_out_as_by_a_refit(blocks, good, monkeypatch):
    noise = np.random.default_rng(0).normal(0, 20, good.shape)
    images, scores = (good + noise).clip(0, 255).astype(np.uint8), []
    for is_large in (lambda *_, **__: False, lambda n_members, *_, **__: n_members > 1):
        for module in (fit, leave_one_out):
            monkeypatch.setattr(module, "is_large", is_large)
        model = PaDiM(align="rigid", **OPTIONS, groups=four_by_four, blocks=blocks).fit(images)
        assert 15 <= model.decision_.n_groups <= 16
        scores.append(model.decision_.scores)
    np.testing.assert_allclose(*scores, rtol=0.15)  # what regularises is neglected
