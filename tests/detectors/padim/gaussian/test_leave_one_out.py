from __future__ import annotations

import numpy as np
import pytest
import torch

import naive
from flawmap.detectors.padim.embedding import build_hierarchy, draw_channels
from flawmap.detectors.padim.gaussian.factor import factorise, inner_products, squared_distances
from flawmap.detectors.padim.gaussian.leave_one_out import leave_group_out, leave_one_out, leave_set_out
from flawmap.detectors.padim.gaussian.moments import PAPER, Moments, Regularization, update


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
    squared = squared_distances(factorise(moments, regularization=PAPER), columns)
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


@pytest.fixture(params=[90, 320])
def learnt(request):
    """Correlated embeddings of so many images: hierarchy, moments, columns, and the same for the twin (P, N, d)."""
    rng = np.random.default_rng(1)
    grids, n_channels = [(8, 8), (4, 4)], [7, 11]
    mix = rng.normal(size=(18, 18)) / 4
    hidden = rng.normal(size=(request.param, 8, 8, 18))
    maps = [hidden @ mix[:, :7] + 3, hidden[:, ::2, ::2] @ mix[:, 7:]]
    features = [part.transpose(0, 3, 1, 2).astype(np.float32) for part in maps]
    channels = draw_channels(18, None, 0)
    hierarchy = build_hierarchy(grids, n_channels, channels)
    columns = hierarchy.select([torch.from_numpy(part) for part in features])
    moments = Moments.empty(hierarchy)
    update(moments, columns)
    return moments, columns, naive.embed(features, channels)


@pytest.mark.parametrize("sharing", [0.0, 0.4])
def test_sharing_equals_refitting_without_the_image(learnt, sharing):
    moments, columns, embeddings = learnt
    factor = factorise(moments, regularization=Regularization(0.02, sharing))
    got = leave_one_out(squared_distances(factor, columns), moments.count, sharing=sharing).flatten(1).numpy()
    for i in (0, 17, moments.count - 1):
        mean, covariance = naive.fit(np.delete(embeddings, i, axis=1), 0.02, sharing)
        expected = naive.squared_distances(embeddings[:, i : i + 1], mean, covariance)[:, 0]
        np.testing.assert_allclose(np.sqrt(got[i]), np.sqrt(expected), rtol=1 / moments.count)


@pytest.mark.parametrize("sharing", [0.0, 0.4])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_group_left_out_equals_refitting_without_it(learnt, sharing, size):
    moments, columns, embeddings = learnt
    members = [3 + 7 * j for j in range(size)]
    factor = factorise(moments, regularization=Regularization(0.02, sharing))
    products = inner_products(factor, [column[:, members].contiguous() for column in columns])
    got = leave_group_out(products, moments.count, sharing=sharing).T.numpy()
    mean, covariance = naive.fit(np.delete(embeddings, members, axis=1), 0.02, sharing)
    expected = naive.squared_distances(embeddings[:, members], mean, covariance).T
    np.testing.assert_allclose(np.sqrt(got), np.sqrt(expected), rtol=size / moments.count)


def test_a_group_of_one_is_leave_one_out(learnt):
    moments, columns, _ = learnt
    factor = factorise(moments, regularization=PAPER)
    alone = [column[:, 5:6].contiguous() for column in columns]
    got = leave_group_out(inner_products(factor, alone), moments.count)
    expected = leave_one_out(squared_distances(factor, alone), moments.count)
    torch.testing.assert_close(got[:, 0], expected.flatten(), rtol=1e-5, atol=0.0)


def test_copies_vouch_for_each_other_unless_they_are_left_out_together(learnt):
    moments, columns, _ = learnt
    copied = [torch.cat([column, column[:, 5:6].expand(-1, 3, -1)], dim=1) for column in columns]
    together = Moments.empty(moments.hierarchy)
    update(together, copied)
    members = [5, *range(moments.count, moments.count + 3)]
    factor = factorise(together, regularization=PAPER)
    products = inner_products(factor, [column[:, members].contiguous() for column in copied])
    honest = leave_one_out(
        squared_distances(factorise(moments, regularization=PAPER), [c[:, 5:6].contiguous() for c in columns]),
        moments.count,
    ).flatten()
    grouped = leave_group_out(products, together.count)
    torch.testing.assert_close(grouped, honest[:, None].expand(-1, 4), rtol=0.02, atol=0.0)
    flattered = leave_one_out(squared_distances(factor, [c[:, 5:6].contiguous() for c in copied]), together.count)
    assert bool((flattered.flatten() < 0.97 * honest).all())


def test_a_group_of_nearly_all_images_cannot_be_left_out():
    with pytest.raises(ValueError, match="fewer than 2"):
        leave_group_out(torch.zeros(1, 4, 4), 5)


@pytest.mark.parametrize("sharing", [0.0, 0.2])
def test_a_large_group_is_left_out_by_the_inverse_of_its_channels(sharing):
    white = torch.randn(3, 12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for count in (40, torch.tensor([40.0, 30.0, 25.0])):
        by_channels = leave_set_out(white, count, sharing=sharing)
        by_images = leave_group_out(white @ white.transpose(1, 2), count, sharing=sharing)
        np.testing.assert_allclose(by_channels, by_images, rtol=1e-4)
    few = white[:, :2]
    expected = leave_group_out(few @ few.transpose(1, 2), 40, sharing=sharing)
    np.testing.assert_array_equal(leave_set_out(few, 40, sharing=sharing), expected)


@pytest.mark.parametrize("d", [5, 40])  # by the inverse of d x d, and by the block identity
def test_a_group_is_left_out_only_where_it_is_shown(d):
    rng = np.random.default_rng(0)
    images, shown = rng.normal(size=(120, d)), np.arange(120) % 4 != 1
    group = [0, 1, 2, 3, 4, 5]

    def model(those):
        return those.mean(axis=0), np.cov(those.T)

    mean, covariance = model(images[shown])
    white = np.linalg.solve(np.linalg.cholesky(covariance), (images[group] - mean).T).T * shown[group, None]
    count = torch.tensor([int(shown.sum())])
    found = leave_set_out(torch.from_numpy(white)[None], count)[0].numpy()
    rest = np.setdiff1d(np.flatnonzero(shown), group)
    mean, covariance = model(images[rest])
    difference = images[group] - mean
    wanted = np.einsum("ij,jk,ik->i", difference, np.linalg.inv(covariance), difference) * shown[group]
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-9)
    products = torch.from_numpy(white @ white.T + 1 - np.outer(shown[group], shown[group]))[None]
    np.testing.assert_allclose(
        leave_group_out(products, count, shown=torch.from_numpy(shown[group])[None])[0], found, rtol=1e-4, atol=1e-9
    )
