from __future__ import annotations

import math

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score

from flawmap import MahalanobisAD, PaDiM, Prediction, load
from flawmap.backbones import Backbone
from flawmap.datasets import Sample, open_dataset
from flawmap.errors import ImageError, NotFittedError, ParameterError, TrainingSetError, WeightsError
from flawmap.evaluation.evaluate import evaluate
from flawmap.openvino_module import has_bfloat16

SMALL = {"backbone": "resnet10t", "pretrained": False, "resize": 64, "regularization": "paper", "refit_below": 0}
SMALL |= {"align": "none"}


@pytest.fixture(scope="module")
def model(good_images):
    return PaDiM(**SMALL).fit(good_images)


def test_a_scratch_is_scored_above_good_parts_and_found_where_it_is(model, good_images, scratched):
    good, bad = model.predict(good_images[1]), model.predict(scratched)
    assert bad.pred_score > 2 * good.pred_score
    row, column = np.unravel_index(bad.anomaly_map.argmax(), bad.anomaly_map.shape)
    assert 20 <= row <= 44
    assert 34 <= column <= 47


def test_a_prediction_carries_its_map_score_and_place(model, good_folder):
    prediction = model.predict(good_folder / "000.png")
    assert isinstance(prediction, Prediction)
    assert prediction.path == str(good_folder / "000.png")
    assert prediction.anomaly_map.shape == (64, 64)
    assert prediction.anomaly_map.dtype == np.float32
    assert prediction.pred_score == prediction.anomaly_map.max()
    with pytest.raises(AttributeError):
        prediction.pred_score = 0


def test_every_kind_of_input_gives_the_same_scores(model, good_images, good_folder):
    paths = sorted(good_folder.iterdir())
    wanted = [prediction.pred_score for prediction in model.predict(good_images)]
    inputs = [good_folder, str(good_folder), f"{good_folder}/*.png", paths, [str(path) for path in paths]]
    inputs += [list(good_images), [Image.fromarray(image) for image in good_images], iter(good_images), [good_folder]]
    for images in inputs:
        predictions = model.predict(images)
        assert [prediction.pred_score for prediction in predictions] == pytest.approx(wanted, rel=1e-5)
    for single in (paths[3], str(paths[3]), good_images[3], Image.open(paths[3])):
        assert model.predict(single).pred_score == pytest.approx(wanted[3], rel=1e-4)


def test_of_a_data_set_only_the_good_images_are_learnt(good_folder, good_images, tmp_path):
    (tmp_path / "part" / "train").mkdir(parents=True)
    good_folder.rename(tmp_path / "part" / "train" / "good")
    (tmp_path / "part" / "test" / "bent").mkdir(parents=True)
    Image.fromarray(255 - good_images[0]).save(tmp_path / "part" / "test" / "bent" / "0.png")
    assert PaDiM(**SMALL).fit(tmp_path / "part").n_images_ == 12


def test_distances_are_those_under_the_map(model, good_images):
    distances = model.distances(good_images[:3])
    assert distances.shape == (3, 16, 16)
    assert np.all(distances >= 0)
    mean, covariance = model.gaussian(5, 7)
    assert mean.shape == (model.channels_.size,)
    assert np.linalg.eigvalsh(covariance).min() >= 0.99 * model.regularization_.ridge


def test_a_map_comes_back_at_the_size_and_place_of_the_original(good_images, scratched):
    model = PaDiM(**SMALL | {"crop": 48}).fit(good_images)
    tall = np.repeat(np.repeat(scratched, 3, axis=0), 2, axis=1)
    prediction = model.predict(tall)
    original = prediction.original_map(outside=float("nan"))
    assert original.shape == prediction.image_size == (192, 128)
    assert np.isnan(original[:24]).all()
    row, column = np.unravel_index(np.nanargmax(original), original.shape)
    assert 60 <= row <= 132
    assert 68 <= column <= 94


