from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.nn.functional import interpolate

from flawmap import SPADE, load
from flawmap.backbones import load_backbone
from flawmap.detectors.document import read_document
from flawmap.detectors.restoring import restore_detector
from flawmap.detectors.spade import search as spade_passes
from flawmap.errors import ModelFileError, ParameterError, TrainingSetError
from flawmap.model_file import ModelFile

SMALL = {"backbone": "resnet10t", "pretrained": False, "resize": 64}
LAYERS = ("layer1", "layer2", "layer3")


@pytest.fixture(scope="module")
def features(good_images, scratched):
    """Maps of three layers and the last one of the twelve good images and a bad one, float64."""
    backbone = load_backbone("resnet10t", layers=(*LAYERS, "layer4"), pretrained=False)
    return [maps.double() for maps in backbone.features(np.stack([*good_images, scratched]))]


def smoothed(distances):
    """A patch map (h, w) up-sampled and filtered, float64."""
    full = interpolate(distances[None, None], size=(64, 64), mode="bilinear", align_corners=False)[0, 0]
    return gaussian_filter(full.numpy(), sigma=4, mode="reflect", truncate=4)


def naive(features, k, variant, query=12, known=range(12)):
    """Score and map of an image by the equations, without any shortcut."""
    known = list(known)
    *layers, last = features
    pooled = last.mean(dim=(2, 3))
    distances = (pooled[known] - pooled[query]).square().sum(1)
    values, places = distances.topk(k, largest=False)
    nearest = [known[i] for i in places.tolist()]
    if variant == "paper":
        layers = [torch.cat([interpolate(maps, size=layers[0].shape[2:], mode="nearest") for maps in layers], dim=1)]
    maps = []
    for layer in layers:
        patches = layer.flatten(2).transpose(1, 2)
        gallery = patches[nearest].flatten(0, 1)
        found = torch.stack([(gallery - patch).square().sum(1).min() for patch in patches[query]])
        maps.append(smoothed((found if variant == "paper" else found.sqrt()).view(layer.shape[2:])))
    return float((values if variant == "paper" else values.sqrt()).mean()), np.mean(maps, axis=0)


@pytest.mark.parametrize("k", [1, 5, 12])
@pytest.mark.parametrize("variant", ["paper", "port"])
def test_scores_and_maps_are_those_of_a_float64_twin(features, good_images, scratched, variant, k):
    model = SPADE(**SMALL, variant=variant, n_neighbors=k, calibrate=None).fit(good_images)
    score, anomaly_map = naive(features, k, variant)
    prediction = model.predict(scratched)
    assert prediction.pred_score == pytest.approx(score, rel=1e-4)
    np.testing.assert_allclose(prediction.anomaly_map, anomaly_map, rtol=1e-4)


@pytest.mark.parametrize("variant", ["paper", "port"])
def test_calibration_is_by_the_others(features, good_images, variant):
    model = SPADE(**SMALL, variant=variant, n_neighbors=4).fit(good_images)
    scores, values = [], []
    for i in range(12):
        score, anomaly_map = naive(features, 4, variant, query=i, known=[j for j in range(12) if j != i])
        scores.append(score)
        values.append(anomaly_map)
    np.testing.assert_allclose(model.leave_one_out_scores_, scores, rtol=1e-4)
    quantile = np.quantile(values, 0.5)
    assert model.decision_.pixel_quantiles[0] == pytest.approx(quantile, rel=0.01)  # bins of 0.3 %


def test_a_model_of_k_images_is_the_same_from_memory_and_from_files(good_images, scratched, tmp_path):
    memory = SPADE(**SMALL, cache_mb=100).fit(good_images)
    memory.save(tmp_path / "m.flawmap")
    wanted = memory.predict(scratched).anomaly_map
    file: ModelFile = ModelFile(tmp_path / "m.flawmap")
    for budget in (0, 0.2, 100):
        assert np.array_equal(SPADE(**SMALL, cache_mb=budget).fit(good_images).predict(scratched).anomaly_map, wanted)
        assert np.array_equal(
            restore_detector(SPADE, file, read_document(file), cache_mb=budget).predict(scratched).anomaly_map, wanted
        )


