"""Some cells of a hierarchy of grids, and the moments of those alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flawmap.detectors.padim.embedding import Hierarchy
from flawmap.detectors.padim.gaussian.moments import Moments


@dataclass(frozen=True)
class Part:
    """Some cells of a hierarchy.

    Attributes:
        hierarchy: its cells alone, in the order of the whole; its levels' own positions are those of its cells.
        cells: per level, which cells of the whole they are.
        own: per level, the own position of each.
        positions: of the finest grid, which lie in them, ascending.
    """

    hierarchy: Hierarchy
    cells: list[Tensor]
    own: list[Tensor]
    positions: Tensor

    @classmethod
    def of(cls, whole: Hierarchy, chosen: Tensor) -> Part:
        """The part in some cells of the coarsest level, given as (cells,) bool."""
        levels, cells, own = [], [], []
        above = chosen  # unused for the coarsest level
        for level, coarsest in zip(whole.levels, whole.coarsest_of_cells, strict=True):
            kept = chosen[coarsest]
            cells.append(kept.nonzero().flatten())
            own.append(level.in_cells(torch.arange(level.n_positions, device=kept.device))[cells[-1]])
            groups = kept.view(level.n_groups, level.children)[:, 0].nonzero().flatten()
            parents = None if level.group_parent is None else above[level.group_parent[groups]]
            levels.append(replace(level, own=None, group_parent=parents, n_groups=len(groups)))
            above = kept.cumsum(0) - 1
        finest = whole.to_positions(chosen[whole.coarsest_of_cells[-1]])
        cell = None if whole.cell is None else above[whole.cell[finest]]
        hierarchy = replace(whole, levels=tuple(levels), cell=cell)
        return cls(hierarchy, cells, own, finest.nonzero().flatten())

    def moments(self, whole: Moments) -> Moments:
        """The moments of these cells: a copy."""
        return Moments(
            self.hierarchy,
            whole.count,
            [mean[own] for mean, own in zip(whole.mean, self.own, strict=True)],
            [rows[cells] for rows, cells in zip(whole.cross, self.cells, strict=True)],
            [rows[cells] for rows, cells in zip(whole.own, self.cells, strict=True)],
            None if whole.seen is None else whole.seen[self.cells[0]],
        )
