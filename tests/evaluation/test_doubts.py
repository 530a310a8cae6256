"""What an evaluation says of images that were learnt from, of unusual masks, and of labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from conftest import SMALL, textured
from flawmap import PaDiM
from flawmap.datasets import Sample, open_dataset
from flawmap.errors import DatasetError
from flawmap.evaluation import evaluate, labelled_scores
from flawmap.images import LEARNT

SHAPE = np.zeros((64, 64), np.uint8)
SHAPE[24:40, 38:43] = 255


@pytest.fixture
def parts(tmp_path, good_images, scratched):
    """Six good images, of which the model has learnt the first two, and three scratched ones."""
    rng = np.random.default_rng(5)
    good = [*good_images[:2], *(textured(rng) for _ in range(4))]
    folder = tmp_path / "part"
    pictures = {f"test/good/{i}.png": image for i, image in enumerate(good)}
    pictures |= {f"test/scratch/{i}.png": np.roll(scratched, i, axis=0) for i in range(3)}
    pictures |= {f"ground_truth/scratch/{i}_mask.png": np.roll(SHAPE, i, axis=0) for i in range(3)}
    for name, picture in pictures.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / name)
    return folder


def without_learnt(folder):
    data = open_dataset(folder)
    return replace(data, test=tuple(s for s in data.test if s.is_anomalous or int(s.path.stem) > 1))


def test_images_that_were_learnt_from_are_counted(small_model, parts):
    result = evaluate(small_model, open_dataset(parts))
    said, first = result.warnings, parts / "test/good/0.png"
    assert result.remarks == {LEARNT: (str(first), str(parts / "test/good/1.png"))}
    assert said == (f"2 of 6 good images were learnt from: their scores are too low, leave them out; first {first}",)
    assert labelled_scores(small_model, open_dataset(parts).test).warnings == said
    assert evaluate(small_model, without_learnt(parts)).warnings == ()
    assert labelled_scores(small_model, without_learnt(parts).test).warnings == ()


def test_an_anomalous_image_that_was_learnt_from_is_said(small_model, parts, good_images):
    Image.fromarray(good_images[3]).save(parts / "test/scratch/1.png")
    said = evaluate(small_model, without_learnt(parts)).warnings
    assert said == (
        f"1 of 3 anomalous images were learnt from as good ones: fit again without them; first "
        f"{parts / 'test/scratch/1.png'}",
    )


def test_without_digests_low_scores_are_asked_about(good_images, parts, monkeypatch):
    model = PaDiM(**SMALL).fit(good_images)
    for i, image in enumerate(good_images):
        Image.fromarray(image).save(parts / f"test/good/{i}.png")
    monkeypatch.setattr(model, "_images", None)  # as of a file of format 2
    model._prepare()
    [said] = evaluate(model, open_dataset(parts)).warnings
    assert said.startswith("these good images score lower than images that the model has not seen: were they,")
    assert labelled_scores(model, open_dataset(parts).test).warnings == (said,)


def test_good_images_of_another_kind_are_said(small_model, parts, good_images):
    for i, image in enumerate(good_images):
        Image.fromarray(255 - image).save(parts / f"test/good/{i}.png")
    [said] = evaluate(small_model, open_dataset(parts)).warnings
    assert said.startswith("the scores of these good parts differ from those of the training images (uniformity")


def test_images_of_one_label_are_said(small_model, parts):
    test = without_learnt(parts).test
    good, anomalous = ([s for s in test if s.is_anomalous == kind] for kind in (False, True))
    assert evaluate(small_model, good).warnings[-1] == ("there are no anomalous images: AUROC and miss rate need some")
    assert evaluate(small_model, anomalous).warnings == (
        "there are no good images: AUROC and false-alarm rate need some",
    )


def test_an_image_with_two_labels_is_refused(small_model, parts):
    path = parts / "test/good/3.png"
    with pytest.raises(DatasetError, match=r"3\.png: is given twice, as good and as dent"):
        evaluate(small_model, [Sample(path, "good"), Sample(path, "dent")])


def test_masks_that_mark_nothing_are_counted_and_left_out(small_model, parts):
    masks = parts / "ground_truth" / "scratch"
    whole = evaluate(small_model, without_learnt(parts))
    Image.new("L", (64, 64)).save(masks / "0_mask.png")
    result = evaluate(small_model, without_learnt(parts))
    assert result.warnings == (
        f"1 of 3 masks mark nothing: first {masks / '0_mask.png'}; their images are left out of the pixel figures",
    )
    fewer = [s if s.path.stem != "0" else replace(s, mask_path=None) for s in without_learnt(parts).test]
    assert result.pixel_auroc == evaluate(small_model, fewer).pixel_auroc != whole.pixel_auroc
    for name in ("1_mask.png", "2_mask.png"):
        Image.new("L", (64, 64)).save(masks / name)
    result = evaluate(small_model, without_learnt(parts))
    assert result.pixel_auroc is result.pro_score is None
    assert result.warnings[-1].startswith("3 of 3 masks mark nothing: first")


def test_masks_outside_the_crop_and_unusual_masks_are_said(small_model, parts):
    masks = parts / "ground_truth" / "scratch"
    corner = np.zeros((64, 64), np.uint8)
    corner[0] = 255  # the model crops 64 of 72 pixels
    Image.fromarray(corner).save(masks / "0_mask.png")
    for i in (1, 2):
        Image.fromarray(np.roll(SHAPE, i, axis=0) // 255 + np.uint8(1)).save(masks / f"{i}_mask.png")
    usual = evaluate(small_model, without_learnt(parts))
    assert usual.warnings == (
        f"1 of 3 masks mark nothing that the model sees, after resize, crop and region of interest: first "
        f"{masks / '0_mask.png'}",
        f"{masks / '1_mask.png'} and 1 more masks: holds 1, 2 and no 0; 1 is taken for good, the rest for anomalous",
    )


def test_masks_that_were_not_found_are_said(small_model, parts):
    (parts / "ground_truth").rename(parts / "truths")
    [said] = evaluate(small_model, without_learnt(parts)).warnings
    assert said.startswith("none of 3 masks found; looked for ground_truth/TYPE/NAME_mask.png,")
