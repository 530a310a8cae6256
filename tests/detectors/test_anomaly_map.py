from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.nn.functional import interpolate

from flawmap.detectors.anomaly_map import anomaly_maps, image_scores


@pytest.mark.parametrize(
    ("grid", "size"),
    [((56, 56), (224, 224)), ((7, 20), (50, 161)), ((64, 64), (64, 64)), ((1, 1), (9, 30)), ((3, 2), (5, 3))],
)
def test_one_product_equals_up_sampling_then_smoothing(grid, size):
    distances = torch.rand(3, *grid) * 20
    upsampled = interpolate(distances[:, None].double(), size=size, mode="bilinear", align_corners=False)[:, 0]
    expected = np.stack([gaussian_filter(one.numpy(), sigma=4, mode="reflect", truncate=4) for one in upsampled])
    maps = anomaly_maps(distances, size)
    np.testing.assert_allclose(maps.numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(image_scores(maps), expected.max(axis=(1, 2)), rtol=1e-5)


def test_a_flat_map_stays_flat():
    maps = anomaly_maps(torch.full((1, 14, 14), 3.5), (112, 112))
    torch.testing.assert_close(maps, torch.full((1, 112, 112), 3.5))