def test_the_padding_of_a_letterbox_is_not_evaluated(good_images, scratched, tmp_path):
    model = PaDiM(**SMALL | {"aspect": "letterbox"}).fit([image[:32] for image in good_images])
    mask = np.zeros((32, 64), np.uint8)
    mask[24:, 38:43] = 255
    for name, content in (("bad", scratched[:32]), ("good", good_images[0][:32]), ("mask", mask)):
        Image.fromarray(content).save(tmp_path / f"{name}.png")
    samples = [Sample(tmp_path / "good.png", "good"), Sample(tmp_path / "bad.png", "scratch", tmp_path / "mask.png")]
    predictions = model.predict([sample.path for sample in samples])
    top, left, bottom, right = predictions[0].placement.content
    assert (bottom - top, right - left) != model.preprocessing.input_size
    maps = np.stack([prediction.anomaly_map[top:bottom, left:right] for prediction in predictions])
    marked = model.preprocessing.apply_mask(mask > 0, predictions[1].placement)[top:bottom, left:right]
    truth = np.stack([np.zeros_like(marked), marked])
    assert evaluate(model, samples).pixel_auroc == pytest.approx(roc_auc_score(truth.ravel(), maps.ravel()), abs=1e-9)


def test_the_padding_of_a_letterbox_counts_for_nothing(good_images, scratched):
    model = PaDiM(**SMALL | {"aspect": "letterbox"}).fit([image[:32] for image in good_images])
    prediction = model.predict(scratched[16:48])
    assert prediction.placement.content == (16, 0, 48, 64)
    assert not prediction.anomaly_map[:16].any()
    assert prediction.anomaly_map[16:48].all()
    assert prediction.original_map().shape == (32, 64)


@pytest.mark.parametrize("n_images", [2, 5])
def test_few_images_are_enough(good_images, scratched, n_images):
    model = PaDiM(**SMALL).fit(good_images[:n_images])
    assert model.n_images_ == n_images
    assert math.isfinite(model.predict(scratched).pred_score)


@pytest.mark.parametrize("n_images", [0, 1])
def test_too_few_images_are_refused(good_images, n_images):
    with pytest.raises(TrainingSetError, match=f"at least 2 good images, got {n_images} usable"):
        PaDiM(**SMALL).fit(good_images[:n_images])


def test_duplicates_leave_only_the_regularisation(good_images, scratched):
    model = PaDiM(**SMALL).fit([good_images[0]] * 4)
    assert model.predict(good_images[0]).pred_score == pytest.approx(0, abs=0.05)
    assert model.predict(scratched).pred_score > 1


def test_a_bad_image_is_named_or_left_out(good_images):
    images = [*good_images, np.zeros((4, 4), np.float32)]
    with pytest.raises(ImageError, match=r"^image 13: expected uint8"):
        PaDiM(**SMALL).fit(images)
    bad: list[ImageError] = []
    model = PaDiM(**SMALL).fit(images, on_bad=bad.append)
    assert (model.n_images_, len(bad)) == (12, 1)
    assert len(model.predict(images, on_bad=bad.append)) == 12
    assert len(bad) == 2


def test_progress_is_told(good_images):
    told: list[tuple[int, int | None]] = []
    PaDiM(**SMALL).fit(good_images, progress=lambda done, total: told.append((done, total)), batch_size=5)
    assert told == [(5, 12), (10, 12), (12, 12)] * 2  # learning, then calibrating


@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_the_batch_size_changes_nothing(model, good_images, batch_size):
    other = PaDiM(**SMALL).fit(iter(good_images), batch_size=batch_size)
    np.testing.assert_allclose(other.distances(good_images), model.distances(good_images), rtol=1e-3)


def test_a_draw_and_explicit_channels(good_images):
    drawn = PaDiM(**SMALL, n_features=50, seed=4).fit(good_images)
    given = PaDiM(**SMALL | {"seed": 4}, channels=drawn.channels_.tolist()).fit(good_images)
    assert drawn.channels_.size == 50
    np.testing.assert_allclose(given.distances(good_images), drawn.distances(good_images), rtol=1e-6)


