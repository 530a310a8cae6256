"""The hierarchy of grids whose covariances are pooled by blocks of positions."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from flawmap.detectors.padim.blocks import Blocks
from flawmap.detectors.padim.embedding import Hierarchy, Level, find_cells, unless_identity
from flawmap.errors import ParameterError
from flawmap.prediction import Size


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
    blocks = Blocks(members[:-1], members[-1].flatten().argsort())
    return replace(hierarchy, shared=_smaller(hierarchy, side), blocks=blocks)


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
