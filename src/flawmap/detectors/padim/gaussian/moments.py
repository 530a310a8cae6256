"""Streaming, mergeable moments: count, mean and scatter of the embedding at every patch position.

(n, mean, S) is a commutative monoid (Chan, Golub, LeVeque 1983): parts fitted apart merge exactly, whatever their order
and size, so memory does not grow with the number of images. Of each scatter matrix only the block rows of the
hierarchy are kept: for every cell of a level, its own channels against those of all coarser levels, and against
themselves.

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
        cross: per level (cells, d, D), float32: rows of S = sum (x - mean)(x - mean)^T, coarser channels.
        own: per level (cells, d, d), float32: the same rows, own channels.
    """

    hierarchy: Hierarchy
    count: int
    mean: list[Tensor]
    cross: list[Tensor]
    own: list[Tensor]

    @classmethod
    def empty(cls, hierarchy: Hierarchy, device: torch.device | str = "cpu") -> Moments:
        """Moments of no images at all."""
        levels = hierarchy.levels
        return cls(
            hierarchy,
            0,
            [torch.zeros(level.n_positions, level.n_channels, dtype=torch.float64, device=device) for level in levels],
            [torch.zeros(level.n_cells, level.n_channels, level.n_coarser, device=device) for level in levels],
            [torch.zeros(level.n_cells, level.n_channels, level.n_channels, device=device) for level in levels],
        )


def update(moments: Moments, columns: Sequence[Tensor]) -> None:
    """Take in a batch of embeddings, per level (positions, B, d) float32, in place. Larger batches are faster."""
    batch = columns[0].shape[1]
    if batch == 0:
        return
    means = [column.mean(dim=1) for column in columns]
    between = _move_means(moments, batch, [mean.double() for mean in means])
    centred = []
    for column, mean, delta in zip(columns, means, between, strict=True):
        rows = column.new_empty(column.shape[0], batch + 1, column.shape[2])
        torch.sub(column, mean[:, None], out=rows[:, :batch])
        rows[:, batch] = delta
        centred.append(rows)
    _add_outer(moments, centred)


def merge(moments: Moments, other: Moments) -> None:
    """Take in all that `other` has seen, in place; both must describe the same hierarchy."""
    if [rows.shape for rows in moments.cross] != [rows.shape for rows in other.cross]:
        raise ParameterError("moments of different layers, channels or grids cannot be merged")
    if other.count == 0:
        return
    _add_outer(moments, [delta[:, None] for delta in _move_means(moments, other.count, other.mean)])
    for mine, theirs in zip(moments.cross + moments.own, other.cross + other.own, strict=True):
        mine += theirs


def subtract(moments: Moments, other: Moments) -> None:
    """Forget all that `other` has seen, in place: the inverse of `merge`, but for rounding."""
    if other.count == 0:
        return
    if other.count >= moments.count:
        raise ParameterError(f"cannot subtract {other.count} images from {moments.count}")
    rest = moments.count - other.count
    between = []
    for mean, theirs in zip(moments.mean, other.mean, strict=True):
        delta = theirs - mean
        mean -= delta * (other.count / rest)
        between.append((delta * math.sqrt(other.count * moments.count / rest)).float()[:, None])
    moments.count = rest
    for mine, theirs in zip(moments.cross + moments.own, other.cross + other.own, strict=True):
        mine -= theirs
    _add_outer(moments, between, sign=-1)


def _move_means(moments: Moments, count: int, means: Sequence[Tensor]) -> list[Tensor]:
    """Take in the count and means of a part; gives, per level (positions, d), the root of Chan's term between means."""
    total = moments.count + count
    between = []
    for mean, theirs in zip(moments.mean, means, strict=True):
        delta = theirs - mean
        mean += delta * (count / total)
        between.append((delta * math.sqrt(moments.count * count / total)).float())
    moments.count = total
    return between


def _add_outer(moments: Moments, columns: Sequence[Tensor], sign: int = 1) -> None:
    """S += sum over B of x x^T for columns (positions, B, d), block row by block row; or -= for a sign of -1."""
    batch = columns[0].shape[1]
    for (level, own, parents), cross, square in zip(
        moments.hierarchy.walk(columns), moments.cross, moments.own, strict=True
    ):
        square.baddbmm_(own.transpose(1, 2), own, alpha=sign)
        # children of one parent stand side by side in one product: (children * d, B) x (B, D)
        grouped = cross.view(level.n_groups, level.children * level.n_channels, level.n_coarser)
        for groups, cells in level.chunks(batch * (level.n_coarser + level.children * level.n_channels) * 4):
            mine = own[cells].view(-1, level.children, batch, level.n_channels).permute(0, 1, 3, 2).flatten(1, 2)
            grouped[groups].baddbmm_(mine, level.coarser(parents, groups), alpha=sign)


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
        """From what a user gives: "paper", a ridge, or a pair (sharing, ridge); None for "auto". ParameterError."""
        if value == "auto":
            return None
        if value == "paper":
            return PAPER
        pair = tuple(value) if isinstance(value, (tuple, list)) else (0.0, value)
        if len(pair) == 2 and all(_is_finite(part) for part in pair):
            sharing, ridge = (float(part) for part in pair)
            if 0 <= sharing <= 1 and ridge >= 0:
                return cls(ridge, sharing)
        raise ParameterError(
            f"regularization must be 'auto', 'paper', a finite number >= 0, or a pair (sharing from 0 to 1, "
            f"number >= 0); got {value!r}"
        )

    def blend(self, scatter: Tensor, shared: Tensor, count: int) -> Tensor:
        """Blocks of Sigma without its ridge, float64, from those of some cells' S (n, ...) and of their mean (...)."""
        covariance = scatter.double().div_(count - 1)
        if self.sharing:
            covariance.mul_(1 - self.sharing).add_(shared, alpha=self.sharing / (count - 1))
        return covariance


def _is_finite(value: object) -> bool:
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return is_number and math.isfinite(value)  # type: ignore[arg-type]


PAPER = Regularization(ridge=0.01)
"""The paper's setting."""


def shared_scatter(moments: Moments) -> list[tuple[Tensor, Tensor]]:
    """Mean of S over the positions of the finest grid: per level its blocks (d, D) and (d, d), float64."""
    blocks = []
    for weight, cross, own in zip(moments.hierarchy.coverage(), moments.cross, moments.own, strict=True):
        share = weight.double() / weight.sum()
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