@pytest.mark.parametrize(
    ("size", "layers"),
    [
        ((64, 96), ["layer1", "layer2", "layer3"]),
        ((61, 83), ["layer1", "layer2", "layer3"]),
        (40, ["layer2"]),
        (72, ["act1", "layer1", "layer2", "layer3", "layer4"]),
    ],
)
def test_any_size_and_any_one_to_five_layers(good_images, scratched, tmp_path, size, layers):
    model = PaDiM(**SMALL | {"resize": size}, layers=layers, n_features=40).fit(good_images)
    prediction = model.predict(scratched)
    assert prediction.anomaly_map.shape == (size if isinstance(size, tuple) else (size, size))
    model.save(tmp_path / "m.flawmap")
    assert load(tmp_path / "m.flawmap").predict(scratched).pred_score == pytest.approx(prediction.pred_score, rel=1e-5)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_features": 0}, "n_features must be a whole number from 1"),
        ({"n_features": 10**6}, "n_features must lie between 1"),
        ({"n_features": 1.5}, "n_features must be a whole number from 1"),
        ({"groups": ["a"]}, "groups must be 'auto', a regular expression"),
        ({"channels": [1.5]}, "list of integers"),
        ({"channels": [10**6]}, "distinct indices"),
        ({"regularization": -1}, "finite number >= 0"),
        ({"regularization": math.nan}, "finite number >= 0"),
        ({"resize": 0}, "resize must be"),
        ({"crop": 65}, "must fit into"),
        ({"layers": "layer1"}, "list of names"),
        ({"calibrate": "twice"}, "calibrate must be"),
        ({"false_alarm_rate": 0}, "between 0 and 1"),
        ({"cache_mb": -1}, "cache_mb must be"),
    ],
)
def test_impossible_parameters_are_refused_by_fit(good_images, parameters, message):
    with pytest.raises(ParameterError, match=message):
        PaDiM(**SMALL | parameters).fit(good_images)


def test_nothing_is_predicted_before_fit(good_images, tmp_path):
    for use in (PaDiM().predict, PaDiM().distances):
        with pytest.raises(NotFittedError, match=r"call fit\(good_images\)"):
            use(good_images)
    with pytest.raises(NotFittedError):
        PaDiM().save(tmp_path / "m.flawmap")


def test_a_decision_comes_with_every_prediction(model, good_images, scratched, tmp_path):
    assert model.leave_one_out_scores_.shape == (12,)
    assert model.threshold_ == model.leave_one_out_scores_.max()  # twelve images cannot promise one per cent
    assert model.decision_.false_alarm_rate == pytest.approx(1 / 13)
    bad, good = model.predict(scratched), model.predict(good_images[0])
    assert (bad.pred_label, good.pred_label) == (1, 0)
    assert bad.p_value == pytest.approx(1 / 13)
    assert bad.pred_mask.shape == (64, 64)
    assert bad.pred_mask[28:36, 38:43].all()
    top, left, bottom, right = bad.regions[0].box
    assert top < 30 < bottom
    assert left < 40 < right
    assert not good.pred_mask.any()
    model.save(tmp_path / "m.flawmap")
    again = load(tmp_path / "m.flawmap")
    assert again.predict(scratched).p_value == bad.p_value
    again.set_threshold(false_alarm_rate=0.5).save(tmp_path / "m.flawmap")
    assert load(tmp_path / "m.flawmap").threshold_ == np.sort(model.leave_one_out_scores_)[6]
    assert again.set_threshold(value=1e9).predict(scratched).pred_label == 0
    with pytest.raises(ParameterError, match="either"):
        again.set_threshold(value=1, false_alarm_rate=0.1)


def test_a_leave_one_out_score_is_that_of_a_model_without_the_image(model, good_images):
    for i in (0, 7):
        without = PaDiM(**SMALL | {"calibrate": None}).fit(np.delete(good_images, i, axis=0))
        score = without.predict(good_images[i]).pred_score
        assert model.leave_one_out_scores_[i] == pytest.approx(score, rel=0.1)  # the ridge's factor, 1 / 10 here


