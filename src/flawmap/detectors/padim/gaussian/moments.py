"""Streaming, mergeable moments: count, mean and scatter of the embedding at every patch position.

(n, mean, S) is a commutative monoid (Chan, Golub, LeVeque 1983): parts fitted apart merge exactly, whatever their order
and size, so memory does not grow with the number of images. Of each scatter matrix only the block rows of the
hierarchy are kept: for every cell of a level, its own channels against those of all coarser levels, and against
themselves.

An aligned image may show only part of the positions. Each cell of the coarsest level then counts the images that show
it, and every n above is its own.

Where blocks of positions share a covariance, its S is the sum of theirs, each about its own mean, and its degrees of
freedom, n - 1 below, are the sum of theirs.

What regularises the covariances is known from the moments too:

    Sigma(p) = (1 - a) S(p) / (N - 1) + a Sbar + eps I,    Sbar = mean over positions of S(p) / (N - 1)

PaDiM (section III-B) adds the ridge eps I alone. Sharing, a > 0, also shrinks every patch's covariance towards what all
patches have in common (Ledoit and Wolf 2004, with a pooled target). Sbar is the same everywhere, so the hierarchy of
the factors survives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flawmap.detectors.padim.embedding import Hierarchy
from flawmap.errors import ParameterError, TrainingSetError


@dataclass
class Moments:
    """Moments of `count` embeddings.

    Attributes:
        hierarchy: levels, coarse to fine.
        count: number n of images seen.
        mean: per level (positions, d), float64.
        cross: per level (cells of its covariances, d, D), float32: rows of S = sum (x - mean)(x - mean)^T, coarser
            channels.
        own: per level (the same, d, d), float32: the same rows, own channels.
        seen: (cells,) of the coarsest level, float64: number of images that show each; None if all show all.
    """

    hierarchy: Hierarchy
    count: int
    mean: list[Tensor]
    cross: list[Tensor]
    own: list[Tensor]
    seen: Tensor | None = None

    @classmethod
    def empty(cls, hierarchy: Hierarchy, device: torch.device | str = "cpu", *, masked: bool = False) -> Moments:
        """Moments of no images at all; `masked` for images that do not show every position.

        Raises ParameterError for masked ones of grids that do not nest.
        """
        levels = hierarchy.levels
        if masked and not hierarchy.is_nested:
            grids = ", ".join(f"{level.grid[0]} x {level.grid[1]}" for level in levels)
            raise ParameterError(
                f"alignment needs layers whose grids nest, got {grids}; choose a resize that is a multiple of 32, "
                f"other layers, or align='none'"
            )
        shared = hierarchy.covariances.levels
        return cls(
            hierarchy,
            0,
            [torch.zeros(level.n_positions, level.n_channels, dtype=torch.float64, device=device) for level in levels],
            [torch.zeros(level.n_cells, level.n_channels, level.n_coarser, device=device) for level in shared],
            [torch.zeros(level.n_cells, level.n_channels, level.n_channels, device=device) for level in shared],
            torch.zeros(levels[0].n_cells, dtype=torch.float64, device=device) if masked else None,
        )

    @property
    def freedom(self) -> int | Tensor:
        """Degrees of freedom of the covariances, or those in each cell of their coarsest level (cells,)."""
        blocks = self.hierarchy.blocks
        if self.seen is None:
            return (self.count - 1) * (1 if blocks is None else blocks.n_members)
        freedom = (self.seen - 1).clamp(min=0)
        return freedom if blocks is None else freedom[blocks.members[0]].sum(dim=1)

    def emptied(self) -> Moments:
        """Moments of the same kind, of no images at all."""
        mean, cross, own = ([torch.zeros_like(rows) for rows in part] for part in (self.mean, self.cross, self.own))
        return Moments(self.hierarchy, 0, mean, cross, own, None if self.seen is None else torch.zeros_like(self.seen))


def update(moments: Moments, columns: Sequence[Tensor], seen: Tensor | None = None) -> None:
    """Take in a batch of embeddings, per level (positions, B, d) float32, in place. Larger batches are faster.

    `seen` (cells, B) of the coarsest level is 1 where an image shows the cell, else 0; None if all show all.
    """
    batch = columns[0].shape[1]
    if batch == 0:
        return
    if (seen is None) != (moments.seen is None):
        raise ValueError("either all images show every position, or each says which")
    weights = None if seen is None else [seen[index][..., None] for index in moments.hierarchy.coarsest_of_positions]
    if weights is None:
        means = [column.mean(dim=1) for column in columns]
    else:
        means = [
            (column * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
            for column, weight in zip(columns, weights, strict=True)
        ]
    part = None if seen is None else seen.sum(dim=1, dtype=torch.float64)
    between = _move_means(moments, batch, part, [mean.double() for mean in means])
    centred = []
    for i, (column, mean, delta) in enumerate(zip(columns, means, between, strict=True)):
        rows = column.new_empty(column.shape[0], batch + 1, column.shape[2])
        torch.sub(column, mean[:, None], out=rows[:, :batch])
        if weights is not None:
            rows[:, :batch] *= weights[i]
        rows[:, batch] = delta
        centred.append(rows)
    _add_outer(moments, centred)


def merge(moments: Moments, other: Moments) -> None:
    """Take in all that `other` has seen, in place; both must describe the same hierarchy."""
    if [rows.shape for rows in moments.cross + moments.mean] != [rows.shape for rows in other.cross + other.mean]:
        raise ParameterError("moments of different layers, channels or grids cannot be merged")
    if other.count == 0:
        return
    between = _move_means(moments, other.count, other.seen, other.mean)
    _add_outer(moments, [delta[:, None] for delta in between])
    for mine, theirs in zip(moments.cross + moments.own, other.cross + other.own, strict=True):
        mine += theirs


def subtract(moments: Moments, other: Moments) -> None:
    """Forget all that `other` has seen, in place: the inverse of `merge`, but for rounding."""
    if other.count == 0:
        return
    if other.count >= moments.count:
        raise ParameterError(f"cannot subtract {other.count} images from {moments.count}")
    shares, roots = _weights_of(moments, other.count, other.seen, sign=-1)
    between = []
    for mean, theirs, share, root in zip(moments.mean, other.mean, shares, roots, strict=True):
        delta = theirs - mean
        mean -= delta * share
        between.append((delta * root).float()[:, None])
    _count(moments, -other.count, None if other.seen is None else -other.seen)
    for mine, theirs in zip(moments.cross + moments.own, other.cross + other.own, strict=True):
        mine -= theirs
    _add_outer(moments, between, sign=-1)


def _move_means(moments: Moments, count: int, seen: Tensor | None, means: Sequence[Tensor]) -> list[Tensor]:
    """Take in counts and means of a part; gives, per level (positions, d), the root of Chan's term between means."""
    shares, roots = _weights_of(moments, count, seen)
    between = []
    for mean, theirs, share, root in zip(moments.mean, means, shares, roots, strict=True):
        delta = theirs - mean
        mean += delta * share
        between.append((delta * root).float())
    _count(moments, count, seen)
    return between


