"""Streaming, mergeable moments: count, mean and scatter of the embedding at every patch position.

(n, mean, S) is a commutative monoid (Chan, Golub, LeVeque 1983): parts fitted apart merge exactly, whatever their order
and size, so memory does not grow with the number of images. Of each scatter matrix only the block rows of the
hierarchy are kept: at a level with d own channels and D channels up to it, (d, D) per cell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flawmap.embedding import Hierarchy
from flawmap.errors import ParameterError

__all__ = ["Moments", "merge", "update"]


@dataclass
class Moments:
    """Moments of `count` embeddings.

    Attributes:
        hierarchy: levels, coarse to fine.
        count: number n of images seen.
        mean: per level (positions, d), float64.
        scatter: per level (cells, d, D), float32: rows of S = sum (x - mean)(x - mean)^T.
    """

    hierarchy: Hierarchy
    count: int
    mean: list[Tensor]
    scatter: list[Tensor]

    @classmethod
    def empty(cls, hierarchy: Hierarchy, device: torch.device | str = "cpu") -> Moments:
        """Moments of no images at all."""
        levels = hierarchy.levels
        return cls(
            hierarchy,
            0,
            [torch.zeros(level.n_positions, level.n_channels, dtype=torch.float64, device=device) for level in levels],
            [torch.zeros(level.n_cells, level.n_channels, level.width, device=device) for level in levels],
        )


def update(moments: Moments, columns: Sequence[Tensor]) -> None:
    """Take in a batch of embeddings, per level (positions, d, B) float32, in place."""
    batch = columns[0].shape[-1]
    if batch == 0:
        return
    means = [column.mean(dim=-1) for column in columns]
    centred = [column - mean[..., None] for column, mean in zip(columns, means, strict=True)]
    _combine(moments, batch, [mean.double() for mean in means], centred)


def merge(moments: Moments, other: Moments) -> None:
    """Take in all that `other` has seen, in place; both must describe the same hierarchy."""
    if [tuple(s.shape) for s in moments.scatter] != [tuple(s.shape) for s in other.scatter]:
        raise ParameterError("moments of different layers, channels or grids cannot be merged")
    if other.count == 0:
        return
    _combine(moments, other.count, other.mean, None)
    for mine, theirs in zip(moments.scatter, other.scatter, strict=True):
        mine += theirs


def _combine(moments: Moments, count: int, means: Sequence[Tensor], centred: Sequence[Tensor] | None) -> None:
    """Chan's update: add the scatter of `centred` columns and the rank-one term between the two means."""
    total = moments.count + count
    columns = []
    for i, mean in enumerate(means):
        delta = mean - moments.mean[i]
        moments.mean[i] += delta * (count / total)
        between = (delta * math.sqrt(moments.count * count / total)).float()[..., None]
        parts = [between] if centred is None else [centred[i], between]
        columns.append(torch.cat(parts, dim=-1))
    moments.count = total
    _add_outer(moments, columns)


def _add_outer(moments: Moments, columns: Sequence[Tensor]) -> None:
    """S += X X^T over the last axis of the columns (positions, d, B), block row by block row."""
    levels = moments.hierarchy.levels
    coarser: Tensor | None = None
    for level, column, scatter in zip(levels, columns, moments.scatter, strict=True):
        batch = column.shape[-1]
        kept = column.new_empty(level.n_cells, level.width, batch) if level is not levels[-1] else None
        for cells in level.chunks(level.width * batch * column.element_size()):
            stack = level.stack(coarser, column, cells)
            scatter[cells].baddbmm_(stack[:, -level.n_channels :], stack.transpose(1, 2))
            if kept is not None:
                kept[cells] = stack
        coarser = kept