def test_an_outlier_and_copies_among_the_good_images_are_named(good_images, scratched):
    rng = np.random.default_rng(3)
    many = [
        np.clip(image + rng.normal(0, 5, image.shape), 0, 255).astype(np.uint8) for image in good_images for _ in (1, 2)
    ]
    model = PaDiM(**SMALL, groups=None).fit([*many[:10], scratched, *many[10:], many[3]])
    assert model.outliers_ == ("image 11",)
    assert model.copies_ == ("image 26",)
    assert PaDiM(**SMALL, groups=None).fit(many).outliers_ == ()


def test_scores_stay_the_same_whatever_is_kept_in_memory(model, good_folder, good_images):
    for images, budget in ((good_folder, 0), (good_folder, 0.03), (iter(good_images), 128)):
        other = PaDiM(**SMALL | {"cache_mb": budget}).fit(images)
        np.testing.assert_allclose(other.leave_one_out_scores_, model.leave_one_out_scores_, rtol=1e-3)
    many = iter([*good_images] * 3)  # an iterator of more than a few cannot be read again
    some = PaDiM(**SMALL | {"cache_mb": 0.03, "runtime": "torch", "groups": None}).fit(many)
    assert len(some.leave_one_out_scores_) == 2


@pytest.mark.parametrize(("budget", "groups", "n_seen"), [(64, None, 12), (64, r"(\d)\.png$", 12), (0.2, None, 24)])
def test_the_backbone_runs_once_where_memory_allows(good_folder, monkeypatch, budget, groups, n_seen):
    seen = []
    parts = Backbone.parts
    monkeypatch.setattr(Backbone, "parts", lambda self, pixels: seen.append(len(pixels)) or parts(self, pixels))
    found = PaDiM(**SMALL | {"cache_mb": budget, "groups": groups}).fit(good_folder)
    assert sum(seen) == n_seen
    again = PaDiM(**SMALL | {"cache_mb": 0, "groups": groups}).fit(good_folder)
    np.testing.assert_allclose(found.leave_one_out_scores_, again.leave_one_out_scores_, rtol=1e-4)


def test_without_calibration_there_is_a_score_but_no_decision(good_images, scratched, tmp_path):
    for model in (PaDiM(**SMALL, calibrate=None).fit(good_images), PaDiM(**SMALL).fit(good_images[:2])):
        model.save(tmp_path / "m.flawmap")
        prediction = load(tmp_path / "m.flawmap").predict(scratched)
        assert (prediction.pred_label, prediction.p_value, prediction.pred_mask, prediction.regions) == (
            None,
            None,
            None,
            (),
        )
        with pytest.raises(NotFittedError, match="calibrate='leave-one-out' on at least 3"):
            model.set_threshold(value=3)


def test_presets():
    preset = PaDiM.from_preset("padim-wr50-rd550", seed=3)
    assert (preset.backbone, preset.n_features, preset.resize, preset.crop) == ("wide_resnet50_2", 550, 256, 224)
    with pytest.raises(ParameterError, match="unknown preset 'padim'; there are padim-r18-rd100"):
        PaDiM.from_preset("padim")


def test_the_effnet_preset_reads_stages_2_4_and_5(good_images):
    model = PaDiM.from_preset("padim-effnet-b5", pretrained=False, resize=64, crop=None).fit(good_images[:3])
    assert model.describe()["n_channels"] == [40, 128, 176]


def test_a_model_with_weights_from_a_file_finds_them_again(good_images, tmp_path, monkeypatch):
    monkeypatch.delenv("FLAWMAP_WEIGHTS", raising=False)
    weights, folder = tmp_path / "mine.safetensors", tmp_path / "models"
    save_file(timm.create_model("resnet10t").state_dict(), weights)
    folder.mkdir()
    fitted = PaDiM(**SMALL | {"pretrained": True}, weights=weights).fit(good_images)
    fitted.save(folder / "m.flawmap")
    wanted = fitted.predict(good_images[0]).pred_score
    with pytest.raises(WeightsError, match=r"weights of 'mine\.safetensors'.*it was .*mine\.safetensors"):
        load(folder / "m.flawmap")  # a path that the model file names is not opened
    weights.rename(folder / "mine.safetensors")
    assert load(folder / "m.flawmap").predict(good_images[0]).pred_score == pytest.approx(wanted, rel=1e-6)
    (folder / "mine.safetensors").rename(tmp_path / "elsewhere.safetensors")
    with pytest.raises(WeightsError, match=r"weights of 'mine\.safetensors'.* needed again"):
        load(folder / "m.flawmap")
    load(folder / "m.flawmap", weights=tmp_path / "elsewhere.safetensors")
    save_file(timm.create_model("resnet10t").state_dict(), weights)
    with pytest.raises(WeightsError, match="are others"):
        load(folder / "m.flawmap", weights=weights)


