"""Covariances that blocks of positions share, held to float64 twins that are written position by position."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import naive
from flawmap.detectors.padim.embedding import build_hierarchy, project_hierarchy
from flawmap.detectors.padim.gaussian.blocks import (
    leave_each_out_of_blocks,
    leave_out_of_blocks,
    leave_set_out_of_blocks,
    left_out_distances,
)
from flawmap.detectors.padim.gaussian.factor import (
    factorise,
    inner_products,
    products_in_blocks,
    squared_distances,
    triangles,
    typical_distance,
)
from flawmap.detectors.padim.gaussian.leave_one_out import leave_group_out, leave_one_out, moments_at, shared_at_all
from flawmap.detectors.padim.gaussian.moments import Moments, Regularization, merge, subtract, update
from flawmap.detectors.padim.pooling import in_blocks
from flawmap.errors import ParameterError

N = 30
GRIDS = {"nested": [(16, 8), (8, 4), (8, 4)], "finest unused": [(16, 8), (8, 4)], "one": [(8, 4)]}


class Case:
    """Correlated embeddings of N images, in blocks, and the same for the twin (P, N, d)."""

    def __init__(self, kind="nested", side=2, *, masked=False, n_images=N):
        rng = np.random.default_rng(1)
        grids = GRIDS[kind]
        n_channels = [3, 4, 5][: len(grids)]
        total = sum(n_channels)
        mix = rng.normal(size=(total, total)) / 3
        hidden = rng.normal(size=(n_images, *grids[0], total)) + rng.normal(size=(n_images, 1, 1, total))
        hidden = hidden @ mix + rng.normal(size=(1, *grids[0], total))
        self.features = []
        for i, grid in enumerate(grids):
            start = sum(n_channels[:i])
            part = hidden[:, :: grids[0][0] // grid[0], :: grids[0][1] // grid[1], start : start + n_channels[i]]
            self.features.append(part.transpose(0, 3, 1, 2).astype(np.float32))
        channels = np.arange(total) if kind != "finest unused" else np.arange(n_channels[0], total)
        self.hierarchy = in_blocks(build_hierarchy(grids, n_channels, channels), side)
        self.columns = list(self.hierarchy.select([torch.from_numpy(maps) for maps in self.features]))
        order = np.concatenate([level.columns.numpy() for level in self.hierarchy.levels])
        self.embeddings = naive.embed(self.features, channels)[..., order]
        coarsest = self.hierarchy.coarsest_grid
        self.block = naive.block_of_positions(grids[0], coarsest, side)
        self.seen = self.shown = None
        if masked:
            seen = (rng.random((coarsest[0] * coarsest[1], n_images)) < 0.7).astype(np.float32)
            seen[:3], seen[3] = np.array([[0.0], [0.0], [1.0]]), 0
            seen[1, 4] = seen[3, 5:7] = 1  # of one image, and of two
            self.seen = torch.from_numpy(seen)
            wide = seen.reshape(*coarsest, n_images)
            wide = wide.repeat(grids[0][0] // coarsest[0], 0).repeat(grids[0][1] // coarsest[1], 1)
            self.shown = wide.reshape(-1, n_images) > 0
        self.moments = self.of(range(n_images))

    def of(self, images):
        moments = Moments.empty(self.hierarchy, masked=self.seen is not None)
        self.add(moments, images)
        return moments

    def add(self, moments, images):
        images = list(images)
        seen = None if self.seen is None else self.seen[:, images]
        update(moments, [column[:, images].contiguous() for column in self.columns], seen)

    def some(self, images):
        return [column[:, list(images)].contiguous() for column in self.columns]


def close(moments, other, rtol=1e-4):
    assert moments.count == other.count
    for mine, theirs in zip(
        moments.mean + moments.cross + moments.own, other.mean + other.cross + other.own, strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=rtol, atol=1e-3)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("kind", "side"), [("nested", 2), ("nested", 4), ("finest unused", 2), ("one", 2)])
@pytest.mark.parametrize("sharing", [0.0, 0.3])
def test_distances_equal_those_of_the_twin(kind, side, sharing, masked):
    case = Case(kind, side, masked=masked)
    rule = Regularization(0.02, sharing)
    mean, covariance, freedom = naive.fit_blocks(case.embeddings, case.block, 0.02, sharing, case.shown)
    factor = factorise(case.moments, regularization=rule)
    got = squared_distances(factor, case.columns).flatten(1).T.numpy()
    np.testing.assert_allclose(got, naive.squared_distances(case.embeddings, mean, covariance), rtol=2e-4)
    assert [len(own) for own in factor.own] == [level.n_positions // side**2 for level in case.hierarchy.levels]
    positions = [0, 5, len(mean) - 1]
    inverse = triangles(factor, positions).numpy()
    np.testing.assert_allclose(
        np.linalg.inv(inverse.transpose(0, 2, 1) @ inverse), covariance[positions], rtol=1e-3, atol=1e-4
    )
    found_mean, found, count = moments_at(case.moments, positions)
    np.testing.assert_allclose(found_mean, mean[positions], rtol=1e-5, atol=1e-5)
    if case.shown is not None:
        np.testing.assert_array_equal(count, case.shown[positions].sum(axis=1))
    if sharing == 0:
        alone = covariance[positions] - 0.02 * np.eye(mean.shape[1])
        keep = freedom[positions] > 0
        np.testing.assert_allclose(found.numpy()[keep], alone[keep], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["nested", "finest unused", "one"])
def test_parts_merge_and_are_forgotten_exactly(kind, masked):
    case = Case(kind, masked=masked)
    first, second = case.of(range(12)), case.of(range(12, N))
    merge(first, second)
    close(first, case.moments)
    subtract(first, second)
    close(first, case.of(range(12)))
    in_batches = Moments.empty(case.hierarchy, masked=masked)
    for start in range(0, N, 7):
        case.add(in_batches, range(start, min(start + 7, N)))
    close(in_batches, case.moments)
    with pytest.raises(ParameterError, match="cannot be merged"):
        merge(first, Case(kind, 4, masked=masked).moments)


@pytest.mark.parametrize("inspected", [False, True])
def test_what_all_share_counts_each_inspected_position_once(inspected):
    case = Case()
    rows = np.ones(len(case.block), bool)
    if inspected:
        rows = np.random.default_rng(0).random(len(case.block)) < 0.3
        case.moments.hierarchy = replace(case.hierarchy, inspected=torch.from_numpy(rows))
    _, covariance, _ = naive.fit_blocks(case.embeddings, case.block, 0.0)
    np.testing.assert_allclose(shared_at_all(case.moments), covariance[rows].mean(axis=0), rtol=1e-4, atol=1e-4)
    factor = factorise(case.moments, regularization=Regularization(0.1))
    squared = squared_distances(factor, case.columns).flatten(1)[:, torch.from_numpy(rows)]
    typical = typical_distance(factor, regularization=Regularization(0.1), count=N)
    assert typical == pytest.approx(float(squared.mean(dim=0).sqrt().median()), rel=0.1)


def left_out(case, factor, images, sharing):
    """Squared distances (P, images) from the model without them."""
    seen, shown = case.moments.seen, None if case.seen is None else case.seen[:, images]
    options = {"n_together": len(images), "shown": shown, "sharing": sharing}
    return left_out_distances(factor, case.some(images), N if seen is None else seen, **options).numpy()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("kind", "side"), [("nested", 2), ("nested", 4), ("one", 2), ("finest unused", 2)])
@pytest.mark.parametrize("sharing", [0.0, 0.4])
@pytest.mark.parametrize("images", [[0], [4], [5, 6], [3, 9, 20]])
def test_what_is_left_out_equals_a_refit_without_it(kind, side, masked, sharing, images):
    case = Case(kind, side, masked=masked)
    rest = np.delete(np.arange(N), images)
    of_rest = None if case.shown is None else case.shown[:, rest]
    mean, covariance, freedom = naive.fit_blocks(case.embeddings, case.block, 0.05, sharing, case.shown)
    without = naive.fit_blocks(case.embeddings[:, rest], case.block, 0.05, sharing, of_rest)[2]
    n = len(case.block)
    shown = np.ones((n, len(images)), bool) if case.shown is None else case.shown[:, images]
    # the identity, in float64: what regularises is scaled as the rest
    scale = {int(b): freedom[case.block == b][0] / max(1, without[case.block == b][0]) for b in case.block}
    shared = naive.fit_blocks(case.embeddings, case.block, 0.0, 0.0, case.shown)[1]
    shared = shared[freedom > 0].mean(axis=0)
    left_mean, left_covariance, _ = naive.fit_blocks(
        case.embeddings[:, rest], case.block, 0.05, sharing, of_rest, scale, shared
    )
    expected = naive.squared_distances(case.embeddings[:, images], left_mean, left_covariance)
    whole = np.stack([np.linalg.inv(c) for c in covariance])
    blocks = case.hierarchy.blocks
    delta = (case.embeddings[:, images] - mean[:, None]) * shown[..., None]
    members = np.array(blocks.positions_of(range(n // side**2))).reshape(-1, side**2)
    rows = delta[members].transpose(0, 2, 1, 3).reshape(len(members), len(images) * side**2, -1)
    gram = rows @ whole[members[:, 0]] @ rows.transpose(0, 2, 1)
    count = np.full(n, N) if case.shown is None else case.shown.sum(axis=1)
    squared = leave_out_of_blocks(
        torch.from_numpy(gram),
        torch.from_numpy(count[members].astype(float)),
        n_left_out=len(images),
        n_members=side**2,
        shown=torch.from_numpy(shown[members].transpose(0, 2, 1).astype(float)),
        sharing=sharing,
    )
    got = blocks.unfold(squared.transpose(1, 2)).numpy()
    # of a position that no other image shows nothing is known, and of a block without others only what all share
    known = shown & ((count - shown.sum(axis=1)) > 0)[:, None] & (without > 0)[:, None]
    np.testing.assert_allclose(got[known], expected[known], rtol=1e-6)
    found = left_out(case, factorise(case.moments, regularization=Regularization(0.05, sharing)), images, sharing)
    np.testing.assert_allclose(found[known], expected[known], rtol=5e-3)


def test_blocks_of_one_are_what_is_left_out_of_single_positions():
    products = torch.randn(7, 3, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    products = products @ products.transpose(1, 2)
    got = leave_out_of_blocks(products, 40, n_left_out=3, n_members=1, sharing=0.2)
    torch.testing.assert_close(got[..., 0], leave_group_out(products, 40, sharing=0.2))
    alone = products[:, :1, :1]
    got = leave_out_of_blocks(alone, 40, n_members=1, sharing=0.2)
    torch.testing.assert_close(got[:, 0, 0], leave_one_out(alone[:, 0, 0], 40, sharing=0.2))


@pytest.mark.parametrize("sharing", [0.0, 0.2])
@pytest.mark.parametrize("size", [2, 9])
def test_a_large_group_is_left_out_by_the_inverse_of_its_channels(sharing, size):
    white = torch.randn(3, 4, size, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 2
    for count in (60, torch.tensor([[60.0, 50, 44, 60], [60, 60, 60, 60], [40, 40, 30, 50]]).double()):
        rows = white.transpose(1, 2).flatten(1, 2)
        products = rows @ rows.transpose(1, 2)
        expected = leave_out_of_blocks(products, count, n_left_out=size, n_members=4, sharing=sharing)
        got = leave_set_out_of_blocks(white, count, sharing=sharing)
        torch.testing.assert_close(got, expected.transpose(1, 2), rtol=1e-4, atol=0.0)
        alone = [leave_set_out_of_blocks(white[:, :, i : i + 1], count, sharing=sharing) for i in range(size)]
        got = leave_each_out_of_blocks(white, count, sharing=sharing)
        torch.testing.assert_close(got, torch.cat(alone, dim=2), rtol=1e-4, atol=0.0)


def test_an_image_that_alone_spans_a_direction_scores_high_but_finite():
    white = torch.zeros(1, 4, 6, dtype=torch.float64)
    white[0, :, 0] = (36 * 9 / 10 / 4) ** 0.5
    got = leave_out_of_blocks(white @ white.transpose(1, 2), 10, n_members=4)
    assert torch.isfinite(got).all()
    assert got.min() > 1e4


def test_copies_are_scored_as_by_a_refit_without_the_image():
    case = Case()
    rng = np.random.default_rng(0)
    copies = [torch.from_numpy(rng.normal(0, 2, (len(c), 2, c.shape[2])).astype(np.float32)) for c in case.columns]
    both = [torch.cat([c[:, 4:5], y], dim=1) for c, y in zip(case.columns, copies, strict=True)]
    rule = Regularization(1e-6)  # what regularises is neglected
    factor = factorise(case.moments, regularization=rule)
    got = left_out_distances(factor, both, N, n_together=3, n_left_out=1)
    without = case.of([i for i in range(N) if i != 4])
    expected = squared_distances(factorise(without, regularization=rule), both).flatten(1).T
    torch.testing.assert_close(got, expected, rtol=2e-3, atol=0.0)
    alone = left_out(case, factor, [4], 0.0)
    np.testing.assert_allclose(got[:, 0], alone[:, 0], rtol=1e-5)


def test_products_of_sets_are_those_of_each_image():
    case = Case()
    factor = factorise(case.moments, regularization=Regularization(0.05))
    products = products_in_blocks(factor, case.columns, 1)  # every image is a set
    diagonal = products.diagonal(dim1=2, dim2=3).transpose(1, 2)
    torch.testing.assert_close(
        case.hierarchy.blocks.unfold(diagonal), squared_distances(factor, case.columns).flatten(1).T
    )
    plain = build_hierarchy(GRIDS["one"], [3], np.arange(3))
    moments = Moments.empty(plain)
    columns = [torch.randn(32, 5, 3, generator=torch.Generator().manual_seed(0))]
    update(moments, columns)
    factor = factorise(moments, regularization=Regularization(0.1))
    torch.testing.assert_close(products_in_blocks(factor, columns, 5)[:, 0], inner_products(factor, columns))


def test_principal_components_share_in_blocks_too():
    hierarchy = in_blocks(project_hierarchy([(8, 8), (4, 4)], torch.randn(6, 3)), 4)
    assert hierarchy.covariances.levels[0].n_cells == 4
    moments = Moments.empty(hierarchy)
    columns = hierarchy.select([torch.randn(9, 2, 8, 8), torch.randn(9, 4, 4, 4)])
    update(moments, columns)
    assert torch.isfinite(squared_distances(factorise(moments, regularization=Regularization(0.1)), columns)).all()


@pytest.mark.parametrize(
    ("grids", "side", "message"),
    [
        ([(15, 15), (8, 8), (4, 4)], 2, "grids nest"),
        ([(12, 12), (8, 8), (4, 4)], 2, "grids nest"),
        ([(14, 14), (7, 7)], 2, "whole blocks, got 7 x 7"),
        ([(28, 28), (14, 14)], 4, "got 14 x 14 cells; choose a resize"),
        ([(2, 2)], 4, "whole blocks"),
    ],
)
def test_grids_that_blocks_do_not_fill_are_refused(grids, side, message):
    channels = [2] * len(grids)
    hierarchy = build_hierarchy(grids, channels, np.arange(sum(channels)))
    with pytest.raises(ParameterError, match=message):
        in_blocks(hierarchy, side)
    assert in_blocks(hierarchy, 1) is hierarchy
