from __future__ import annotations

import numpy as np
import pytest
import torch

from flawmap import PaDiM, load
from flawmap.backbones import COMPILE_FROM, CompiledNetwork
from flawmap.detectors.anomaly_map import anomaly_maps
from flawmap.detectors.padim.embedding import embed
from flawmap.detectors.padim.gaussian.factor import squared_distances
from flawmap.errors import ModelFileError
from flawmap.images import stream

SMALL = {
    "backbone": "resnet10t",
    "pretrained": False,
    "calibrate": None,
    "resize": 64,
    "n_features": 40,
    "align": "none",
}


@pytest.fixture(scope="module")
def path(good_images, tmp_path_factory):
    """A model of 36 images, enough for "auto" to compile."""
    path = tmp_path_factory.mktemp("model") / "part.flawmap"
    many = np.concatenate([good_images, good_images[:, ::-1], good_images[:, :, ::-1]])
    PaDiM(**SMALL, aspect="letterbox", runtime="torch").fit(many).save(path)
    return path


@pytest.fixture
def compiled(monkeypatch):
    """Sizes of the networks that were compiled."""
    sizes = []

    class Noted(CompiledNetwork):
        def __init__(self, network, size, precision):
            sizes.append(size)
            super().__init__(network, size, precision)

    monkeypatch.setattr("flawmap.backbones.runtimes.CompiledNetwork", Noted)
    return sizes


def scores(model, images):
    return [prediction.pred_score for prediction in model.predict(images)]


def naive_map(model, image):
    """The map by the functions that `fit` scores with."""
    [loaded] = stream([image], model.preprocessing)
    columns = embed(model.backbone_, model.factor_.hierarchy, np.array(loaded.pixels[None]))
    distances = squared_distances(model.factor_, columns).sqrt_()
    return anomaly_maps(distances, model.preprocessing.input_size)[0].numpy()


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_the_head_computes_what_the_gaussians_do(path, good_images, scratched, runtime):
    model = load(path, runtime=runtime)
    for image in (scratched, good_images[0][:40], good_images[1][:, 10:]):
        prediction = model.predict(image)
        top, left, bottom, right = prediction.placement.content
        inside = slice(top, bottom), slice(left, right)
        np.testing.assert_allclose(
            prediction.anomaly_map[inside], naive_map(model, image)[inside], rtol=1e-4, atol=1e-4
        )
        assert prediction.anomaly_map.sum() == pytest.approx(prediction.anomaly_map[inside].sum())  # 0 in the padding


def test_an_image_scores_the_same_whatever_came_before(path, good_images, scratched, compiled):
    model = load(path)
    first = model.predict(scratched).pred_score
    assert compiled == [(64, 64)]
    scores(model, [*good_images] * 4)
    assert model.predict(scratched).pred_score == first
    assert compiled == [(64, 64)]


def test_a_model_of_few_images_never_compiles(good_images, scratched, compiled):
    model = PaDiM(**SMALL).fit(good_images)
    first = model.predict(scratched).pred_score
    scores(model, [*good_images] * 4)
    assert model.predict(scratched).pred_score == first
    assert len(good_images) < COMPILE_FROM
    assert compiled == []


def test_the_number_of_an_iterators_images_decides_too(good_images, compiled):
    PaDiM(**SMALL).fit(iter([*good_images] * 3))
    assert compiled == [(64, 64)]


@pytest.mark.parametrize("reason", ["large factors", "bfloat16"])
def test_the_backbone_alone_is_compiled_if_one_graph_does_not_pay(path, good_images, compiled, monkeypatch, reason):
    if reason == "large factors":
        monkeypatch.setattr(PaDiM, "most_graph_bytes", 1000)
        model = load(path, runtime="openvino")
    else:
        model = PaDiM(**SMALL, runtime="openvino", precision="bfloat16").fit(good_images)
    found = model.predict([*good_images] * 2)
    assert compiled == [(64, 64)]
    assert all(np.isfinite(one.anomaly_map).all() for one in found)
    assert [one.pred_score for one in found] == [one.anomaly_map.max() for one in found]
    np.testing.assert_allclose(found[0].anomaly_map, naive_map(model, good_images[0]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_a_score_that_is_not_finite_is_an_error(good_images, runtime):
    model = PaDiM(**SMALL, runtime=runtime).fit(good_images)
    model.factor_.mean[0][0, 0] = torch.nan
    with pytest.raises(ModelFileError, match=r"image 1.*not finite"):
        model.predict(good_images[:2])