def test_memory_of_the_caller_is_left_alone(model, good_images):
    before = good_images.copy()
    prediction = model.predict(good_images[0])
    prediction.anomaly_map[:] = 0
    assert np.array_equal(before, good_images)
    assert model.predict(good_images[0]).pred_score > 0
    assert not torch.is_inference_mode_enabled()


FEW = SMALL | {"n_features": 40, "regularization": 1e-4}


@pytest.fixture(scope="module")
def burst(good_images):
    """Each good part three times with other noise: (36, 64, 64, 3); images 3 i to 3 i + 2 are of one part."""
    rng = np.random.default_rng(5)
    return [
        np.clip(image + rng.normal(0, 1, image.shape), 0, 255).astype(np.uint8)
        for image in good_images
        for _ in range(3)
    ]


def part_of(name):
    """The part of a burst's image, from a name such as "image 5"."""
    return (int(name.split()[1]) - 1) // 3


def test_near_duplicates_are_groups_by_themselves(burst):
    alone = PaDiM(**FEW, groups=None).fit(burst)
    assert {name for _, name in alone.duplicates_} >= {f"image {3 * i + 2}" for i in range(12)}
    assert all(part_of(earlier) == part_of(later) for earlier, later in alone.duplicates_)
    grouped = PaDiM(**FEW, groups=part_of).fit(burst)
    found = PaDiM(**FEW).fit(burst)
    for model in (grouped, found):
        assert model.duplicates_ == ()
        assert model.decision_.n_groups == 12
        assert np.median(model.leave_one_out_scores_) > 1.2 * np.median(alone.leave_one_out_scores_)
        assert model.decision_.lowest_rate == pytest.approx(1 / 13)
    np.testing.assert_array_equal(found.leave_one_out_scores_, grouped.leave_one_out_scores_)
    assert [len(names) for names in found.groups_] == [3] * 12
    assert alone.groups_ == grouped.groups_ == ()
    assert found.describe()["decision"]["n_groups"] == 12


def test_groups_choose_the_regularization(burst):
    """As when the groups are named."""
    auto = FEW | {"regularization": "auto"}
    found, grouped, alone = (PaDiM(**auto, groups=groups).fit(burst) for groups in ("auto", part_of, None))
    assert found.regularization_ == grouped.regularization_
    assert found.regularization_.sharing > alone.regularization_.sharing


def test_independent_images_and_those_without_calibration(good_images, burst):
    assert PaDiM(**FEW).fit(good_images).groups_ == ()
    model = PaDiM(**FEW, calibrate=None).fit(burst)
    assert (model.decision_, len(model.groups_)) == (None, 12)


def test_a_held_out_image_like_one_that_was_learnt_is_named(burst):
    """Groups must be known before the first pass then."""
    model = PaDiM(**FEW, calibrate="holdout").fit([*burst, burst[7]])
    assert model.groups_ == (("image 8", "image 37"),)
    assert len(model.duplicates_) >= 12


