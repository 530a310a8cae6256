from __future__ import annotations

import numpy as np
import pytest
import torch

from flawmap import PaDiM
from flawmap.detectors.padim import sharing
from flawmap.detectors.padim.embedding import build_hierarchy
from flawmap.detectors.padim.gaussian.factor import factorise, squared_distances
from flawmap.detectors.padim.gaussian.leave_one_out import leave_one_out, leave_one_out_with_copies
from flawmap.detectors.padim.gaussian.moments import Moments, Regularization, shared_covariance, update
from flawmap.detectors.padim.part import Part
from spots import spotted_parts

SMALL = {"resize": 64, "n_features": 24, "align": "none", "refit_below": 0}


@pytest.fixture(scope="module")
def photos():
    return spotted_parts(40)


@pytest.mark.parametrize("sharing", [0.0, 0.4])
def test_copies_are_scored_as_by_a_refit_without_the_image(sharing):
    rng, n, d = np.random.default_rng(0), 60, 4
    images = rng.normal(size=(n, d)) @ rng.normal(size=(d, d))
    copies = images[7] + 3 * rng.normal(size=(2, d))
    target = np.eye(d) * sharing * 2

    def model(those):
        return those.mean(axis=0), (1 - sharing) * np.cov(those.T) + target

    mean, covariance = model(images)
    every = np.stack([images[7], *copies])
    products = torch.from_numpy((every - mean) @ np.linalg.inv(covariance) @ (every - mean).T)
    mean, covariance = model(np.delete(images, 7, axis=0))
    wanted = np.einsum("ij,jk,ik->i", every - mean, np.linalg.inv(covariance), every - mean)
    found = leave_one_out_with_copies(products, n, sharing=sharing)
    # only what regularises is neglected
    np.testing.assert_allclose(found, wanted, rtol=1e-9 if sharing == 0 else 0.03)
    assert float(found[0]) == pytest.approx(float(leave_one_out(products[0, 0], n, sharing=sharing)), rel=1e-9)


@pytest.mark.parametrize("grids", [[(16, 16), (8, 8), (4, 4)], [(15, 15), (8, 8), (4, 4)], [(4, 4)]])
def test_a_part_of_the_cells_has_the_distances_of_the_whole(grids):
    channels = [3] * len(grids)
    hierarchy = build_hierarchy(grids, channels, np.arange(sum(channels)))
    rng = torch.Generator().manual_seed(0)
    features = [torch.randn(20, 3, *grid, generator=rng) for grid in grids]
    columns, moments = hierarchy.select(features), Moments.empty(hierarchy)
    update(moments, columns)
    chosen = torch.zeros(hierarchy.levels[0].n_cells, dtype=torch.bool)
    chosen[[1, 2, 7, 13]] = True
    part, rule = Part.of(hierarchy, chosen), Regularization(0.1, 0.3)
    factor = factorise(part.moments(moments), regularization=rule, shared=shared_covariance(moments))
    own = [column[rows] for column, rows in zip(columns, part.own, strict=True)]
    products = sharing.inner_products(factor, own).diagonal(dim1=1, dim2=2)
    whole = squared_distances(factorise(moments, regularization=rule), columns).flatten(1)
    torch.testing.assert_close(products.T, whole[:, part.positions], rtol=1e-4, atol=1e-4)


def test_the_area_is_that_of_the_roc_curve():
    told = sharing._told_apart(np.array([1.0, 2.0, 4.0]), np.array([[2.0, 3.0], [3.0, 0.5], [5.0, 4.0]]))
    # of 3 x 6 pairs 10 are right and 2 are even
    assert told.mean() == pytest.approx(11 / 18)


def test_patches_share_more_where_their_own_covariance_hides_defects(photos):
    likely = PaDiM(**SMALL, regularization="likelihood").fit(photos)
    model = PaDiM(**SMALL).fit(photos)
    assert model.regularization_.ridge == likely.regularization_.ridge
    assert model.regularization_.sharing >= likely.regularization_.sharing
    again = PaDiM(**SMALL).fit(photos)
    assert again.regularization_ == model.regularization_
    np.testing.assert_array_equal(again.leave_one_out_scores_, model.leave_one_out_scores_)


def test_what_is_not_better_beyond_doubt_is_not_taken(photos, monkeypatch):
    areas = iter([0.5, 0.9, 0.5, 0.6, 0.7])  # of the likelihood's sharing, then of each candidate
    noise = np.random.default_rng(0).normal(0, 1, 40)

    def told_apart(*_):
        area = next(areas)
        return area + (noise * 5 if area > 0.85 else np.zeros(40))  # the highest is in doubt

    monkeypatch.setattr(sharing, "_told_apart", told_apart)
    assert PaDiM(**SMALL).fit(photos).regularization_.sharing == sharing.SHARINGS[-1]


def test_few_images_and_those_that_are_gone_leave_the_choice_to_the_likelihood(photos):
    for images, options in ((photos[:19], {}), (iter(photos), {"cache_mb": 0})):
        likely = PaDiM(**SMALL | options, regularization="likelihood").fit(list(images) if options == {} else photos)
        found = PaDiM(**SMALL | options).fit(images)
        assert found.regularization_ == pytest.approx(likely.regularization_) or found.regularization_ == (
            likely.regularization_
        )


@pytest.mark.parametrize("n_again", [20, 40, 80])
def test_images_of_a_group_do_not_vouch_for_each_other(photos, monkeypatch, n_again):
    counts = []
    factorised = sharing.factorise

    def noted(moments, **options):
        counts.append((moments.count, float(moments.own[0].sum()), float(moments.mean[0].sum())))
        return factorised(moments, **options)

    monkeypatch.setattr(sharing, "factorise", noted)
    PaDiM(**SMALL).fit(photos)
    PaDiM(**SMALL).fit([*photos, *(photos * 2)[:n_again]])
    assert [count for count, _, _ in counts] == [40] * len(counts)
    np.testing.assert_allclose([spread for _, spread, _ in counts], counts[0][1], rtol=1e-3)
    np.testing.assert_allclose([mean for _, _, mean in counts], counts[0][2], rtol=1e-5)


def test_without_enough_groups_that_can_be_read_again_the_likelihood_chooses(photos, monkeypatch):
    monkeypatch.setattr(sharing, "factorise", None)
    PaDiM(**SMALL).fit(photos[:19] * 2)
