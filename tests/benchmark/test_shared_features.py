from __future__ import annotations

import numpy as np
import pytest

from flawmap import PaDiM
from flawmap.backbones import load_backbone
from flawmap.benchmark.paper.class_images import open_class, rotated
from flawmap.benchmark.paper.scores import run_curves, run_figures
from flawmap.benchmark.paper.shared_features import SharedFeatures, SharedModels
from flawmap.datasets import open_dataset
from flawmap.errors import DatasetError, ParameterError
from flawmap.evaluation.evaluate import evaluate
from flawmap.evaluation.figures import ImageGroup

PLAIN = {"backbone": "resnet10t", "pretrained": False, "calibrate": None, "runtime": "torch"}
LAYERS = ("layer1", "layer2", "layer3")


def skip(_):
    """Progress that nobody wants to hear of."""


def share(images, tmp_path, limit, size):
    backbone = load_backbone("resnet10t", pretrained=False, runtime="torch")
    preprocessing = PaDiM(**PLAIN, **size).preprocessing
    features = SharedFeatures(images, backbone, preprocessing, folder=tmp_path, limit_bytes=limit)
    features.compute(lambda _: None)
    return features


def maps_of(models, features):
    return dict(enumerate(one.anomaly_map for one in SharedModels(models, features, skip).predictions(skip)))


@pytest.mark.parametrize("limit", [0, 2_000_000, 10**9], ids=["nothing stored", "some", "all"])
@pytest.mark.parametrize(
    "options",
    [
        {"n_features": 20, "regularization": "paper"},
        {"n_features": 20, "reduction": "pca", "regularization": "paper"},
        {"n_features": 20, "regularization": "likelihood"},
        {"layers": ("layer2",), "regularization": "paper"},
    ],
    ids=["draw", "pca", "likelihood", "one layer"],
)
def test_maps_are_those_of_a_padim_fitted_alone(parts, tmp_path, small_inputs, options, limit):
    images = open_class("mvtec_ad", parts / "screw")
    model = PaDiM(**PLAIN, **small_inputs, **options)
    got = maps_of([model], share(images, tmp_path, limit, small_inputs))
    wanted = (
        PaDiM(**PLAIN, **small_inputs, **options)
        .fit(list(images.train))
        .predict([image.source for image in images.test])
    )
    assert sorted(got) == list(range(len(wanted)))
    for index, prediction in enumerate(wanted):
        np.testing.assert_allclose(got[index], prediction.anomaly_map, rtol=2e-3)


def test_the_sum_is_that_of_the_three_models_maps(parts, tmp_path, small_inputs):
    images = open_class("mvtec_ad", parts / "screw")
    features = share(images, tmp_path, 10**9, small_inputs)
    models = [PaDiM(**PLAIN, **small_inputs, layers=(layer,), regularization="paper") for layer in LAYERS]
    total = maps_of(models, features)
    each = [maps_of([model], features) for model in models]
    for index, summed in total.items():
        np.testing.assert_allclose(summed, sum(one[index] for one in each), rtol=1e-5)


@pytest.mark.parametrize("limit", [0, 10**9], ids=["nothing stored", "all"])
@pytest.mark.parametrize("rule", ["paper", "likelihood", (0.1, 0.05)])
def test_held_out_scores_are_those_of_a_padim_fitted_alone(parts, tmp_path, small_inputs, rule, limit):
    images = open_class("mvtec_ad", parts / "screw")
    options = {**PLAIN, **small_inputs, "n_features": 20, "regularization": rule}
    found = SharedModels([PaDiM(**options)], share(images, tmp_path, limit, small_inputs), skip).held_out()
    wanted = PaDiM(**options | {"calibrate": "leave-one-out", "refit_below": 0}).fit(list(images.train))
    np.testing.assert_allclose(found.scores, wanted.leave_one_out_scores_, rtol=2e-3)


def test_held_out_scores_of_a_sum_are_of_its_maps(parts, tmp_path, small_inputs):
    features = share(open_class("mvtec_ad", parts / "screw"), tmp_path, 10**9, small_inputs)
    models = [PaDiM(**PLAIN, **small_inputs, layers=(layer,), regularization="paper") for layer in LAYERS]
    total = SharedModels(models, features, skip).held_out()
    each = [SharedModels([model], features, skip).held_out() for model in models]
    assert (total.scores <= sum(one.scores for one in each) * 1.0001).all()
    assert all((total.scores >= one.scores * 0.9999).all() for one in each)


def test_what_is_stored_leaves_no_file_behind(parts, tmp_path, small_inputs):
    (tmp_path / "0.float32").write_bytes(b"somebody's")
    features = share(open_class("mvtec_ad", parts / "screw"), tmp_path, 10**9, small_inputs)
    assert features._stored[0].nbytes > 0
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("0.float32", b"somebody's")]


def test_without_room_it_fails_at_once(parts, tmp_path, small_inputs):
    resource = pytest.importorskip("resource")
    images, limits = open_class("mvtec_ad", parts / "screw"), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(ParameterError, match=rf"{tmp_path}: cannot hold .* GB of features .*--cache-gb"):
            share(images, tmp_path, 10**9, small_inputs)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_figures_are_those_of_evaluate(parts, tmp_path, small_inputs):
    images = open_class("mvtec_ad", parts / "screw")
    features = share(images, tmp_path, 10**9, small_inputs)
    options = {**PLAIN, **small_inputs, "n_features": 20, "regularization": "paper"}
    models = SharedModels([PaDiM(**options)], features, skip)
    good, anomalous = ImageGroup(is_anomalous=False), ImageGroup(is_anomalous=True)
    for index, one in enumerate(models.predictions(skip)):
        mask = images.mask(index, features.preprocessing, one.placement)
        (anomalous if images.test[index].is_anomalous else good).add(one.pred_score, one.anomaly_map, mask)
    data = open_dataset(parts / "screw")
    wanted = evaluate(PaDiM(**options).fit(data.train), data.test)
    figures = run_figures(good, anomalous)
    assert figures["image_auroc"] == wanted.image_auroc
    assert figures["pixel_auroc"] == pytest.approx(wanted.pixel_auroc, abs=1e-5)
    assert figures["pro_score"] == pytest.approx(wanted.pro_score, abs=1e-5)
    assert set(run_curves(good, anomalous)) == {"image_roc", "pixel_roc", "pro"}


def test_rotated_images_have_their_masks_and_differ_by_seed(parts):
    first, second = (rotated(open_class("mvtec_ad", parts / "screw"), seed=seed) for seed in (0, 1))
    assert (len(first.train), len(first.test)) == (8, 7)
    assert first.train[0].shape == (224, 224, 3)
    assert [image.mask is not None for image in first.test] == [image.type == "scratch" for image in first.test]
    assert not np.array_equal(first.train[0], second.train[0])


def test_a_mask_of_another_size_is_refused(parts, small_inputs):
    images = open_class("mvtec_ad", parts / "screw")
    preprocessing = PaDiM(**PLAIN, **small_inputs).preprocessing
    index = [image.type for image in images.test].index("scratch")
    with pytest.raises(DatasetError, match=r"the mask .* is of \(64, 64\), its image .* of \(32, 64\)"):
        images.mask(index, preprocessing, preprocessing.place((32, 64)))


def test_a_class_without_test_images_says_so(tmp_path, good_folder):
    (tmp_path / "part" / "train").mkdir(parents=True)
    good_folder.rename(tmp_path / "part" / "train" / "good")
    (tmp_path / "part" / "test").mkdir()
    with pytest.raises(DatasetError):
        open_class("mvtec_ad", tmp_path / "part")
