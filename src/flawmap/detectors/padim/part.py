"""Some cells of a hierarchy of grids, and the moments of those alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flawmap.detectors.padim.blocks import Blocks
from flawmap.detectors.padim.embedding import Hierarchy
from flawmap.detectors.padim.gaussian.moments import Moments


@dataclass(frozen=True)
class Part:
    """Some cells of a hierarchy.

    Attributes:
        hierarchy: its cells alone, in the order of the whole; its levels' own positions are those of its cells. Where
            blocks share covariances, its positions are those of each block in turn, and its levels those of the whole.
        cells: per level, which cells of the whole have its covariances.
        own: per level, the own position of each, or of each member of each.
        positions: of the finest grid, which lie in them; ascending, or by blocks.
    """

    hierarchy: Hierarchy
    cells: list[Tensor]
    own: list[Tensor]
    positions: Tensor

    @classmethod
    def of(cls, whole: Hierarchy, chosen: Tensor) -> Part:
        """The part in some cells of the coarsest level, given as (cells,) bool; of a block all or none."""
        if whole.blocks is not None:
            blocks = whole.blocks
            part = cls.of(whole.covariances, chosen[blocks.members[0][:, 0]])
            own = [rows[some].flatten() for rows, some in zip(blocks.members, part.own, strict=True)]
            members = tuple(torch.arange(len(rows), device=rows.device).view(-1, blocks.n_members) for rows in own)
            places = blocks.places.argsort().view(-1, blocks.n_members)[part.positions].flatten()
            few = Blocks(members, torch.arange(len(places), device=places.device))
            return cls(replace(whole, blocks=few, shared=part.hierarchy), part.cells, own, places)
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
        seen = whole.seen
        if seen is not None:
            # of the coarsest level, cells are positions
            seen = seen[self.cells[0] if whole.hierarchy.blocks is None else self.own[0]]
        return Moments(
            self.hierarchy,
            whole.count,
            [mean[own] for mean, own in zip(whole.mean, self.own, strict=True)],
            [rows[cells] for rows, cells in zip(whole.cross, self.cells, strict=True)],
            [rows[cells] for rows, cells in zip(whole.own, self.cells, strict=True)],
            seen,
        )
