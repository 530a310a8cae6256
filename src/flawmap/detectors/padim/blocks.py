"""Blocks of positions that share a covariance, each position with a mean of its own.

A block is b x b neighbouring cells of the coarsest grid, its members. Of finer grids the cells at the same place within
each member share. So a covariance of a finer level and the one above it are of the same members, every joint
covariance is a mean of b^2 valid ones, and the covariances have the very hierarchy of an image b times smaller: storage
and factors are b^2 times fewer, and each has b^2 (N - 1) degrees of freedom.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from flawmap.detectors.padim.embedding import Hierarchy, Level, find_cells, unless_identity
from flawmap.errors import ParameterError
from flawmap.prediction import Size


@dataclass(frozen=True)
class Blocks:
    """Which positions share a covariance.

    Attributes:
        hierarchy: of the covariances, as of grids b times smaller.
        members: per level (positions of `hierarchy`, b^2), the positions that share one.
        places: (height * width,) where each position of the finest grid stands in such a list of the finest grid.
    """

    hierarchy: Hierarchy
    members: tuple[Tensor, ...]
    places: Tensor

    @property
    def n_members(self) -> int:
        """Cells b^2 of the coarsest grid in a block."""
        return self.members[0].shape[1]

    def to(self, device: torch.device) -> Blocks:
        """The same on a device."""
        members = tuple(rows.to(device) for rows in self.members)
        return Blocks(self.hierarchy.to(device), members, self.places.to(device))

    def fold(self, columns: Sequence[Tensor]) -> list[Tensor]:
        """Values of each position, per level (positions, n, ...), as those of each block's (., b^2 * n, ...)."""
        return [column[rows].flatten(1, 2) for column, rows in zip(columns, self.members, strict=True)]

    def unfold(self, values: Tensor) -> Tensor:
        """Values of each position of the finest grid (P, ...), from those of each block's members (., b^2, ...)."""
        return values.flatten(0, 1)[self.places]

    def repeat(self, values: Tensor) -> Tensor:
        """The same, where members have one value (., ...)."""
        return values[self.places // self.n_members]

    def spread(self, per_cell: Tensor) -> Tensor:
        """Values of each cell of the coarsest level (cells, ...), at each block of the finest grid (., b^2, ...)."""
        coarsest = self.hierarchy.coarsest_of_cells[-1]
        return self.hierarchy.to_positions(per_cell[self.members[0]][coarsest])

    @cached_property
    def coarsest_of_positions(self) -> list[Tensor]:
        """Cell of the coarsest level that each position lies in: (positions,) per level."""
        found = []
        for rows, coarsest in zip(self.members, self.hierarchy.coarsest_of_positions, strict=True):
            above = self.members[0][coarsest]
            found.append(torch.empty_like(rows).flatten().scatter_(0, rows.flatten(), above.flatten()))
        return found

    def block_of(self, position: int) -> int:
        """Position of the covariances' finest grid that a position of the finest grid shares."""
        return int(self.places[position]) // self.n_members

    def positions_of(self, block: int) -> list[int]:
        """Positions of the finest grid that share one of the covariances' finest grid, in the order of `unfold`."""
        start = block * self.n_members
        order = self.places.argsort()
        return [int(position) for position in order[start : start + self.n_members]]


def in_blocks(hierarchy: Hierarchy, side: int) -> Hierarchy:
    """The same hierarchy, its covariances shared by blocks of `side` x `side` cells of the coarsest grid.

    Raises ParameterError for grids that do not nest, or that such blocks do not fill.
    """
    if side == 1:
        return hierarchy
    grids = [*(level.grid for level in hierarchy.levels), hierarchy.grid]
    if any(fine[axis] % coarse[axis] for coarse, fine in pairwise(grids) for axis in (0, 1)):
        named = ", ".join(f"{height} x {width}" for height, width in grids[:-1])
        raise ParameterError(
            f"blocks={side} needs layers whose grids nest, got {named}; choose a resize that is a multiple of 32, "
            f"other layers, or blocks=1"
        )
    coarsest = hierarchy.coarsest_grid
    if any(n % side for n in coarsest):
        raise ParameterError(
            f"blocks={side} needs a coarsest grid of whole blocks, got {coarsest[0]} x {coarsest[1]} cells; choose a "
            f"resize that is a larger power of 2, such as 512, or smaller blocks"
        )
    members = tuple(_members(grid, coarsest, side) for grid in grids)
    return replace(hierarchy, blocks=Blocks(_smaller(hierarchy, side), members[:-1], members[-1].flatten().argsort()))


def _smaller(hierarchy: Hierarchy, side: int) -> Hierarchy:
    """The hierarchy of the same channels on grids that are `side` times smaller."""
    finest, cell = _divided(hierarchy.grid, side), None
    levels: list[Level] = []
    for level in hierarchy.levels:
        grid = _divided(level.grid, side)
        own, group_parent, n_groups, children, cell = find_cells(grid, finest, cell)
        levels.append(
            replace(level, grid=grid, own=own, group_parent=group_parent, n_groups=n_groups, children=children)
        )
    return Hierarchy(finest, tuple(levels), unless_identity(cell, finest[0] * finest[1]), hierarchy.n_features)


def _divided(grid: Size, side: int) -> Size:
    return grid[0] // side, grid[1] // side


def _members(grid: Size, coarsest: Size, side: int) -> Tensor:
    """Positions (., side * side) of a grid that share a covariance."""
    (height, width), (rows, columns) = grid, coarsest
    axes = (rows // side, side, height // rows, columns // side, side, width // columns)
    shared = torch.arange(height * width).view(axes).permute(0, 2, 3, 5, 1, 4)
    return shared.reshape(-1, side * side)