def _weights_of(
    moments: Moments, count: int, seen: Tensor | None, sign: int = 1
) -> tuple[list[Tensor | float], list[Tensor | float]]:
    """Of a part that is taken in, or out for a sign of -1: m / (n + m) and the root of n m / (n + m), per level."""
    n_levels = len(moments.mean)
    if moments.seen is None or seen is None:
        total = moments.count + sign * count
        return [count / total] * n_levels, [math.sqrt(moments.count * count / total)] * n_levels
    rest = moments.seen + sign * seen
    total_seen = rest.clamp(min=1)
    # where no image remains, nothing is left to be moved
    share, root = seen / total_seen * (rest > 0), (moments.seen * seen / total_seen).sqrt() * (rest > 0)
    index = moments.hierarchy.coarsest_of_positions
    return [share[i][:, None] for i in index], [root[i][:, None] for i in index]


def _count(moments: Moments, count: int, seen: Tensor | None) -> None:
    moments.count += count
    if moments.seen is not None and seen is not None:
        moments.seen += seen


def _add_outer(moments: Moments, columns: Sequence[Tensor], sign: int = 1) -> None:
    """S += sum over B of x x^T for columns (positions, B, d), block row by block row; or -= for a sign of -1."""
    hierarchy, columns = moments.hierarchy.covariances, moments.hierarchy.fold(columns)
    batch = columns[0].shape[1]
    for (level, own, parents), cross, square in zip(hierarchy.walk(columns), moments.cross, moments.own, strict=True):
        square.baddbmm_(own.transpose(1, 2), own, alpha=sign)
        # children of one parent stand side by side in one product: (children * d, B) x (B, D)
        grouped = cross.view(level.n_groups, level.children * level.n_channels, level.n_coarser)
        for groups, cells in level.chunks(batch * (level.n_coarser + level.children * level.n_channels) * 4):
            mine = own[cells].view(-1, level.children, batch, level.n_channels).permute(0, 1, 3, 2).flatten(1, 2)
            grouped[groups].baddbmm_(mine, level.coarser(parents, groups), alpha=sign)


