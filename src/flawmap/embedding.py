"""From the feature maps of several layers to one embedding per patch, kept in its exact hierarchy.

PaDiM (Defard et al. 2020, section III-A) repeats the coarser maps onto the finest grid (nearest neighbour) and
concatenates them. What is repeated is the same in all fine positions of one coarse cell, so nothing is repeated here:
each level keeps its own cells, and every cell knows the cell of the next coarser level it lies in. Levels run coarse to
fine. Where grids do not nest, a cell is a distinct (own position, parent cell) pair.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flawmap.errors import ParameterError
from flawmap.records import Size

__all__ = ["Hierarchy", "Level", "build_hierarchy", "draw_channels"]

CHUNK_BYTES = 32 * 2**20
"""How large a block of stacked embeddings may be while it is worked on."""


@dataclass(frozen=True)
class Level:
    """One layer's part of the embedding.

    Attributes:
        layer: index of the layer in the order the user gave.
        grid: (height, width) of its feature map.
        channels: (d,) selected channels of that layer.
        columns: (d,) where these channels stand in the embedding, i.e. in the sorted draw over all layers.
        own: (cells,) position on `grid` of each cell; None if cell i is position i.
        parent: (cells,) cell of the next coarser level; None for the coarsest.
        width: D, channels of this level and all coarser ones.
    """

    layer: int
    grid: Size
    channels: Tensor
    columns: Tensor
    own: Tensor | None
    parent: Tensor | None
    width: int

    @property
    def n_channels(self) -> int:
        """Channels d of this level alone."""
        return len(self.channels)

    @property
    def n_positions(self) -> int:
        """Positions on this level's own grid."""
        return self.grid[0] * self.grid[1]

    @property
    def n_cells(self) -> int:
        """Cells: positions, or more where grids do not nest."""
        return self.n_positions if self.own is None else len(self.own)

    def chunks(self, bytes_per_cell: int) -> Iterator[slice]:
        """Slices of cells whose blocks stay under CHUNK_BYTES."""
        step = max(1, CHUNK_BYTES // max(1, bytes_per_cell))
        for start in range(0, self.n_cells, step):
            yield slice(start, min(start + step, self.n_cells))

    def stack(self, coarser: Tensor | None, own: Tensor, cells: slice) -> Tensor:
        """Embeddings of some cells, coarse channels first: (n, D, B) of parents' (cells, D-d, B) and own (p, d, B)."""
        mine = own[cells] if self.own is None else own[self.own[cells]]
        if coarser is None or self.parent is None:
            return mine
        return torch.cat([coarser[self.parent[cells]], mine], dim=1)


@dataclass(frozen=True)
class Hierarchy:
    """All levels, coarse to fine, and where each position of the finest grid finds its cell.

    Attributes:
        grid: (height, width) of the finest layer, the resolution of the patch distances.
        levels: coarse to fine; layers of which no channel was selected have none.
        cell: (height * width,) cell of the finest level for each position; None if cell i is position i.
        n_features: channels d of the whole embedding.
    """

    grid: Size
    levels: tuple[Level, ...]
    cell: Tensor | None
    n_features: int

    def to(self, device: torch.device) -> Hierarchy:
        """The same hierarchy with its index tensors on a device."""
        levels = tuple(
            replace(
                level,
                channels=level.channels.to(device),
                own=None if level.own is None else level.own.to(device),
                parent=None if level.parent is None else level.parent.to(device),
            )
            for level in self.levels
        )
        return replace(self, levels=levels, cell=None if self.cell is None else self.cell.to(device))

    def select(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Selected channels, positions first: one (p, d, B) per level from the layers' maps (B, C, h, w)."""
        columns = []
        for level in self.levels:
            maps = features[level.layer]
            if tuple(maps.shape[2:]) != level.grid:
                raise ParameterError(f"expected feature maps of {level.grid}, got {tuple(maps.shape[2:])}")
            columns.append(maps[:, level.channels].flatten(2).permute(2, 1, 0).contiguous())
        return columns

    def to_positions(self, per_cell: Tensor) -> Tensor:
        """Spread (cells, ...) of the finest level over the positions of the finest grid (P, ...)."""
        return per_cell if self.cell is None else per_cell[self.cell]

    def ancestors(self, position: int) -> list[int]:
        """Cell of every level, coarse to fine, in which a position of the finest grid lies."""
        cell = position if self.cell is None else int(self.cell[position])
        path = [cell]
        for level in reversed(self.levels):
            if level.parent is not None:
                path.append(int(level.parent[path[-1]]))
        return path[::-1]


def draw_channels(n_total: int, n_features: int | None, seed: int) -> NDArray[np.int64]:
    """Channels drawn at random without replacement, sorted; all of them if `n_features` is None.

    Source: PaDiM section III-B (random dimensionality reduction).
    """
    if n_features is None:
        return np.arange(n_total)
    if not 1 <= n_features <= n_total:
        raise ParameterError(
            f"n_features must lie between 1 and {n_total}, the channels of these layers; got {n_features}"
        )
    return np.sort(np.random.default_rng(seed).choice(n_total, n_features, replace=False))


def build_hierarchy(grids: Sequence[Size], n_channels: Sequence[int], selected: NDArray[np.int64]) -> Hierarchy:
    """Hierarchy of layers with these grids and channel counts, of which `selected` (sorted, concatenated) are used."""
    total = sum(n_channels)
    if len(selected) == 0 or len(np.unique(selected)) != len(selected) or selected.min() < 0 or selected.max() >= total:
        raise ParameterError(f"channels must be distinct indices from 0 to {total - 1}, got {len(selected)} of them")
    finest = max(grids, key=lambda grid: grid[0] * grid[1])
    offsets = np.concatenate([[0], np.cumsum(n_channels)])
    order = sorted(range(len(grids)), key=lambda layer: grids[layer][0] * grids[layer][1])
    levels: list[Level] = []
    cell: NDArray[np.int64] | None = None  # cell of the last level made, for every position of the finest grid
    for layer in order:
        columns = np.flatnonzero((selected >= offsets[layer]) & (selected < offsets[layer + 1]))
        if len(columns) == 0:
            continue
        own, parent, cell = _cells(grids[layer], finest, cell)
        width = len(columns) + (levels[-1].width if levels else 0)
        channels = torch.from_numpy(selected[columns] - offsets[layer])
        levels.append(Level(layer, grids[layer], channels, torch.from_numpy(columns), own, parent, width))
    return Hierarchy(finest, tuple(levels), _unless_identity(cell, finest[0] * finest[1]), len(selected))


def _cells(
    grid: Size, finest: Size, coarser: NDArray[np.int64] | None
) -> tuple[Tensor | None, Tensor | None, NDArray[np.int64]]:
    """Own position and parent of each cell of a level, and the cell of each position of the finest grid."""
    rows = np.arange(finest[0]) * grid[0] // finest[0]
    columns = np.arange(finest[1]) * grid[1] // finest[1]
    position = (rows[:, None] * grid[1] + columns).ravel()
    n_positions = grid[0] * grid[1]
    if coarser is None:
        return None, None, position
    pair, cell = np.unique(position * (coarser.max() + 1) + coarser, return_inverse=True)
    own, parent = np.divmod(pair, coarser.max() + 1)
    return _unless_identity(own, n_positions), torch.from_numpy(parent), cell


def _unless_identity(index: NDArray[np.int64] | None, n: int) -> Tensor | None:
    if index is None or (len(index) == n and np.array_equal(index, np.arange(n))):
        return None
    return torch.from_numpy(index)
