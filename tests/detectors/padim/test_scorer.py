from __future__ import annotations

import numpy as np
import pytest
import torch

from flawmap import PaDiM
from flawmap.backbones import COMPILE_AFTER, CompiledNetwork, load_backbone
from flawmap.detectors.padim import scorer as padim_scorer
from flawmap.errors import TrainingSetError
from flawmap.images import stream

SMALL = {"backbone": "resnet10t", "pretrained": False, "calibrate": None, "resize": 64}


@pytest.fixture(scope="module")
def model(good_images):
    return PaDiM(**SMALL, aspect="letterbox", runtime="torch").fit(good_images)


@pytest.fixture
def compiled(monkeypatch):
    """Sizes of the networks that were compiled."""
    sizes = []

    class Noted(CompiledNetwork):
        def __init__(self, network, size, precision):
            sizes.append(size)
            super().__init__(network, size, precision)

    monkeypatch.setattr("flawmap.backbones.network.CompiledNetwork", Noted)
    return sizes


def scorer_of(model, runtime, **options):
    backbone = load_backbone("resnet10t", pretrained=False, runtime=runtime, **options)
    return padim_scorer.Scorer(backbone, model.factor_, (64, 64))


def test_one_graph_gives_the_maps_and_scores_that_torch_gives(model, good_images, scratched, compiled):
    images = [scratched, good_images[0][:40], good_images[1][:, 10:]]
    batch = list(stream(images, model.preprocessing))
    maps, scores = scorer_of(model, "openvino")(batch)
    assert compiled == [(64, 64)]
    expected_maps, expected_scores = scorer_of(model, "torch")(batch)
    np.testing.assert_allclose(maps, expected_maps, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-4)
    assert not maps[1, :12].any()  # the padding of the letterbox
    assert [prediction.pred_score for prediction in model.predict(images)] == pytest.approx(scores.tolist(), rel=1e-4)


def test_auto_compiles_one_graph_when_there_are_enough_images(model, good_images, compiled):
    scorer = scorer_of(model, "auto")
    batch = list(stream(good_images[:8], model.preprocessing))
    before = scorer(batch)[1]
    for _ in range(COMPILE_AFTER // 8 - 1):
        scorer(batch)
    assert compiled == []
    np.testing.assert_allclose(scorer(batch)[1], before, rtol=1e-4)
    scorer(batch)
    assert compiled == [(64, 64)]


def test_a_backbone_that_is_compiled_already_serves_for_a_few_images(model, good_images, compiled):
    scorer = scorer_of(model, "openvino")
    batch = list(stream(good_images[:8], model.preprocessing))
    scorer.distances(batch)
    assert len(compiled) == 1
    scorer(batch)
    assert len(compiled) == 1
    for _ in range(COMPILE_AFTER // 8):
        scorer(batch)
    assert len(compiled) == 2


@pytest.mark.parametrize("reason", ["large factors", "bfloat16"])
def test_the_backbone_alone_is_compiled_where_a_graph_does_not_serve(model, good_images, compiled, monkeypatch, reason):
    if reason == "large factors":
        monkeypatch.setattr(padim_scorer, "MOST_BYTES", 1000)
    scorer = scorer_of(model, "openvino", precision="bfloat16" if reason == "bfloat16" else "float32")
    monkeypatch.setattr(padim_scorer, "ScoringNetwork", lambda *_: pytest.fail("made a graph"))
    batch = list(stream(good_images[:8], model.preprocessing))
    for _ in range(COMPILE_AFTER // 8 + 1):
        maps, scores = scorer(batch)
    assert compiled == [(64, 64)]
    assert torch.isfinite(maps).all()
    assert scores.tolist() == maps.amax(dim=(1, 2)).tolist()


def test_values_that_are_not_finite_are_no_scores(model, good_images):
    scorer = scorer_of(model, "openvino")
    batch = list(stream(good_images[:2], model.preprocessing))
    scorer.factor.mean[0][0, 0] = np.nan
    try:
        with pytest.raises(TrainingSetError, match="not finite"):
            scorer(batch)
    finally:
        scorer.factor.mean[0][0, 0] = 0
