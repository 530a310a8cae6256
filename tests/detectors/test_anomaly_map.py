from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.nn.functional import interpolate

from flawmap.detectors.anomaly_map import anomaly_maps, cells_of, image_scores, masked_maps


def smoothed(distances, size):
    """Maps (B, H, W), one step after the other, in float64."""
    upsampled = interpolate(distances[:, None].double(), size=size, mode="bilinear", align_corners=False)[:, 0]
    return np.stack([gaussian_filter(one.numpy(), sigma=4, mode="reflect", truncate=4) for one in upsampled])


@pytest.mark.parametrize(
    ("grid", "size"),
    [((56, 56), (224, 224)), ((7, 20), (50, 161)), ((64, 64), (64, 64)), ((1, 1), (9, 30)), ((3, 2), (5, 3))],
)
def test_one_product_equals_up_sampling_then_smoothing(grid, size):
    distances = torch.rand(3, *grid) * 20
    expected = smoothed(distances, size)
    maps = anomaly_maps(distances, size)
    np.testing.assert_allclose(maps.numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(image_scores(maps), expected.max(axis=(1, 2)), rtol=1e-5)


def test_a_flat_map_stays_flat():
    maps = anomaly_maps(torch.full((1, 14, 14), 3.5), (112, 112))
    torch.testing.assert_close(maps, torch.full((1, 112, 112), 3.5))


def test_a_map_in_a_region_is_the_weighted_mean_of_its_cells():
    rng = np.random.default_rng(2)
    roi = np.zeros((32, 40), bool)
    roi[3:17, 6:22] = roi[20:31, 30:] = True
    distances = torch.from_numpy(rng.uniform(1, 2, (2, 8, 10)).astype(np.float32))
    cells = cells_of(roi, (8, 10))
    naive_cells = [[roi[4 * y : 4 * y + 4, 4 * x : 4 * x + 4].any() for x in range(10)] for y in range(8)]
    assert np.array_equal(cells, naive_cells)
    spoilt = distances.clone()
    spoilt[:, ~torch.from_numpy(cells)] = 1e6  # nothing of it may be smoothed in
    maps = anomaly_maps(spoilt, roi.shape, roi=roi).numpy()
    kept = torch.from_numpy(cells)[None]
    total, weight = (smoothed(part, roi.shape) for part in (distances * kept, kept))
    np.testing.assert_allclose(maps[:, roi], (total / weight)[:, roi], rtol=1e-5)
    assert not maps[:, ~roi].any()
    even = anomaly_maps(torch.full((1, 8, 10), 3.0), roi.shape, roi=roi).numpy()[0]
    np.testing.assert_allclose(even[roi], 3, rtol=1e-5)  # also at the region's border


@pytest.mark.parametrize("with_region", [False, True])
def test_a_map_of_what_an_image_shows_is_the_weighted_mean_of_its_cells(with_region):
    rng = np.random.default_rng(3)
    size, grid = (32, 40), (8, 10)
    roi = np.zeros(size, bool)
    roi[4:28, 4:36] = True
    shown = np.zeros((2, *size), bool)
    shown[0, 2:30, :26], shown[1, 7:, 5:] = True, True
    cells = np.zeros((2, *grid), bool)
    cells[0, 1:7, :6], cells[1, 2:, 2:] = True, True
    distances = torch.from_numpy(rng.uniform(1, 2, (2, *grid)).astype(np.float32))
    region = roi if with_region else None
    both = masked_maps(distances, size, torch.from_numpy(cells).float(), torch.from_numpy(shown), roi=region)
    maps, weighed = (part.numpy() for part in both)
    inside = cells_of(roi, grid) if with_region else np.ones(grid, bool)
    kept = torch.from_numpy(cells & inside)
    total, weight, whole = (smoothed(part, size) for part in (distances * kept, kept, torch.from_numpy(inside)[None]))
    counted = shown & roi if with_region else shown
    sure = counted & (weight > 1e-6)  # elsewhere rounding of float32 counts
    np.testing.assert_allclose(maps[sure], (total / np.maximum(weight, 1e-30))[sure], rtol=1e-4)
    np.testing.assert_allclose(weighed[sure], (total / whole)[sure], rtol=1e-4)
    assert maps[counted].min() >= 0.999  # also where a cell is shown in part
    assert not maps[~counted].any()
    assert not weighed[~counted].any()
    assert (weighed <= maps * 1.0001).all()


def test_a_map_of_an_image_that_shows_everything_is_as_without_a_mask():
    distances = torch.rand(2, 8, 10)
    maps, weighed = masked_maps(distances, (32, 40), torch.ones(2, 8, 10), torch.ones(2, 32, 40, dtype=torch.bool))
    torch.testing.assert_close(maps, anomaly_maps(distances, (32, 40)))
    torch.testing.assert_close(weighed, maps)
