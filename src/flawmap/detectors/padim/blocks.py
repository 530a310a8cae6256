"""Blocks of positions that share a covariance, each position with a mean of its own.

A block is b x b neighbouring cells of the coarsest grid, its members. Of finer grids the cells at the same place within
each member share. So a covariance of a finer level and the one above it are of the same members, every joint
covariance is a mean of b^2 valid ones, and the covariances have the very hierarchy of an image b times smaller: storage
and factors are b^2 times fewer, and each has b^2 (N - 1) degrees of freedom.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Blocks:
    """Which positions share a covariance.

    Attributes:
        members: per level (covariances, b^2), the positions that share one.
        places: (height * width,) where each position of the finest grid stands in such a list of the finest grid.
    """

    members: tuple[Tensor, ...]
    places: Tensor

    @property
    def n_members(self) -> int:
        """Cells b^2 of the coarsest grid in a block."""
        return self.members[0].shape[1]

    def to(self, device: torch.device) -> Blocks:
        """The same on a device."""
        return Blocks(tuple(rows.to(device) for rows in self.members), self.places.to(device))

    def fold(self, columns: Sequence[Tensor]) -> list[Tensor]:
        """Values of each position, per level (positions, n, ...), as those of each block's (., b^2 * n, ...)."""
        return [column[rows].flatten(1, 2) for column, rows in zip(columns, self.members, strict=True)]

    def unfold(self, values: Tensor) -> Tensor:
        """Values of each position of the finest grid (P, ...), from those of each block's members (., b^2, ...)."""
        return values.flatten(0, 1)[self.places]

    def repeat(self, values: Tensor) -> Tensor:
        """The same, where members have one value (., ...)."""
        return values[self.places // self.n_members]

    def coarsest_of_positions(self, coarsest: Sequence[Tensor]) -> list[Tensor]:
        """Cell of the coarsest level that each position lies in: (positions,) per level.

        From the block of the coarsest level that each covariance lies in: (covariances,) per level.
        """
        found = []
        for rows, block in zip(self.members, coarsest, strict=True):
            above = self.members[0][block]
            found.append(torch.empty_like(rows).flatten().scatter_(0, rows.flatten(), above.flatten()))
        return found

    def block_of(self, position: int) -> int:
        """Position of the covariances' finest grid that a position of the finest grid shares."""
        return int(self.places[position]) // self.n_members

    def positions_of(self, blocks: Sequence[int]) -> list[int]:
        """Positions of the finest grid that share those of the covariances' finest grid, in the order of `unfold`."""
        found: list[int] = self.places.argsort().view(-1, self.n_members)[list(blocks)].flatten().tolist()
        return found
