from __future__ import annotations

import numpy as np
import pytest
import torch

import naive
from flawmap.detectors.padim.embedding import build_hierarchy, draw_channels
from flawmap.detectors.padim.gaussian.factor import (
    covariance_at,
    factorise,
    mean_at,
    squared_distances,
    typical_distance,
)
from flawmap.detectors.padim.gaussian.leave_one_out import leave_one_out
from flawmap.detectors.padim.gaussian.moments import PAPER, Moments, Regularization, merge, subtract, update
from flawmap.errors import ParameterError, TrainingSetError

N_IMAGES = 45
LAYOUTS = {
    "nested": ([(8, 8), (4, 4), (2, 2)], [6, 9, 12], 20),
    "all channels": ([(8, 8), (4, 4), (2, 2)], [6, 9, 12], None),
    "one layer": ([(6, 5)], [9], None),
    "not nested": ([(9, 7), (5, 4), (3, 2)], [6, 9, 12], 18),
    "five layers, two of one grid": ([(9, 7), (7, 7), (5, 3), (5, 3), (1, 1)], [4, 5, 6, 7, 3], 21),
    "coarse to fine order": ([(2, 3), (5, 7)], [5, 6], None),
    "one channel": ([(4, 4), (2, 2)], [3, 3], 1),
    "wide": ([(3, 40), (2, 20)], [4, 4], 7),
}


