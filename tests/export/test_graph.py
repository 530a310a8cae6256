from __future__ import annotations

import numpy as np
import pytest
import torch

from flawmap import PaDiM
from flawmap.decision import Decision
from flawmap.export.graph import JudgingNetwork, ScoringNetwork
from flawmap.images import Preprocessing, stream

SMALL = {"backbone": "resnet10t", "pretrained": False, "calibrate": None}


@pytest.mark.parametrize(
    "parameters",
    [
        {"resize": 64},
        {"resize": (72, 96), "crop": (64, 80), "n_features": 30},
        {"resize": (61, 83)},  # grids that do not nest
        {"resize": 65, "crop": 58, "n_features": 40, "layers": ["layer3", "layer1", "act1", "layer4"]},
        {"resize": 40, "layers": ["layer2"]},
    ],
)
def test_the_network_to_export_computes_what_predict_does(good_images, scratched, parameters):
    model = PaDiM(**SMALL | parameters).fit(good_images)
    images = [scratched, *good_images[:2]]
    canvas = Preprocessing.of(model.resize, None, model.aspect)
    ready = np.stack([loaded.pixels for loaded in stream(images, canvas)])
    network = ScoringNetwork(model.backbone_, model.factor_, model.preprocessing).eval()
    with torch.inference_mode():
        maps, scores = network(torch.from_numpy(ready))
    for prediction, anomaly_map, score in zip(model.predict(images), maps, scores, strict=True):
        np.testing.assert_allclose(anomaly_map, prediction.anomaly_map, rtol=1e-4, atol=1e-4)
        assert float(score) == pytest.approx(prediction.pred_score, rel=1e-4)


def test_the_model_itself_is_left_alone(good_images):
    model = PaDiM(**SMALL | {"resize": 64}).fit(good_images)
    before = model.distances(good_images[:1])
    network = ScoringNetwork(model.backbone_, model.factor_, model.preprocessing)
    for tensor in network.features.state_dict().values():
        tensor.zero_()
    assert np.array_equal(model.distances(good_images[:1]), before)


@pytest.mark.parametrize("group_sizes", [None, np.repeat(np.float32([3, 1]), 6)])
def test_labels_and_p_values_of_the_graph_are_those_of_the_decision(group_sizes):
    rng = np.random.default_rng(0)
    scores = rng.gamma(4, size=12).astype(np.float32)
    decision = Decision(scores, np.zeros(0, np.float32), group_sizes=group_sizes).at_rate(0.3)
    queries = np.concatenate([scores, rng.gamma(4, 2, size=20).astype(np.float32), np.float32([0, 1e6])])
    network = JudgingNetwork(Echo(), decision)
    _, found, p_values, labels = network(torch.from_numpy(queries))
    assert found.tolist() == queries.tolist()
    np.testing.assert_allclose(p_values, [decision.p_value(score) for score in queries], rtol=1e-6)
    assert labels.tolist() == [decision.label(score) for score in queries]
    assert 0 < sum(labels.tolist()) < len(queries)


class Echo(torch.nn.Module):
    """A network whose images are their scores."""

    def forward(self, images):
        return images[:, None, None], images
