from __future__ import annotations

import naive
import numpy as np
import pytest
import torch

from flawmap.embedding import build_hierarchy, draw_channels
from flawmap.gaussian import Moments, factorise, leave_one_out, squared_distances, update


@pytest.mark.parametrize(("n_images", "tolerance"), [(90, 1e-2), (320, 3e-3)])
@pytest.mark.parametrize("n_channels", [[5, 8, 12], [40, 60]])
def test_equals_refitting_without_the_image(n_images, tolerance, n_channels):
    grids = [(4, 4), (2, 2), (1, 1)][: len(n_channels)]
    rng = np.random.default_rng(0)
    features = [
        rng.normal(2, 1.5, (n_images, n, *grid)).astype(np.float32) for n, grid in zip(n_channels, grids, strict=True)
    ]
    channels = draw_channels(sum(n_channels), None, 0)
    hierarchy = build_hierarchy(grids, n_channels, channels)
    columns = hierarchy.select([torch.from_numpy(maps) for maps in features])
    moments = Moments.empty(hierarchy)
    update(moments, columns)
    squared = squared_distances(factorise(moments, regularization=0.01), columns)
    got = leave_one_out(squared, n_images).flatten(1).numpy()
    embeddings = naive.embed(features, channels)
    for i in (0, n_images // 2, n_images - 1):
        mean, covariance = naive.fit(np.delete(embeddings, i, axis=1), 0.01)
        expected = naive.squared_distances(embeddings[:, i : i + 1], mean, covariance)[:, 0]
        np.testing.assert_allclose(np.sqrt(got[i]), np.sqrt(expected), rtol=tolerance)


def test_an_image_that_alone_spans_a_direction_scores_high_but_finite():
    squared = torch.tensor([[(9**2) / 10]])  # the largest distance that one of ten images can have
    assert torch.isfinite(leave_one_out(squared, 10)).all()
    assert leave_one_out(squared, 10) > 1e4


def test_two_images_cannot_spare_one():
    with pytest.raises(ValueError, match="at least 3 images, got 2"):
        leave_one_out(torch.zeros(1), 2)