def test_clips_of_a_data_set_are_groups(burst, tmp_path):
    lines = ["path,label,split,group"]
    for i, image in enumerate(burst):
        Image.fromarray(image).save(tmp_path / f"{i:02}.png")
        lines.append(f"{i:02}.png,good,train,part {i // 6}")
    table = tmp_path / "parts.csv"
    table.write_text("\n".join(lines))
    for images in (table, open_dataset(table)):
        model = PaDiM(**FEW).fit(images)
        assert (model.decision_.n_groups, model.groups_, model.copies_) == (6, (), ())
    assert PaDiM(**FEW, groups=None).fit(table).decision_.n_groups == 36
    assert PaDiM(**FEW, groups=r"(\d)\d\.png").fit(table).decision_.n_groups == 4
    said = MahalanobisAD(resize=64, pretrained=False, backbone="resnet10t").fit(table).remarks_
    [names] = [names for remark, names in said.items() if "leaves out single images" in remark]
    assert len(names) == 36


def test_a_group_is_scored_by_a_model_without_it(burst):
    grouped = PaDiM(**FEW, groups=part_of).fit(burst)
    without = PaDiM(**FEW | {"calibrate": None}).fit(burst[:6] + burst[9:])
    expected = [prediction.pred_score for prediction in without.predict(burst[6:9])]
    # three of 36 images are a large group, so this is a refit, exact but for float32
    np.testing.assert_allclose(grouped.leave_one_out_scores_[6:9], expected, rtol=1e-3)


def test_groups_by_folder_and_by_expression(burst, tmp_path):
    for i, image in enumerate(burst):
        folder = tmp_path / "clips" / f"clip{i // 3:02}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i % 3}.png")
    by_function = PaDiM(**FEW, groups=part_of).fit(burst)
    for groups in ("folder", r"clip(\d+)"):
        model = PaDiM(**FEW, groups=groups).fit(tmp_path / "clips")
        np.testing.assert_allclose(model.leave_one_out_scores_, by_function.leave_one_out_scores_, rtol=1e-4)
    model.save(tmp_path / "m.flawmap")
    again = load(tmp_path / "m.flawmap")
    assert again.decision_.n_groups == 12
    assert again.predict(burst[0]).p_value == model.predict(burst[0]).p_value
    with pytest.raises(ParameterError, match="matches no image's path"):
        PaDiM(**FEW, groups="lot_[0-9]+").fit(tmp_path / "clips")
    with pytest.raises(ParameterError, match="no regular expression"):
        PaDiM(**FEW, groups="(").fit(tmp_path / "clips")


def test_all_images_in_one_group_give_no_decision(good_images):
    assert PaDiM(**FEW, groups=lambda _: "all").fit(good_images).decision_ is None


def test_holdout_scores_a_quarter_with_a_model_of_the_rest(good_images, tmp_path):
    model = PaDiM(**FEW, calibrate="holdout", seed=3).fit(good_images)
    assert model.n_images_ == 9
    assert len(model.decision_.scores) == 3
    scores = np.array([prediction.pred_score for prediction in model.predict(good_images)])
    unseen = np.isclose(scores[:, None], model.decision_.scores, rtol=1e-4).any(axis=1)
    assert unseen.sum() == 3
    assert scores[unseen].min() > scores[~unseen].max()
    model.save(tmp_path / "m.flawmap")
    assert load(tmp_path / "m.flawmap").calibrate == "holdout"
    grouped = PaDiM(**FEW, calibrate="holdout", groups=lambda name: int(name.split()[1]) % 4).fit(good_images)
    assert (grouped.n_images_, grouped.decision_.n_groups) == (9, 1)


def test_auto_chooses_what_regularises_and_saves_it(good_images, scratched, tmp_path):
    model = PaDiM(**FEW | {"regularization": "auto"}).fit(good_images)
    assert model.regularization_.ridge > 0
    model.save(tmp_path / "m.flawmap")
    again = load(tmp_path / "m.flawmap")
    assert again.regularization == "auto"
    assert again.regularization_ == model.regularization_
    assert again.predict(scratched).p_value == pytest.approx(1 / 13)
    given = (model.regularization_.sharing, model.regularization_.ridge)
    same = PaDiM(**FEW | {"regularization": given}).fit(good_images)
    np.testing.assert_array_equal(same.leave_one_out_scores_, model.leave_one_out_scores_)


