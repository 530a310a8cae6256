"""Mahalanobis distances of patches from their Gaussians, by the hierarchy (PaDiM section III-C, equation 2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flawmap.detectors.padim.gaussian.factor import Factor
from flawmap.detectors.padim.gaussian.regularization import Regularization

__all__ = ["inner_products", "squared_distances", "typical_distance"]


def squared_distances(factor: Factor, columns: Sequence[Tensor]) -> Tensor:
    """Squared distances (B, h, w) on the finest grid from embeddings, per level (positions, B, d) float32."""
    batch = columns[0].shape[1]
    total = _sum_over_levels(factor, columns, _squares, (batch,))
    return total.T.reshape(batch, *factor.hierarchy.grid)


def inner_products(factor: Factor, columns: Sequence[Tensor]) -> Tensor:
    """Products (x_i - mean)^T Sigma^-1 (x_j - mean) of all pairs of a batch at each position (P, B, B)."""
    batch = columns[0].shape[1]
    return _sum_over_levels(factor, columns, _products, (batch, batch))


def _squares(white: Tensor) -> Tensor:
    return white.square_().sum(dim=2)


def _products(white: Tensor) -> Tensor:
    return torch.bmm(white, white.transpose(1, 2))


def _sum_over_levels(
    factor: Factor, columns: Sequence[Tensor], product: Callable[[Tensor], Tensor], shape: tuple[int, ...]
) -> Tensor:
    """Sum over levels (P, *shape) of a product (cells, *shape) of each level's whitened embeddings (cells, B, d)."""
    hierarchy, batch = factor.hierarchy, columns[0].shape[1]
    centred = [column - mean[:, None] for column, mean in zip(columns, factor.mean, strict=True)]
    total = centred[0].new_zeros(hierarchy.levels[0].n_groups, *shape)
    for (level, own, parents), cross, square in zip(hierarchy.walk(centred), factor.cross, factor.own, strict=True):
        grouped = cross.view(level.n_groups, level.children * level.n_channels, level.n_coarser)
        above = level.coarser(total, slice(None))
        total = centred[0].new_empty(level.n_cells, *shape)
        for groups, cells in level.chunks(batch * (level.n_coarser + 3 * level.children * level.n_channels) * 4):
            white = torch.bmm(own[cells], square[cells].transpose(1, 2))
            if level.n_coarser:
                # children of one parent stand side by side in one product: (B, D) x (D, children * d)
                shared = torch.bmm(level.coarser(parents, groups), grouped[groups].transpose(1, 2))
                white += shared.view(-1, batch, level.children, level.n_channels).transpose(1, 2).flatten(0, 1)
            total[cells] = product(white)
        total.view(level.n_groups, level.children, *shape).add_(above[:, None])
    return hierarchy.to_positions(total)


def typical_distance(factor: Factor, *, regularization: Regularization, count: int) -> float:
    """Distance of a typical good patch: the median over positions of the root of the mean squared distance.

    Over the `count` images N the factor was fitted on, the mean is known without them:
    (N - 1) / N (d - eps tr Sigma^-1), and tr Sigma^-1 is the sum of the squared entries of A. Where covariances are
    shared, it is that of a sample of the Gaussian itself, d.
    """
    if regularization.sharing:
        return math.sqrt(factor.hierarchy.n_features)
    trace = factor.mean[0].new_zeros(factor.hierarchy.levels[0].n_groups)
    for level, cross, square in zip(factor.hierarchy.levels, factor.cross, factor.own, strict=True):
        above = level.coarser(trace, slice(None)).repeat_interleave(level.children)
        trace = above + cross.square().sum(dim=(1, 2)) + square.square().sum(dim=(1, 2))
    mean_square = (count - 1) / count * (factor.hierarchy.n_features - regularization.ridge * trace)
    return float(mean_square.clamp(min=0).median().sqrt())
