"""Mahalanobis distances of patches from their Gaussians, by the hierarchy (PaDiM section III-C, equation 2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flawmap.gaussian.factor import Factor

__all__ = ["squared_distances", "typical_distance"]


def squared_distances(factor: Factor, columns: Sequence[Tensor]) -> Tensor:
    """Squared distances (B, h, w) on the finest grid from embeddings, per level (positions, d, B) float32."""
    hierarchy = factor.hierarchy
    batch = columns[0].shape[-1]
    stack: Tensor | None = None
    total: Tensor | None = None
    for level, column, mean, rows in zip(hierarchy.levels, columns, factor.mean, factor.rows, strict=True):
        centred = column - mean[..., None]
        coarser, coarser_total = stack, total
        stack = centred.new_empty(level.n_cells, level.width, batch) if level is not hierarchy.levels[-1] else None
        total = centred.new_empty(level.n_cells, batch)
        for cells in level.chunks(level.width * batch * centred.element_size()):
            part = level.stack(coarser, centred, cells)
            torch.sum(torch.bmm(rows[cells], part).square_(), dim=1, out=total[cells])
            if stack is not None:
                stack[cells] = part
        if coarser_total is not None and level.parent is not None:
            total += coarser_total[level.parent]
    if total is None:
        raise ValueError("a hierarchy has at least one level")
    return hierarchy.to_positions(total).T.reshape(batch, *hierarchy.grid)


def typical_distance(factor: Factor, *, regularization: float, count: int) -> float:
    """Distance of a typical good patch: the median over positions of the root of the mean squared distance.

    Over the `count` images N the factor was fitted on, the mean is known without them:
    (N - 1) / N (d - regularization tr Sigma^-1), and tr Sigma^-1 is the sum of the squared entries of A.
    """
    trace: Tensor | None = None
    for level, rows in zip(factor.hierarchy.levels, factor.rows, strict=True):
        own = torch.linalg.vector_norm(rows, dim=(1, 2)).square().double()
        trace = own if trace is None or level.parent is None else own + trace[level.parent]
    if trace is None:
        raise ValueError("a hierarchy has at least one level")
    mean_square = (count - 1) / count * (factor.hierarchy.n_features - regularization * trace)
    return float(mean_square.clamp(min=0).median().sqrt())