def random_features(grids, n_channels, n_images=N_IMAGES, seed=0):
    """Correlated feature maps with a mean far from zero."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(sum(n_channels), sum(n_channels)))
    features = []
    for n, (height, width), columns in zip(n_channels, grids, np.split(mix, np.cumsum(n_channels)[:-1]), strict=True):
        hidden = rng.normal(size=(n_images, height, width, mix.shape[0]))
        features.append((hidden @ columns.T + 5 * rng.normal(size=n)).transpose(0, 3, 1, 2).astype(np.float32))
    return features


def fit_in_batches(hierarchy, features, batch):
    moments = Moments.empty(hierarchy)
    for start in range(0, len(features[0]), batch):
        update(moments, hierarchy.select([torch.from_numpy(maps[start : start + batch]) for maps in features]))
    return moments


@pytest.fixture(params=LAYOUTS, scope="module")
def case(request):
    grids, n_channels, n_features = LAYOUTS[request.param]
    channels = draw_channels(sum(n_channels), n_features, seed=3)
    features = random_features(grids, n_channels)
    return build_hierarchy(grids, n_channels, channels), features, naive.embed(features, channels)


@pytest.mark.parametrize("batch", [1, 7, 32])
def test_streaming_equals_one_float64_pass(case, batch):
    hierarchy, features, embeddings = case
    factor = factorise(fit_in_batches(hierarchy, features, batch), regularization=PAPER)
    mean, covariance = naive.fit(embeddings, 0.01)
    expected = naive.squared_distances(embeddings, mean, covariance).T.reshape(-1, *hierarchy.grid)
    got = squared_distances(factor, hierarchy.select([torch.from_numpy(maps) for maps in features]))
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4)
    for position in {0, len(mean) // 2, len(mean) - 1}:
        np.testing.assert_allclose(mean_at(factor, position), mean[position], rtol=1e-5, atol=1e-5)
        scale = np.abs(covariance[position]).max()
        np.testing.assert_allclose(covariance_at(factor, position), covariance[position], atol=1e-4 * scale)


def test_merged_halves_equal_one_pass(case):
    hierarchy, features, _ = case
    whole = fit_in_batches(hierarchy, features, 32)
    first = fit_in_batches(hierarchy, [maps[:17] for maps in features], 5)
    second = fit_in_batches(hierarchy, [maps[17:] for maps in features], 32)
    merge(second, first)
    assert second.count == whole.count == N_IMAGES
    for mine, expected in zip(second.mean, whole.mean, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-6)
    for mine, expected in zip(second.cross + second.own, whole.cross + whole.own, strict=True):
        scale = float(expected.abs().max()) if expected.numel() else 0.0
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4 * scale)


def test_merging_with_nothing_changes_nothing(case):
    hierarchy, features, _ = case
    moments = fit_in_batches(hierarchy, features, 32)
    before = [rows.clone() for rows in moments.cross + moments.own]
    merge(moments, Moments.empty(hierarchy))
    empty = Moments.empty(hierarchy)
    merge(empty, moments)
    copies = empty.cross + empty.own
    for rows, same, copied in zip(before, moments.cross + moments.own, copies, strict=True):
        assert torch.equal(rows, same)
        torch.testing.assert_close(copied, rows)
    assert empty.count == moments.count == N_IMAGES


def test_what_is_subtracted_was_never_learnt(case):
    hierarchy, features, _ = case
    moments = fit_in_batches(hierarchy, features, 7)
    part = fit_in_batches(hierarchy, [maps[10:25] for maps in features], 7)
    subtract(moments, part)
    rest = fit_in_batches(hierarchy, [np.delete(maps, slice(10, 25), axis=0) for maps in features], 7)
    assert moments.count == rest.count == N_IMAGES - 15
    for got, expected in zip(moments.cross + moments.own, rest.cross + rest.own, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=2e-3)
    for got, expected in zip(moments.mean, rest.mean, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(ParameterError, match="cannot subtract"):
        subtract(part, moments)


def test_sharing_blends_every_covariance_with_the_mean_of_all(case):
    hierarchy, features, embeddings = case
    factor = factorise(fit_in_batches(hierarchy, features, 32), regularization=Regularization(0.05, 0.3))
    expected = naive.squared_distances(embeddings, *naive.fit(embeddings, 0.05, 0.3))
    got = squared_distances(factor, hierarchy.select([torch.from_numpy(maps) for maps in features]))
    np.testing.assert_allclose(got.flatten(1).numpy().T, expected, rtol=2e-3)
    for position in (0, embeddings.shape[0] - 1):
        blended = naive.fit(embeddings, 0.05, 0.3)[1][position]
        np.testing.assert_allclose(covariance_at(factor, position).numpy(), blended, rtol=1e-4, atol=1e-3)


def test_a_factor_in_place_of_the_moments_is_the_same_and_takes_their_memory(case):
    hierarchy, features, _ = case
    moments, regularization = fit_in_batches(hierarchy, features, 32), Regularization(0.05, 0.3)
    expected = factorise(moments, regularization=regularization)
    memory = [part.data_ptr() for part in moments.cross + moments.own if part.numel()]
    got = factorise(moments, regularization=regularization, in_place=True)
    for mine, theirs in zip(got.cross + got.own, expected.cross + expected.own, strict=True):
        assert torch.equal(mine, theirs)
    assert [part.data_ptr() for part in got.cross + got.own if part.numel()] == memory
    assert moments.cross == [] == moments.own


def test_a_batch_of_scores_equals_one_at_a_time(case):
    hierarchy, features, _ = case
    factor = factorise(fit_in_batches(hierarchy, features, 32), regularization=PAPER)
    together = squared_distances(factor, hierarchy.select([torch.from_numpy(maps[:5]) for maps in features]))
    for i in range(5):
        alone = squared_distances(factor, hierarchy.select([torch.from_numpy(maps[i : i + 1]) for maps in features]))
        torch.testing.assert_close(alone[0], together[i], rtol=1e-5, atol=1e-5)


def test_typical_distance_is_the_root_mean_square_of_the_training_distances(case):
    hierarchy, features, embeddings = case
    factor = factorise(fit_in_batches(hierarchy, features, 32), regularization=Regularization(0.3))
    squared = naive.squared_distances(embeddings, *naive.fit(embeddings, 0.3))
    expected = np.sqrt(np.sort(squared.mean(axis=1))[(len(squared) - 1) // 2])
    assert typical_distance(factor, regularization=Regularization(0.3), count=N_IMAGES) == pytest.approx(
        expected, rel=1e-3
    )


def test_cells_stay_far_fewer_than_positions_where_grids_nest():
    hierarchy = build_hierarchy([(56, 56), (28, 28), (14, 14)], [64, 128, 256], draw_channels(448, 100, 0))
    assert [level.n_cells for level in hierarchy.levels] == [14 * 14, 28 * 28, 56 * 56]
    stored = sum(level.n_cells * level.n_channels * (level.n_channels + level.n_coarser) for level in hierarchy.levels)
    assert stored < 56 * 56 * 100 * 100 / 4


def test_more_channels_than_images_is_regularised(case):
    hierarchy, features, embeddings = case
    few = [maps[:4] for maps in features]
    factor = factorise(fit_in_batches(hierarchy, few, 4), regularization=Regularization(0.1))
    expected = naive.squared_distances(embeddings, *naive.fit(embeddings[:, :4], 0.1))
    got = squared_distances(factor, hierarchy.select([torch.from_numpy(maps) for maps in features]))
    np.testing.assert_allclose(got.flatten(1).numpy().T, expected, rtol=2e-3)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_images_are_refused(count):
    grids, n_channels, _ = LAYOUTS["nested"]
    hierarchy = build_hierarchy(grids, n_channels, draw_channels(27, None, 0))
    moments = Moments.empty(hierarchy)
    if count:
        update(moments, hierarchy.select([torch.from_numpy(m) for m in random_features(grids, n_channels, count)]))
    with pytest.raises(TrainingSetError, match=f"at least 2 good images, got {count}"):
        factorise(moments, regularization=PAPER)


def test_a_covariance_without_full_rank_is_refused_not_inverted():
    hierarchy = build_hierarchy([(2, 2)], [6], draw_channels(6, None, 0))
    moments = fit_in_batches(hierarchy, random_features([(2, 2)], [6], 4), 4)
    with pytest.raises(TrainingSetError, match="raise `regularization`"):
        factorise(moments, regularization=Regularization(0.0))


def test_identical_images_leave_only_the_regularisation():
    hierarchy = build_hierarchy([(2, 2)], [3], draw_channels(3, None, 0))
    features = [np.repeat(random_features([(2, 2)], [3], 1)[0], 5, axis=0)]
    factor = factorise(fit_in_batches(hierarchy, features, 2), regularization=Regularization(0.04))
    torch.testing.assert_close(covariance_at(factor, 1), 0.04 * torch.eye(3, dtype=torch.float64), rtol=1e-5, atol=1e-6)
    shifted = squared_distances(factor, hierarchy.select([torch.from_numpy(features[0] + 1)]))
    torch.testing.assert_close(shifted, torch.full((5, 2, 2), 3 / 0.04), rtol=1e-4, atol=0.0)


def test_moments_of_other_shapes_do_not_merge():
    one = Moments.empty(build_hierarchy([(2, 2)], [3], draw_channels(3, None, 0)))
    other = Moments.empty(build_hierarchy([(2, 2)], [3], draw_channels(3, 2, 0)))
    with pytest.raises(ParameterError, match="cannot be merged"):
        merge(one, other)


@pytest.fixture
def partly_shown():
    """A nested hierarchy, embeddings per level, and which coarse cells each of 30 images shows."""
    rng = np.random.default_rng(3)
    hierarchy = build_hierarchy([(8, 8), (4, 4)], [5, 4], np.arange(9))
    columns = [torch.from_numpy(rng.normal(size=(n, 30, d)).astype(np.float32)) for n, d in ((16, 4), (64, 5))]
    seen = torch.from_numpy((rng.random((16, 30)) < 0.7).astype(np.float32))
    return hierarchy, columns, seen


def test_each_position_learns_from_the_images_that_show_it(partly_shown):
    hierarchy, columns, seen = partly_shown
    moments = Moments.empty(hierarchy, masked=True)
    for part in (slice(0, 11), slice(11, 12), slice(12, 30)):
        update(moments, [column[:, part] for column in columns], seen[:, part])
    whole = factorise(moments, regularization=Regularization(0.1))
    distances = squared_distances(whole, columns)
    for position in range(64):
        coarse = position // 16 * 4 + position % 8 // 2
        both = np.concatenate([columns[0][coarse].numpy(), columns[1][position].numpy()], axis=1).astype(np.float64)
        shown = both[seen[coarse].numpy() > 0]
        mean, covariance = naive.fit(shown[None], 0.1)
        expected = naive.squared_distances(both[None], mean, covariance)[0]
        assert distances[:, position // 8, position % 8].numpy() == pytest.approx(expected, rel=1e-3)


def test_masked_moments_merge_and_subtract(partly_shown):
    hierarchy, columns, seen = partly_shown
    parts = []
    for part in (slice(0, 20), slice(20, 30), slice(0, 30)):
        parts.append(Moments.empty(hierarchy, masked=True))
        update(parts[-1], [column[:, part] for column in columns], seen[:, part])
    first, second, whole = parts
    merge(first, second)
    for ours, theirs in zip(first.mean + first.own + first.cross, whole.mean + whole.own + whole.cross, strict=True):
        assert torch.allclose(ours.double(), theirs.double(), atol=1e-4)
    assert torch.equal(first.seen, whole.seen)
    subtract(first, second)
    alone = Moments.empty(hierarchy, masked=True)
    update(alone, [column[:, :20] for column in columns], seen[:, :20])
    for ours, theirs in zip(first.mean + first.own, alone.mean + alone.own, strict=True):
        assert torch.allclose(ours.double(), theirs.double(), atol=1e-4)


def test_leaving_one_out_of_those_that_show_a_position(partly_shown):
    hierarchy, columns, seen = partly_shown
    moments = Moments.empty(hierarchy, masked=True)
    update(moments, columns, seen)
    factor = factorise(moments, regularization=Regularization(1e-4))
    counts = hierarchy.to_finest(moments.seen)
    closed = leave_one_out(squared_distances(factor, columns), counts)
    for image in (0, 7):
        rest = [i for i in range(30) if i != image]
        without = Moments.empty(hierarchy, masked=True)
        update(without, [column[:, rest] for column in columns], seen[:, rest])
        refitted = factorise(without, regularization=Regularization(1e-4))
        exact = squared_distances(refitted, [column[:, [image]] for column in columns])[0]
        shows = hierarchy.to_finest(seen[:, image]) > 0
        assert closed[image][shows].numpy() == pytest.approx(exact[shows].numpy(), rel=0.02)


def test_grids_that_do_not_nest_cannot_be_masked():
    with pytest.raises(ParameterError, match="alignment needs layers whose grids nest, got 4 x 4, 6 x 6"):
        Moments.empty(build_hierarchy([(6, 6), (4, 4)], [3, 3], np.arange(6)), masked=True)