def test_a_coreset_shrinks_the_file_and_raises_distances(good_images, scratched, tmp_path):
    whole = SPADE(**SMALL, n_neighbors=3).fit(good_images)
    tenth = SPADE(**SMALL, n_neighbors=3, coreset=0.25).fit(good_images)
    for name, model in (("whole", whole), ("part", tenth)):
        model.save(tmp_path / name)
    assert (tmp_path / "part").stat().st_size < 0.3 * (tmp_path / "whole").stat().st_size
    assert tenth.predict(scratched).pred_score == whole.predict(scratched).pred_score
    assert (tenth.distances(scratched)[0] >= whole.distances(scratched)[0]).all()


def test_neighbours_are_as_many_as_asked_or_as_there_are(good_images):
    assert SPADE(**SMALL).fit(good_images).n_neighbors_ == 12
    assert SPADE(**SMALL, variant="port").fit(good_images).n_neighbors_ == 5
    with pytest.raises(ParameterError, match="n_neighbors=13 is more than the 12 good images"):
        SPADE(**SMALL, n_neighbors=13).fit(good_images)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_neighbors": 0}, "n_neighbors must be a whole number from 1"),
        ({"variant": "other"}, "'paper' or 'port'"),
        ({"coreset": 0}, "between 0 and 1"),
        ({"coreset": 2}, "between 0 and 1"),
        ({"n_mapped": 0}, "n_mapped must be a whole number from 1"),
        ({"cache_mb": -1}, "cache_mb must be"),
    ],
)
def test_impossible_parameters(good_images, parameters, message):
    with pytest.raises(ParameterError, match=message):
        SPADE(**SMALL | parameters).fit(good_images)


def test_the_pixel_threshold_is_of_a_seeded_draw_in_one_pass(good_images):
    fits = [SPADE(**SMALL, n_mapped=3, seed=seed).fit(iter(good_images)) for seed in (1, 1, 2)]
    quantiles = [fit.decision_.pixel_quantiles.tolist() for fit in fits]
    assert quantiles[0] == quantiles[1] != quantiles[2]
    assert len(fits[0].leave_one_out_scores_) == 12


def test_more_neighbours_than_images_are_refused_before_the_work(good_images, monkeypatch):
    monkeypatch.setattr(spade_passes, "learn", lambda *_, **__: pytest.fail("learnt"))
    with pytest.raises(ParameterError, match="n_neighbors=13 is more than the 12"):
        SPADE(**SMALL, n_neighbors=13).fit(good_images)


def test_more_images_than_a_gallery_has_room_for_are_refused_before_the_work(good_images, monkeypatch):
    monkeypatch.setattr("flawmap.detectors.spade.detector.MAX_ROWS", 5)
    monkeypatch.setattr(spade_passes, "learn", lambda *_, **__: pytest.fail("learnt"))
    with pytest.raises(TrainingSetError, match="a gallery of at most 5 images, got 12"):
        SPADE(**SMALL).fit(good_images)


def reopened(path, **settings):
    file = ModelFile(path)
    return restore_detector(SPADE, file, read_document(file), **settings)


def test_a_gallery_damaged_after_loading_is_named(good_images, tmp_path):
    path = tmp_path / "m.flawmap"
    SPADE(**SMALL).fit(good_images).save(path)
    model = reopened(path, cache_mb=0)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 100)
    with pytest.raises(ModelFileError, match="was cut short while it was read"):
        model.predict(good_images)


def test_the_preset_is_the_papers(good_images):
    model = SPADE.from_preset("spade-wr50", pretrained=False, n_neighbors=2, calibrate=None).fit(good_images[:3])
    document = json.loads(json.dumps(model.describe()))
    assert document["grids"] == [[56, 56], [28, 28], [14, 14], [7, 7]]
    assert document["n_channels"] == [256, 512, 1024, 2048]
    assert (document["n_neighbors"], document["preprocessing"]["crop"]) == (2, [224, 224])
    with pytest.raises(ParameterError, match="unknown preset 'spade'; there are spade-wr50"):
        SPADE.from_preset("spade")


def test_of_resnet18_cut_after_layer3_that_layer_finds_the_images(good_images, resnet18_weights, tmp_path):
    model = SPADE(backbone="resnet18", weights=resnet18_weights, image_layer="layer3", resize=64, n_neighbors=2)
    model.fit(good_images).save(tmp_path / "m.flawmap")
    loaded = load(tmp_path / "m.flawmap", weights=resnet18_weights)
    assert loaded.describe()["backbone"]["layers"] == list(LAYERS)