def test_auto_on_identical_images_and_on_two_is_the_papers(good_images):
    for images in ([good_images[0]] * 4, good_images[:2]):
        assert PaDiM(**FEW | {"regularization": "auto"}).fit(images).regularization_.ridge == 0.01


@pytest.mark.parametrize("value", ["best", (1.5, 0.1), (0.1,), (0.1, -1), (0.1, math.inf), None, "0.1"])
def test_regularization_that_cannot_be_meant_is_refused(value, good_images):
    with pytest.raises(ParameterError, match="regularization must be 'auto', 'likelihood', 'paper'"):
        PaDiM(**FEW | {"regularization": value}).fit(good_images)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_sixteen_bits_halve_the_file_and_hardly_change_the_scores(good_images, scratched, tmp_path, dtype, tolerance):
    model = PaDiM(**SMALL).fit(good_images)
    model.save(tmp_path / "full.flawmap")
    model.save(tmp_path / "half.flawmap", dtype=dtype)
    assert (tmp_path / "half.flawmap").stat().st_size < 0.56 * (tmp_path / "full.flawmap").stat().st_size
    half = load(tmp_path / "half.flawmap")
    np.testing.assert_allclose(
        half.predict(scratched).anomaly_map, model.predict(scratched).anomaly_map, rtol=tolerance, atol=tolerance
    )
    half.set_threshold(false_alarm_rate=0.2).save(tmp_path / "again.flawmap")  # keeps its 16 bits
    assert (tmp_path / "again.flawmap").stat().st_size == pytest.approx(
        (tmp_path / "half.flawmap").stat().st_size, rel=0.01
    )
    with pytest.raises(ParameterError, match="dtype"):
        model.save(tmp_path / "x.flawmap", dtype="int8")


def test_openvino_and_torch_agree(good_images, scratched):
    torch_model = PaDiM(**FEW, runtime="torch").fit(good_images)
    other = PaDiM(**FEW, runtime="openvino").fit(good_images)
    np.testing.assert_allclose(
        other.predict(scratched).anomaly_map, torch_model.predict(scratched).anomaly_map, rtol=1e-3, atol=1e-3
    )
    np.testing.assert_allclose(other.leave_one_out_scores_, torch_model.leave_one_out_scores_, rtol=1e-3)


def test_a_model_remembers_its_precision(good_images, scratched, tmp_path):
    coarse = PaDiM(**FEW, runtime="openvino", precision="bfloat16").fit(good_images)
    coarse.save(tmp_path / "m.flawmap")
    assert load(tmp_path / "m.flawmap").precision == "bfloat16"
    assert coarse.predict(scratched).p_value == pytest.approx(1 / 13)


def test_auto_precision_is_what_the_processor_has_and_openvino_runs(good_images, tmp_path):
    model = PaDiM(**FEW, precision="auto").fit(good_images)
    assert model.backbone_.precision == ("bfloat16" if has_bfloat16() else "float32")
    model.save(tmp_path / "m.flawmap")
    assert load(tmp_path / "m.flawmap").describe()["backbone"]["precision"] == model.backbone_.precision
    assert PaDiM(**FEW, precision="auto", runtime="torch").fit(good_images).backbone_.precision == "float32"


def test_in_bfloat16_a_score_does_not_depend_on_how_many_images_came_before(good_images, scratched):
    model = PaDiM(**FEW, precision="bfloat16").fit(good_images)
    first = model.predict(scratched).pred_score
    model.predict(np.stack([scratched] * 40))
    assert model.predict(scratched).pred_score == first


@pytest.mark.parametrize("wrong", [{"runtime": "tensorrt"}, {"precision": "float8"}])
def test_runtimes_and_precisions_that_are_none(good_images, wrong):
    with pytest.raises(ParameterError, match="must be"):
        PaDiM(**FEW, **wrong).fit(good_images)


def test_a_model_that_is_fitted_again_is_stored_whole(model, good_images, tmp_path):
    model.save(tmp_path / "half.flawmap", dtype="float16")
    again = load(tmp_path / "half.flawmap")
    assert again.describe()["factor_dtype"] == "float16"
    assert again.fit(good_images).describe()["factor_dtype"] == "float32"
