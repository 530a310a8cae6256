from __future__ import annotations

import numpy as np
import pytest
import torch

from flawmap import PaDiM
from flawmap.images import stream

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
def test_the_network_computes_what_predict_does(good_images, scratched, parameters):
    model = PaDiM(**SMALL | parameters).fit(good_images)
    images = [scratched, *good_images[:2]]
    ready = np.stack([loaded.pixels for loaded in stream(images, model.preprocessing)])
    network = model.network(for_graph=True).eval()
    with torch.inference_mode():
        maps, scores = network(torch.from_numpy(ready))
    for prediction, anomaly_map, score in zip(model.predict(images), maps, scores, strict=True):
        np.testing.assert_allclose(anomaly_map, prediction.anomaly_map, rtol=1e-4, atol=1e-4)
        assert float(score) == pytest.approx(prediction.pred_score, rel=1e-4)
