from __future__ import annotations

import pytest
import torch

from flawmap.detectors import neighbours
from flawmap.detectors.neighbours import PatchSearch, build_pyramid, greedy_coreset, nearest_distances, nearest_images

GRIDS = {
    "nested": [(8, 12), (4, 6), (2, 3)],
    "uneven steps": [(8, 12), (4, 4), (4, 2)],
    "not nested": [(7, 9), (4, 5), (2, 3)],
    "one layer": [(5, 4)],
    "two of one grid": [(6, 6), (6, 6), (3, 3)],
    "coarse first": [(2, 2), (4, 4), (8, 8)],
}


def repeated(features):
    """All layers repeated onto the finest grid and concatenated: (B, positions, C) float64."""
    height, width = max((tuple(f.shape[2:]) for f in features), key=lambda grid: grid[0] * grid[1])
    rows = [torch.arange(height) * f.shape[2] // height for f in features]
    columns = [torch.arange(width) * f.shape[3] // width for f in features]
    maps = [f.double()[:, :, r][:, :, :, c] for f, r, c in zip(features, rows, columns, strict=True)]
    return torch.cat(maps, dim=1).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("block_values", [1, 500, 2**24])
@pytest.mark.parametrize("name", GRIDS)
def test_patches_find_the_neighbours_of_a_float64_twin(name, block_values, monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK_VALUES", block_values)
    generator = torch.Generator().manual_seed(0)
    grids = GRIDS[name]
    features = [10 + torch.randn(4, 5 + i, *grid, generator=generator) for i, grid in enumerate(grids)]
    pyramid = build_pyramid(grids, [f.shape[1] for f in features], range(len(grids)))
    levels = pyramid.arrange(features)
    search = PatchSearch([level[0] for level in levels], pyramid.n_cells)
    for image in (2, 1, 3):
        search.offer([level[image] for level in levels])
    patches = repeated(features)
    naive = torch.cdist(patches[0], patches[1:].flatten(0, 1), compute_mode="donot_use_mm_for_euclid_dist").amin(1)
    found = pyramid.to_grid(search.squared())
    assert found.shape == pyramid.grid
    torch.testing.assert_close(found.flatten().double(), naive.square(), rtol=1e-5, atol=0)


def test_a_patch_that_is_in_the_gallery_is_found_exactly():
    features = [1000 + torch.randn(2, 8, 4, 4), 1000 + torch.randn(2, 8, 2, 2)]
    pyramid = build_pyramid([(4, 4), (2, 2)], [8, 8], [0, 1])
    levels = pyramid.arrange(features)
    search = PatchSearch([level[0] for level in levels], pyramid.n_cells)
    search.offer([level[1] for level in levels])
    search.offer([level[0] for level in levels])
    assert not search.squared().any()


def test_kept_cells_keep_the_patches_in_them():
    features = [torch.randn(1, 3, 8, 8), torch.randn(1, 2, 4, 4)]
    pyramid = build_pyramid([(8, 8), (4, 4)], [3, 2], [0, 1])
    levels = [level[0] for level in pyramid.arrange(features)]
    cells = torch.tensor([3, 7, 12])
    kept = pyramid.keep(levels, cells)
    assert [tuple(level.shape) for level in kept] == pyramid.shapes(3) == [(3, 2), (12, 3)]
    whole = repeated(features)[0].view(8, 8, 5)
    wanted = {
        tuple(whole[2 * (cell // 4) + y, 2 * (cell % 4) + x].tolist())
        for cell in cells.tolist()
        for y in (0, 1)
        for x in (0, 1)
    }
    found = {tuple(torch.cat([kept[1][i], kept[0][i % 3]]).double().tolist()) for i in range(12)}
    assert found == wanted


def test_neighbours_that_are_nearly_as_far_are_told_apart():
    generator = torch.Generator().manual_seed(2)
    gallery = 100 + 0.01 * torch.randn(50, 64, generator=generator)
    places, _ = nearest_images(gallery, gallery, 7, own=torch.arange(50))
    naive = torch.cdist(gallery.double(), gallery.double(), compute_mode="donot_use_mm_for_euclid_dist")
    naive.fill_diagonal_(torch.inf)
    assert places.tolist() == naive.topk(7, largest=False).indices.tolist()


@pytest.mark.parametrize("k", [1, 4, 20])
def test_the_nearest_images_are_those_of_a_float64_twin(k):
    gallery, queries = 5 + torch.randn(20, 33), 5 + torch.randn(6, 33)
    places, squared = nearest_images(gallery, queries, k)
    naive = torch.cdist(queries.double(), gallery.double(), compute_mode="donot_use_mm_for_euclid_dist")
    values, wanted = naive.topk(k, largest=False)
    assert places.tolist() == wanted.tolist()
    torch.testing.assert_close(squared.double(), values.square(), rtol=1e-5, atol=0)


def test_an_image_is_not_its_own_neighbour():
    gallery = torch.randn(9, 4)
    places, squared = nearest_images(gallery, gallery, 8, own=torch.arange(9))
    assert all(i not in row for i, row in enumerate(places.tolist()))
    assert bool((squared > 0).all())


def test_a_coreset_is_that_of_the_plain_greedy_algorithm():
    points = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    distances = torch.cdist(points.double(), points.double())
    kept = [int((points - points.mean(0)).norm(dim=1).argmax())]
    while len(kept) < 12:
        kept.append(int(distances[kept].amin(0).argmax()))
    assert greedy_coreset(points, 12).tolist() == sorted(kept)
    assert greedy_coreset(points, 40).tolist() == list(range(40))
    assert greedy_coreset(torch.ones(5, 2), 3).unique().numel() == 3


@pytest.mark.parametrize("block", [None, 12 * 7])
def test_near_neighbours_of_one_grid_are_measured_exactly(monkeypatch, block):
    if block is not None:  # the gallery in parts of seven
        monkeypatch.setattr(neighbours, "BLOCK_VALUES", block)
    generator = torch.Generator().manual_seed(0)
    gallery = torch.randn(50, 6, generator=generator)
    queries = torch.stack([gallery[:12], gallery[12:24]]) + 1e-3
    found = nearest_distances(queries, gallery)
    expected = (queries - gallery[:24].view(2, 12, 6)).norm(dim=2)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)
