r"""The exact hierarchical factorisation of all patch covariances.

With the channels ordered coarse to fine and Sigma = L L^T, the rows of A = L^-1 that belong to a level depend on that
level's cell alone: Sigma^-1 = A^T A, so a squared Mahalanobis distance is the sum over levels of |A_level x|^2, and
every level is stored and computed once per cell instead of once per position. Nothing is approximated.

For a level with own block S, cross block C to the coarser channels and their inverse factor T:
K = T C^T, L L^T = S - K^T K (Schur complement), A = [-L^-1 K^T T, L^-1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flawmap.embedding import Hierarchy, Level
from flawmap.errors import TrainingSetError
from flawmap.gaussian.moments import Moments

__all__ = ["Factor", "covariance_at", "factorise", "mean_at"]


@dataclass(frozen=True)
class Factor:
    """One Gaussian per patch position, ready for distances.

    Attributes:
        hierarchy: levels, coarse to fine.
        mean: per level (positions, d), float32.
        rows: per level (cells, d, D), float32: the level's rows of A = L^-1.
    """

    hierarchy: Hierarchy
    mean: list[Tensor]
    rows: list[Tensor]

    def to(self, device: torch.device) -> Factor:
        """The same Gaussians on a device."""
        return Factor(
            self.hierarchy.to(device), [mean.to(device) for mean in self.mean], [rows.to(device) for rows in self.rows]
        )


def factorise(moments: Moments, *, regularization: float) -> Factor:
    """Factor Sigma = S / (n - 1) + regularization * I at every cell, in float64, stored in float32.

    Source: PaDiM section III-B, equation 1. Raises TrainingSetError for fewer than two images, or where a covariance is
    not positive definite.
    """
    if moments.count < 2:
        raise TrainingSetError(
            f"a Gaussian needs at least 2 good images, got {moments.count}; a few dozen are a good start"
        )
    levels = moments.hierarchy.levels
    rows: list[Tensor] = []
    for depth, (level, scatter) in enumerate(zip(levels, moments.scatter, strict=True)):
        result = torch.empty_like(scatter)
        for cells in level.chunks(level.width * (level.width + 3 * level.n_channels) * 8):
            covariance = scatter[cells].double() / (moments.count - 1)
            covariance[..., -level.n_channels :].diagonal(dim1=1, dim2=2).add_(regularization)
            triangle = None if level.parent is None else _triangle(levels[:depth], rows, level.parent[cells])
            result[cells] = _block_row(covariance, triangle).float()
        rows.append(result)
    return Factor(moments.hierarchy, [mean.float() for mean in moments.mean], rows)


def mean_at(factor: Factor, position: int) -> Tensor:
    """Mean (d,) float64 at a position of the finest grid, in the order of the drawn channels."""
    mean = torch.empty(factor.hierarchy.n_features, dtype=torch.float64)
    for level, cell, means in zip(
        factor.hierarchy.levels, factor.hierarchy.ancestors(position), factor.mean, strict=True
    ):
        own = cell if level.own is None else int(level.own[cell])
        mean[level.columns] = means[own].double().cpu()
    return mean


def covariance_at(factor: Factor, position: int) -> Tensor:
    """Regularised covariance (d, d) float64 at a position of the finest grid, in the order of the drawn channels."""
    levels = factor.hierarchy.levels
    cell = torch.tensor([factor.hierarchy.ancestors(position)[-1]], device=factor.rows[-1].device)
    inverse = _triangle(levels, factor.rows, cell)[0].cpu()
    identity = torch.eye(len(inverse), dtype=torch.float64)
    lower = torch.linalg.solve_triangular(inverse, identity, upper=False)
    order = torch.cat([level.columns for level in levels])
    covariance = torch.empty_like(lower)
    covariance[order[:, None], order] = lower @ lower.T
    return covariance


def _triangle(levels: Sequence[Level], rows: Sequence[Tensor], cells: Tensor) -> Tensor:
    """The whole inverse factor A (n, D, D) float64 of some cells of the last of these levels."""
    width = levels[-1].width
    triangle = torch.zeros(len(cells), width, width, dtype=torch.float64, device=cells.device)
    for level, block in zip(reversed(levels), reversed(rows), strict=True):
        triangle[:, level.width - level.n_channels : level.width, : level.width] = block[cells].double()
        if level.parent is not None:
            cells = level.parent[cells]
    return triangle


def _block_row(covariance: Tensor, triangle: Tensor | None) -> Tensor:
    """Rows of A (n, d, D) from the same rows of Sigma and the coarser channels' inverse factor (n, D-d, D-d)."""
    n_own = covariance.shape[1]
    own = covariance[..., -n_own:]
    if triangle is None:
        return _inverse_cholesky(own)
    projected = triangle @ covariance[..., :-n_own].transpose(1, 2)
    inverse = _inverse_cholesky(own - projected.transpose(1, 2) @ projected)
    return torch.cat([-(inverse @ projected.transpose(1, 2)) @ triangle, inverse], dim=-1)


def _inverse_cholesky(matrix: Tensor) -> Tensor:
    """L^-1 of (n, d, d) symmetric positive definite matrices, by substitution (batched inversion is unsafe in MKL)."""
    lower, failed = torch.linalg.cholesky_ex(matrix)
    if bool(failed.any()):
        raise TrainingSetError(
            "a patch covariance is not positive definite: the features hold NaN, or there are fewer good images than "
            "channels and `regularization` is too small; raise `regularization` (0.01 is the paper's)"
        )
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device).expand_as(matrix)
    inverse: Tensor = torch.linalg.solve_triangular(lower, identity, upper=False)
    return inverse