CHOSEN = ("auto", "likelihood")
"""Rules that choose the regularization by the good images."""


@dataclass(frozen=True)
class Regularization:
    """How covariances are regularised.

    Attributes:
        ridge: eps >= 0, added to every variance.
        sharing: a in [0, 1], weight of the covariance that all positions share.
    """

    ridge: float
    sharing: float = 0.0

    @classmethod
    def of(cls, value: object) -> Regularization | None:
        """From what a user gives: "paper", a ridge, or a pair (sharing, ridge); None for "auto" and "likelihood".

        Raises ParameterError.
        """
        if isinstance(value, str) and value in CHOSEN:
            return None
        if value == "paper":
            return PAPER
        pair = tuple(value) if isinstance(value, (tuple, list)) else (0.0, value)
        if len(pair) == 2 and all(_is_finite(part) for part in pair):
            sharing, ridge = (float(part) for part in pair)
            if 0 <= sharing <= 1 and ridge >= 0:
                return cls(ridge, sharing)
        raise ParameterError(
            f"regularization must be 'auto', 'likelihood', 'paper', a finite number >= 0, or a pair (sharing 0 to 1, "
            f"number >= 0); got {value!r}"
        )

    def blend(self, scatter: Tensor, shared: Tensor, freedom: int | Tensor) -> Tensor:
        """Blocks of Sigma without its ridge, float64, from those of some cells' S (n, ...) and of Sbar (...).

        `freedom` are the degrees of freedom, or (n,) those of each cell; a cell that has none has Sbar.
        """
        if isinstance(freedom, int):
            covariance = scatter.double().div_(freedom)
            return covariance.mul_(1 - self.sharing).add_(shared, alpha=self.sharing) if self.sharing else covariance
        shape = (-1, *(1,) * (scatter.ndim - 1))
        covariance = scatter.double().div_(freedom.clamp(min=1).view(shape))
        sharing = torch.where(freedom < 1, 1.0, self.sharing).view(shape)
        return covariance.mul_(1 - sharing).add_(sharing * shared)


def _is_finite(value: object) -> bool:
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return is_number and math.isfinite(value)  # type: ignore[arg-type]


PAPER = Regularization(ridge=0.01)
"""The paper's setting."""


def shared_covariance(moments: Moments) -> list[tuple[Tensor, Tensor]]:
    """Sbar, the mean of S / (n - 1) over the positions of the finest grid: per level (d, D) and (d, d), float64."""
    blocks = []
    hierarchy, freedom = moments.hierarchy, moments.freedom
    cells = hierarchy.covariances.coarsest_of_cells
    levels = zip(hierarchy.coverage(), cells, moments.cross, moments.own, strict=True)
    for coverage, coarsest, cross, own in levels:
        weight = coverage.double()
        if isinstance(freedom, int):
            share = weight / weight.sum() / freedom
        else:
            own_freedom = freedom[coarsest]
            weight = weight * (own_freedom >= 1)
            share = weight / weight.sum().clamp(min=1) / own_freedom.clamp(min=1)
        blocks.append((_weighted(share, cross), _weighted(share, own)))
    return blocks


def _weighted(share: Tensor, scatter: Tensor) -> Tensor:
    """Weighted mean (...) float64 over cells (cells, ...), without a float64 copy of them all."""
    total = scatter.new_zeros(scatter.shape[1:], dtype=torch.float64)
    for start in range(0, len(scatter), 256):
        part = scatter[start : start + 256]
        total += torch.tensordot(share[start : start + 256].to(part.dtype), part, dims=1).double()
    return total


def principal_components(moments: Moments, n_features: int) -> Tensor:
    """Directions (C, n_features) float32 of greatest variance, orthonormal, from moments of one cell of C channels.

    Each points where its largest entry is positive. Raises ParameterError for more directions than channels.
    """
    scatter = moments.own[0][0].double()
    if not 1 <= n_features <= len(scatter):
        raise ParameterError(
            f"n_features must lie between 1 and {len(scatter)}, the channels of these layers; got {n_features}"
        )
    if not bool(torch.isfinite(scatter).all()):
        raise TrainingSetError("the backbone's features are not finite; its weights may be damaged")
    vectors = torch.linalg.eigh(scatter)[1].flip(1)[:, :n_features]
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    components: Tensor = (vectors * largest.sign()).float().contiguous()
    return components
