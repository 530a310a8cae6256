r"""The exact hierarchical factorisation of all patch covariances, and Mahalanobis distances by it (equation 2).

With the channels ordered coarse to fine and Sigma = L L^T, the rows of A = L^-1 that belong to a level depend on that
level's cell alone: Sigma^-1 = A^T A, so a squared Mahalanobis distance is the sum over levels of |A_level x|^2, and
every level is stored and computed once per cell instead of once per position. Nothing is approximated.

For a cell with own block S, cross block C to the coarser channels and their inverse factor T:
K = C T^T, L L^T = S - K K^T (Schur complement), rows of A = [-L^-1 K T, L^-1]. T is the same for all children of a
parent, which therefore share the two large products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flawmap.detectors.padim.embedding import Hierarchy, Level
from flawmap.detectors.padim.gaussian.moments import Moments, Regularization, shared_covariance
from flawmap.errors import TrainingSetError
from flawmap.options import MIN_IMAGES

LEAST_SEEN = 0.1
"""Part of the good images that must show a position for it to be inspected."""


@dataclass(frozen=True)
class Factor:
    """One Gaussian per patch position, ready for distances.

    Attributes:
        hierarchy: levels, coarse to fine.
        mean: per level (positions, d), float32.
        cross: per level (cells of its covariances, d, D), float32: the level's rows of A = L^-1, coarser channels.
        own: per level (the same, d, d), float32: the same rows, own channels; lower triangular.
        known: (cells,) of the coarsest level, float32: 1 where enough images show the cell, else 0; None for all.
    """

    hierarchy: Hierarchy
    mean: list[Tensor]
    cross: list[Tensor]
    own: list[Tensor]
    known: Tensor | None = None

    @property
    def inspected(self) -> float:
        """Part of the images that is inspected."""
        hierarchy = self.hierarchy
        if self.known is None:
            return 1.0 if hierarchy.inspected is None else float(hierarchy.inspected.float().mean())
        known = hierarchy.to_finest(self.known).flatten()
        return float(known.mean() if hierarchy.inspected is None else (known * hierarchy.inspected).mean())


def factorise(
    moments: Moments,
    *,
    regularization: Regularization,
    shared: Sequence[tuple[Tensor, Tensor]] | None = None,
    in_place: bool = False,
) -> Factor:
    """Factor the regularised covariance of every cell, in float64, stored in float32.

    `shared` is what all positions share (`shared_covariance`), for moments of some of them; None: it is computed.
    `in_place` takes the memory of the moments' scatter for it, and leaves them without: half of what is needed else.

    Source: PaDiM section III-B, equation 1. Raises TrainingSetError for fewer than two images, or where a covariance is
    not positive definite.
    """
    if moments.count < 2:
        raise TrainingSetError(
            f"a Gaussian needs at least 2 good images, got {moments.count}; a few dozen are a good start"
        )
    hierarchy, freedom = moments.hierarchy.covariances, moments.freedom
    levels = hierarchy.levels
    known = None if moments.seen is None else known_cells(moments.seen, moments.count)
    factor = Factor(moments.hierarchy, [mean.float() for mean in moments.mean], [], [], known)
    shared = shared_covariance(moments) if shared is None else shared
    for depth, (level, cross, own) in enumerate(zip(levels, moments.cross, moments.own, strict=True)):
        factor.cross.append(cross if in_place else torch.empty_like(cross))
        factor.own.append(own if in_place else torch.empty_like(own))
        n_together = level.children * level.n_channels
        for groups, cells in level.chunks(
            8 * (level.n_coarser * (level.n_coarser + 3 * n_together) + 4 * n_together * level.n_channels)
        ):
            triangle = _triangle(levels[:depth], factor, _parents(level, groups, cross.device))
            own_freedom = freedom if isinstance(freedom, int) else freedom[hierarchy.coarsest_of_cells[depth][cells]]
            blocks = _factor_cells(
                regularization.blend(cross[cells], shared[depth][0], own_freedom),
                regularization.blend(own[cells], shared[depth][1], own_freedom),
                triangle,
                regularization.ridge,
            )
            factor.cross[depth][cells], factor.own[depth][cells] = blocks
    if in_place:
        moments.cross, moments.own = [], []
    return factor


def known_cells(seen: Tensor, count: int) -> Tensor:
    """Where enough of `count` images show a cell: 1, else 0. Of fewer than three images that is all of them."""
    return (seen >= max(min(MIN_IMAGES, count), LEAST_SEEN * count)).float()


def mean_at(factor: Factor, position: int) -> Tensor:
    """Mean (d,) float64 at a position of the finest grid, in the order of the drawn channels."""
    mean = torch.empty(factor.hierarchy.n_features, dtype=torch.float64)
    for level, own, means in zip(
        factor.hierarchy.levels, factor.hierarchy.own_positions(position), factor.mean, strict=True
    ):
        mean[level.columns] = means[own].double().cpu()
    return mean


def covariance_at(factor: Factor, position: int) -> Tensor:
    """Regularised covariance (d, d) float64 at a position of the finest grid, in the order of the drawn channels."""
    levels = factor.hierarchy.levels
    inverse = triangles(factor, [position])[0].cpu()
    identity = torch.eye(len(inverse), dtype=torch.float64)
    lower = torch.linalg.solve_triangular(inverse, identity, upper=False)
    order = torch.cat([level.columns for level in levels])
    covariance = torch.empty_like(lower)
    covariance[order[:, None], order] = lower @ lower.T
    return covariance


def triangles(factor: Factor, positions: Sequence[int]) -> Tensor:
    """Inverse Cholesky factors A (n, d, d) float64 at positions of the finest grid, channels coarse to fine."""
    cells = [factor.hierarchy.covariance_cells(position)[-1] for position in positions]
    return _triangle(factor.hierarchy.covariances.levels, factor, torch.tensor(cells, device=factor.own[-1].device))


def _parents(level: Level, groups: slice, device: torch.device) -> Tensor:
    """Parent of each of some groups."""
    if level.group_parent is None:
        return torch.arange(groups.start, groups.stop, device=device)
    return level.group_parent[groups]


def _triangle(levels: Sequence[Level], factor: Factor, cells: Tensor) -> Tensor:
    """The whole inverse factor A (n, D, D) float64 of some cells of the last of these levels; (n, 0, 0) of none."""
    width = levels[-1].n_coarser + levels[-1].n_channels if levels else 0
    triangle = torch.zeros(len(cells), width, width, dtype=torch.float64, device=cells.device)
    for depth in reversed(range(len(levels))):
        level, start = levels[depth], levels[depth].n_coarser
        stop = start + level.n_channels
        triangle[:, start:stop, :start] = factor.cross[depth][cells].double()
        triangle[:, start:stop, start:stop] = factor.own[depth][cells].double()
        group = cells // level.children
        cells = group if level.group_parent is None else level.group_parent[group]
    return triangle


def _factor_cells(cross: Tensor, own: Tensor, triangle: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Rows of A of some cells, from those of Sigma (n, d, D), (n, d, d) and their parents' A (g, D, D)."""
    n_cells, n_own, n_coarser = cross.shape
    grouped = cross.view(len(triangle), n_cells // len(triangle) * n_own, n_coarser)
    projected = torch.bmm(grouped, triangle.transpose(1, 2))
    per_cell = projected.view(cross.shape)
    own.diagonal(dim1=1, dim2=2).add_(ridge)
    inverse = _inverse_cholesky(own.baddbmm_(per_cell, per_cell.transpose(1, 2), alpha=-1))
    return torch.bmm(-inverse, torch.bmm(projected, triangle).view(cross.shape)), inverse


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


def squared_distances(factor: Factor, columns: Sequence[Tensor]) -> Tensor:
    """Squared distances (B, h, w) on the finest grid from embeddings, per level (positions, B, d) float32."""
    batch, blocks = columns[0].shape[1], factor.hierarchy.blocks
    total = _sum_over_levels(factor, columns, _squares, (batch if blocks is None else batch * blocks.n_members,))
    total = total if blocks is None else blocks.unfold(total.view(-1, blocks.n_members, batch))
    return total.T.reshape(batch, *factor.hierarchy.grid)


def inner_products(factor: Factor, columns: Sequence[Tensor]) -> Tensor:
    """Products (x_i - mean)^T Sigma^-1 (x_j - mean) of all pairs of a batch at each position (P, B, B).

    Of Gaussians that share no covariance; `products_in_blocks` is for those that do.
    """
    batch = columns[0].shape[1]
    return _sum_over_levels(factor, columns, _products, (batch, batch))


def products_in_blocks(factor: Factor, columns: Sequence[Tensor], n_together: int) -> Tensor:
    """The same of all pairs in a set of images and in all positions of a block: (., sets, k * b^2, k * b^2).

    A batch is k = `n_together` parts of one image of each set. Rows are those of the parts, and of the positions of a
    block in each, blocks those of the finest grid of `hierarchy.covariances`.
    """
    blocks = factor.hierarchy.blocks
    n_members = 1 if blocks is None else blocks.n_members
    n_sets = columns[0].shape[1] // n_together
    n_rows = n_together * n_members

    def products(white: Tensor) -> Tensor:
        rows = white.view(len(white), n_members, n_together, n_sets, -1).permute(0, 3, 2, 1, 4)
        rows = rows.reshape(len(white) * n_sets, n_rows, -1)
        return torch.bmm(rows, rows.transpose(1, 2)).view(len(white), n_sets, n_rows, n_rows)

    return _sum_over_levels(factor, columns, products, (n_sets, n_rows, n_rows))


def _squares(white: Tensor) -> Tensor:
    return white.square_().sum(dim=2)


def _products(white: Tensor) -> Tensor:
    return torch.bmm(white, white.transpose(1, 2))


def _sum_over_levels(
    factor: Factor, columns: Sequence[Tensor], product: Callable[[Tensor], Tensor], shape: tuple[int, ...]
) -> Tensor:
    """Sum over levels (P, *shape) of a product (cells, *shape) of each level's whitened embeddings (cells, B, d).

    P is of the finest grid of `hierarchy.covariances`; where blocks share one, B is b^2 times that of `columns`.
    """
    hierarchy = factor.hierarchy.covariances
    centred = factor.hierarchy.fold([column - mean[:, None] for column, mean in zip(columns, factor.mean, strict=True)])
    batch = centred[0].shape[1]
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
    hierarchy = factor.hierarchy.covariances
    trace = factor.mean[0].new_zeros(hierarchy.levels[0].n_groups)
    for level, cross, square in zip(hierarchy.levels, factor.cross, factor.own, strict=True):
        above = level.coarser(trace, slice(None)).repeat_interleave(level.children)
        trace = above + cross.square().sum(dim=(1, 2)) + square.square().sum(dim=(1, 2))
    if (inspected := factor.hierarchy.inspected) is not None:
        trace, blocks = hierarchy.to_positions(trace), factor.hierarchy.blocks
        trace = (trace if blocks is None else blocks.repeat(trace))[inspected]
    mean_square = (count - 1) / count * (hierarchy.n_features - regularization.ridge * trace)
    return float(mean_square.clamp(min=0).median().sqrt())
