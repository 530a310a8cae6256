from __future__ import annotations

import numpy as np
import pytest
import torch

import naive
from flawmap import Inspector, PaDiM, export_model, load
from flawmap.detectors.anomaly_map import anomaly_maps
from flawmap.detectors.padim.embedding import project_hierarchy
from flawmap.detectors.padim.fit import learn_components
from flawmap.errors import ModelFileError, ParameterError, TrainingSetError
from model_files import assemble, contents

SMALL = {"backbone": "resnet10t", "pretrained": False, "resize": 64, "regularization": "paper", "runtime": "torch"}
SHAPES = [(4, (9, 7)), (5, (5, 4)), (6, (3, 2))]


def random_features(n_images=20):
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(15, 15))
    base = rng.normal(size=(n_images, 15, 1, 1)) * 2
    maps = []
    for start, (n, grid) in zip((0, 4, 9), SHAPES, strict=True):
        own = rng.normal(size=(n_images, 15, *grid)) + base + 3
        maps.append(np.einsum("nchw,cd->ndhw", own, mixing[:, start : start + n]).astype(np.float32))
    return maps


def naive_components(features, k):
    """Principal axes of all patches of all images, in float64."""
    patches = naive.embed(features, np.arange(15)).reshape(-1, 15)
    return np.linalg.svd(patches - patches.mean(axis=0), full_matrices=False)[2][:k].T


def in_batches(features, size):
    return ([torch.from_numpy(maps[i : i + size]) for maps in features] for i in range(0, len(features[0]), size))


@pytest.mark.parametrize("batch", [3, 20])
def test_streamed_components_span_those_of_all_patches(batch):
    features = random_features()
    components = learn_components(in_batches(features, batch), 4).double().numpy()
    wanted = naive_components(features, 4)
    np.testing.assert_allclose(components @ components.T, wanted @ wanted.T, atol=1e-5)
    np.testing.assert_allclose(components.T @ components, np.eye(4), atol=1e-6)


def test_the_projection_is_that_of_the_whole_embedding():
    features = random_features()
    components = learn_components(in_batches(features, 20), 4)
    hierarchy = project_hierarchy([grid for _, grid in SHAPES], components)
    [columns] = hierarchy.select([torch.from_numpy(maps) for maps in features])
    wanted = naive.embed(features, np.arange(15)) @ components.double().numpy()
    np.testing.assert_allclose(columns.numpy(), wanted, atol=1e-4)
    assert [level.n_cells for level in hierarchy.levels] == [63]


@pytest.fixture(scope="module")
def reduced(good_images):
    return PaDiM(**SMALL, n_features=20, reduction="pca").fit(good_images)


def test_distances_are_those_of_naive_components_and_gaussians(reduced, good_images, scratched):
    features = [maps.numpy() for maps in reduced.backbone_.features(good_images)]
    joined = naive.embed(features, np.arange(len(reduced.channels_)))
    patches = joined.reshape(-1, joined.shape[2])
    axes = np.linalg.svd(patches - patches.mean(axis=0), full_matrices=False)[2][:20].T
    mean, covariance = naive.fit(joined @ axes, 0.01)
    test = naive.embed([m.numpy() for m in reduced.backbone_.features(scratched[None])], reduced.channels_) @ axes
    wanted = np.sqrt(naive.squared_distances(test, mean, covariance))[:, 0]
    np.testing.assert_allclose(reduced.distances(scratched).ravel(), wanted, rtol=2e-3)


def test_a_loaded_model_predicts_the_same(reduced, good_images, scratched, tmp_path):
    reduced.save(tmp_path / "part.flawmap")
    loaded = load(tmp_path / "part.flawmap")
    assert (loaded.reduction, loaded.n_features) == ("pca", 20)
    assert loaded.threshold_ == reduced.threshold_
    for image in (good_images[0], scratched):
        np.testing.assert_allclose(loaded.distances(image), reduced.distances(image), rtol=1e-4)
    loaded.save(tmp_path / "again.flawmap")
    assert (tmp_path / "again.flawmap").read_bytes() == (tmp_path / "part.flawmap").read_bytes()


def test_a_damaged_file_is_refused(reduced, tmp_path):
    reduced.save(tmp_path / "part.flawmap")
    document, tensors = contents(tmp_path / "part.flawmap")
    document["parameters"]["n_features"] = 19
    assemble(tmp_path / "part.flawmap", document, tensors)
    with pytest.raises(ModelFileError, match=r"tensor 'pca\.\w+' has shape"):
        load(tmp_path / "part.flawmap")


def test_a_generator_of_images_is_enough_and_bad_ones_are_told_of_once(reduced, good_images):
    bad = []
    images = [*good_images, np.zeros((4, 4), np.float32)]
    model = PaDiM(**SMALL, n_features=20, reduction="pca").fit(iter(images), on_bad=bad.append)
    assert len(bad) == 1
    np.testing.assert_allclose(model.leave_one_out_scores_, reduced.leave_one_out_scores_, rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_features": None}, "takes n_features"),
        ({"channels": [1, 2]}, "no channels"),
        ({"n_features": 100_000}, "between 1 and"),
        ({"reduction": "ica"}, "'random' or 'pca', got 'ica'"),
    ],
)
def test_impossible_reductions_are_refused(good_images, change, message):
    with pytest.raises(ParameterError, match=message):
        PaDiM(**{**SMALL, "n_features": 20, "reduction": "pca", **change}).fit(good_images)


def test_no_images_are_refused():
    with pytest.raises(TrainingSetError, match="got 0 usable"):
        learn_components([], 3)


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_components_are_exported_and_compiled_as_they_are_computed(reduced, good_images, tmp_path, runtime):
    reduced.save(tmp_path / "part.flawmap")
    model = load(tmp_path / "part.flawmap", runtime=runtime)
    exported = Inspector(export_model(model, tmp_path / "out"))
    images = good_images[:2]
    wanted = anomaly_maps(torch.from_numpy(reduced.distances(images)), (64, 64)).numpy()
    for one, other, computed in zip(exported.predict(images), model.predict(images), wanted, strict=True):
        np.testing.assert_allclose(one.anomaly_map, computed, rtol=1e-4)
        np.testing.assert_allclose(other.anomaly_map, computed, rtol=1e-4)
