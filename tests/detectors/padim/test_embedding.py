from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from flawmap.detectors.padim.embedding import build_hierarchy, draw_channels
from flawmap.errors import ParameterError


@pytest.mark.parametrize(
    "grids", [[(8, 8), (4, 4), (2, 2)], [(9, 7), (5, 4), (3, 2)], [(13, 6), (6, 13)], [(1, 1), (5, 5)]]
)
def test_every_position_reaches_the_embedding_of_repeated_and_concatenated_maps(grids):
    features = [torch.randn(2, 3, *grid) for grid in grids]
    channels = draw_channels(3 * len(grids), 3 * len(grids) - 1, seed=1)
    hierarchy = build_hierarchy(grids, [3] * len(grids), channels)
    finest = max(grids, key=lambda grid: grid[0] * grid[1])
    repeated = torch.cat([interpolate(maps, size=finest, mode="nearest") for maps in features], 1)[:, channels]
    columns = hierarchy.select(features)
    for position in range(finest[0] * finest[1]):
        embedding = torch.empty(2, len(channels))
        for level, column, cell in zip(hierarchy.levels, columns, hierarchy.ancestors(position), strict=True):
            embedding[:, level.columns] = column[cell if level.own is None else int(level.own[cell])]
        assert torch.equal(embedding, repeated.flatten(2)[:, :, position])


def test_a_draw_is_sorted_distinct_and_fixed_by_its_seed():
    draw = draw_channels(448, 100, seed=5)
    assert len(np.unique(draw)) == 100
    assert np.all(np.diff(draw) > 0)
    assert np.array_equal(draw, draw_channels(448, 100, seed=5))
    assert not np.array_equal(draw, draw_channels(448, 100, seed=6))
    assert np.array_equal(draw_channels(5, None, seed=0), np.arange(5))


@pytest.mark.parametrize("n_features", [0, -1, 449])
def test_an_impossible_number_of_features_is_refused(n_features):
    with pytest.raises(ParameterError, match="between 1 and 448"):
        draw_channels(448, n_features, seed=0)


@pytest.mark.parametrize("channels", [[], [0, 0], [-1], [6]])
def test_impossible_channels_are_refused(channels):
    with pytest.raises(ParameterError, match="distinct indices from 0 to 5"):
        build_hierarchy([(2, 2), (1, 1)], [3, 3], np.array(channels, np.int64))


def test_maps_of_another_grid_are_refused():
    hierarchy = build_hierarchy([(2, 2)], [3], np.arange(3))
    with pytest.raises(ParameterError, match=r"expected feature maps of \(2, 2\), got \(3, 2\)"):
        hierarchy.select([torch.zeros(1, 3, 3, 2)])
