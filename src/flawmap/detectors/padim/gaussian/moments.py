"""Streaming, mergeable moments: count, mean and scatter of the embedding at every patch position.

(n, mean, S) is a commutative monoid (Chan, Golub, LeVeque 1983): parts fitted apart merge exactly, whatever their order
and size, so memory does not grow with the number of images. Of each scatter matrix only the block rows of the
hierarchy are kept: for every cell of a level, its own channels against those of all coarser levels, and against
themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flawmap.detectors.padim.embedding import Hierarchy
from flawmap.errors import ParameterError

__all__ = ["Moments", "merge", "subtract", "update"]


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
