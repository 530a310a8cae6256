"""From the feature maps of several layers to one embedding per patch, kept in its exact hierarchy.

PaDiM (Defard et al. 2020, section III-A) repeats the coarser maps onto the finest grid (nearest neighbour) and
concatenates them. What is repeated is the same in all fine positions of one coarse cell, so nothing is repeated here:
each level keeps its own cells, and every cell knows the cell of the next coarser level it lies in. Levels run coarse to
fine. Where grids do not nest, a cell is a distinct (own position, parent cell) pair.

Cells are ordered by their parent. Where every parent has the same number of children, as with nested grids, the
children of a parent form a group and share one product with what is coarser; elsewhere each cell is its own group.

Principal components (table II of the paper) mix the layers: one set of directions serves all patches, and there is one
level. Repeating a coarse map is linear, so each layer is projected on its own grid and the results are added up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import max_pool2d

from flawmap.backbones import Backbone
from flawmap.detectors.padim.blocks import Blocks
from flawmap.errors import ParameterError
from flawmap.prediction import Size

SHOWN = 255
"""Fourth channel of an aligned image where it shows something."""
CHUNK_BYTES = 32 * 2**20
"""How large a block of intermediate results may be."""


@dataclass(frozen=True)
class Level:
    """One layer's part of the embedding.

    Attributes:
        layer: index of the layer in the order the user gave.
        grid: (height, width) of its feature map.
        channels: (d,) selected channels of that layer.
        columns: (d,) where these channels stand in the embedding, i.e. in the sorted draw over all layers.
        n_coarser: D, channels of all coarser levels together.
        own: (cells,) position on `grid` of each cell; None if cell i is position i.
        group_parent: (groups,) parent of each group of cells; None if group i is parent i.
        n_groups: groups; of the coarsest level, which has no parents, its cells.
        children: cells in each group.
    """

    layer: int
    grid: Size
    channels: Tensor
    columns: Tensor
    n_coarser: int
    own: Tensor | None
    group_parent: Tensor | None
    n_groups: int
    children: int

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
        return self.n_groups * self.children

    def in_cells(self, column: Tensor) -> Tensor:
        """Own channels of each cell (cells, B, d) from those of each position (positions, B, d)."""
        return column if self.own is None else column[self.own]

    def coarser(self, parents: Tensor, groups: slice) -> Tensor:
        """What the cells of some groups have above them (groups, ...) from that of each parent (parents, ...)."""
        return parents[groups] if self.group_parent is None else parents[self.group_parent[groups]]

    def stack(self, parents: Tensor, own: Tensor) -> Tensor:
        """Channels of each cell and of all it lies in, coarse first: (cells, B, D + d)."""
        stacked = own.new_empty(self.n_groups, self.children, own.shape[1], self.n_coarser + self.n_channels)
        stacked[..., : self.n_coarser] = self.coarser(parents, slice(None))[:, None]
        stacked[..., self.n_coarser :] = own.view(self.n_groups, self.children, *own.shape[1:])
        return stacked.flatten(0, 1)

    def chunks(self, bytes_per_group: int) -> Iterator[tuple[slice, slice]]:
        """Slices of groups whose blocks stay under CHUNK_BYTES, each with the slice of their cells."""
        step = max(1, CHUNK_BYTES // max(1, bytes_per_group))
        for start in range(0, self.n_groups, step):
            stop = min(start + step, self.n_groups)
            yield slice(start, stop), slice(start * self.children, stop * self.children)

    def parent(self, cell: int) -> int:
        """Cell of the next coarser level that a cell lies in."""
        group = cell // self.children
        return group if self.group_parent is None else int(self.group_parent[group])


@dataclass(frozen=True)
class Hierarchy:
    """All levels, coarse to fine, and where each position of the finest grid finds its cell.

    Attributes:
        grid: (height, width) of the finest layer, the resolution of the patch distances.
        levels: coarse to fine; layers of which no channel was selected have none.
        cell: (height * width,) cell of the finest level for each position; None if cell i is position i.
        n_features: channels d of the whole embedding.
        projection: principal components that stand in place of channels, or None; there is then one level.
        inspected: (height * width,) bool, the positions that show something of the region of interest; None for all.
        blocks: of positions that share a covariance; None: every position has its own.
        shared: the hierarchy of these covariances, as of grids b times smaller; None: this one.
    """

    grid: Size
    levels: tuple[Level, ...]
    cell: Tensor | None
    n_features: int
    projection: Projection | None = None
    inspected: Tensor | None = None
    blocks: Blocks | None = None
    shared: Hierarchy | None = None

    def to(self, device: torch.device) -> Hierarchy:
        """The same hierarchy with its index tensors on a device."""
        levels = tuple(
            replace(
                level,
                channels=level.channels.to(device),
                own=None if level.own is None else level.own.to(device),
                group_parent=None if level.group_parent is None else level.group_parent.to(device),
            )
            for level in self.levels
        )
        return replace(
            self,
            levels=levels,
            cell=None if self.cell is None else self.cell.to(device),
            projection=None if self.projection is None else self.projection.to(device),
            inspected=None if self.inspected is None else self.inspected.to(device),
            blocks=None if self.blocks is None else self.blocks.to(device),
            shared=None if self.shared is None else self.shared.to(device),
        )

    @property
    def covariances(self) -> Hierarchy:
        """The hierarchy whose cells have a covariance each: this one, or that of the blocks."""
        return self if self.shared is None else self.shared

    def fold(self, columns: Sequence[Tensor]) -> Sequence[Tensor]:
        """Rows of each position of `covariances` (positions, rows, d), from those of each position, per level."""
        return columns if self.blocks is None else self.blocks.fold(columns)

    def select(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Selected channels, positions first: one (p, B, d) per level from the layers' maps (B, C, h, w)."""
        if self.projection is not None:
            return [self.projection(features).permute(2, 0, 1).contiguous()]
        columns = []
        for level in self.levels:
            maps = features[level.layer]
            if tuple(maps.shape[2:]) != level.grid:
                raise ParameterError(f"expected feature maps of {level.grid}, got {tuple(maps.shape[2:])}")
            columns.append(maps[:, level.channels].flatten(2).permute(2, 0, 1).contiguous())
        return columns

    def walk(self, columns: Sequence[Tensor]) -> Iterator[tuple[Level, Tensor, Tensor]]:
        """Levels, coarse to fine, each with its cells' own channels and those of all coarser levels of each parent.

        From columns (positions, B, d) per level; yields (level, own (cells, B, d), parents (parents, B, D)).
        """
        parents = columns[0].new_empty(self.levels[0].n_groups, columns[0].shape[1], 0)
        for level, column in zip(self.levels, columns, strict=True):
            own = level.in_cells(column)
            yield level, own, parents
            if level is not self.levels[-1]:
                parents = level.stack(parents, own)

    def to_positions(self, per_cell: Tensor) -> Tensor:
        """Spread (cells, ...) of the finest level over the positions of the finest grid (P, ...)."""
        return per_cell if self.cell is None else per_cell[self.cell]

    def coverage(self) -> list[Tensor]:
        """Positions of the finest grid, of those inspected, that each covariance is of: (cells,) per level."""
        levels, cell = self.covariances.levels, self.covariances.cell
        n_positions = self.covariances.grid[0] * self.covariances.grid[1]
        cell = torch.arange(n_positions, device=levels[-1].channels.device) if cell is None else cell
        cell = cell if self.blocks is None else self.blocks.repeat(cell)
        cell = cell if self.inspected is None else cell[self.inspected]
        counts = [torch.bincount(cell, minlength=levels[-1].n_cells)]
        for level, above in zip(levels[:0:-1], levels[-2::-1], strict=True):
            per_group = counts[0].view(level.n_groups, level.children).sum(dim=1)
            parent = torch.arange(level.n_groups, device=cell.device)
            parent = parent if level.group_parent is None else level.group_parent
            counts.insert(0, torch.zeros(above.n_cells, dtype=cell.dtype, device=cell.device))
            counts[0].index_add_(0, parent, per_group)
        return counts

    @property
    def is_nested(self) -> bool:
        """Whether every cell lies in one cell of each coarser level, and is the only one at its position."""
        return self.cell is None or all(
            level.group_parent is None and level.n_cells == level.n_positions for level in self.levels
        )

    @cached_property
    def coarsest_of_cells(self) -> list[Tensor]:
        """Cell of the coarsest level that each cell lies in: (cells,) per level."""
        found = [torch.arange(self.levels[0].n_cells, device=self.levels[0].channels.device)]
        for level in self.levels[1:]:
            found.append(level.coarser(found[-1], slice(None)).repeat_interleave(level.children))
        return found

    @cached_property
    def coarsest_of_positions(self) -> list[Tensor]:
        """The same of each position of a level's own grid, where grids nest: (positions,) per level."""
        if self.blocks is not None:
            return self.blocks.coarsest_of_positions(self.covariances.coarsest_of_positions)
        found = []
        for level, coarsest in zip(self.levels, self.coarsest_of_cells, strict=True):
            found.append(coarsest if level.own is None else torch.empty_like(coarsest).scatter_(0, level.own, coarsest))
        return found

    def to_finest(self, per_cell: Tensor) -> Tensor:
        """Spread (..., cells) of the coarsest level, of grids that nest, over the finest grid (..., h, w)."""
        cells = self.coarsest_of_cells[-1]
        positions = per_cell[..., cells if self.cell is None else cells[self.cell]]
        return positions.reshape(*per_cell.shape[:-1], *self.grid)

    @property
    def coarsest_grid(self) -> Size:
        """Grid of the coarsest level."""
        return self.levels[0].grid

    def covariance_cells(self, position: int) -> list[int]:
        """Cell of every level, coarse to fine, that has the covariance at a position of the finest grid."""
        return self.covariances.ancestors(position if self.blocks is None else self.blocks.block_of(position))

    def ancestors(self, position: int) -> list[int]:
        """Cell of every level, coarse to fine, in which a position of the finest grid lies."""
        path = [position if self.cell is None else int(self.cell[position])]
        for level in reversed(self.levels[1:]):
            path.append(level.parent(path[-1]))
        return path[::-1]

    def own_positions(self, position: int) -> list[int]:
        """Position on every level's own grid, coarse to fine, under a position of the finest grid."""
        cells = zip(self.levels, self.ancestors(position), strict=True)
        return [cell if level.own is None else int(level.own[cell]) for level, cell in cells]


@dataclass(frozen=True)
class Projection:
    """Onto `components` (C, k) of the concatenated channels C of layers with these grids."""

    grids: tuple[Size, ...]
    components: Tensor

    def __call__(self, features: Sequence[Tensor]) -> Tensor:
        """Scores (B, k, positions) on the finest grid from the layers' maps (B, C, h, w)."""
        finest, start, total = finest_grid(self.grids), 0, None
        for maps, grid in zip(features, self.grids, strict=True):
            stop = start + maps.shape[1]
            scores = self.components[start:stop].T @ maps.flatten(2)
            if grid != finest:
                scores = scores[:, :, torch.from_numpy(nearest_positions(grid, finest)).to(maps.device)]
            total = scores if total is None else total.add_(scores)
            start = stop
        if total is None or start != len(self.components):
            raise ValueError(f"expected {len(self.components)} channels, got {start}")
        return total

    def to(self, device: torch.device) -> Projection:
        """The same on a device."""
        return replace(self, components=self.components.to(device))


def finest_grid(grids: Sequence[Size]) -> Size:
    """The grid of the most positions."""
    return max(grids, key=lambda grid: grid[0] * grid[1])


def nearest_positions(grid: Size, finest: Size) -> NDArray[np.int64]:
    """Position on a grid under each position of a finer one (P,)."""
    rows = np.arange(finest[0]) * grid[0] // finest[0]
    columns = np.arange(finest[1]) * grid[1] // finest[1]
    return (rows[:, None] * grid[1] + columns).ravel()


def embed(backbone: Backbone, hierarchy: Hierarchy, pixels: NDArray[np.uint8]) -> list[Tensor]:
    """Embeddings of images (B, h, w, 3) uint8, per level (positions, B, d)."""
    columns: list[Tensor] = []
    for here, maps in backbone.parts(pixels):  # in place: all parts beside the whole would need twice the memory
        for level, part in enumerate(hierarchy.select(maps)):
            if here.start == 0:
                columns.append(part.new_empty(len(part), len(pixels), part.shape[2]))
            columns[level][:, here] = part
    return columns


def shown_cells(pixels: NDArray[np.uint8], hierarchy: Hierarchy, device: torch.device) -> Tensor | None:
    """Which cells of the coarsest level images show, (cells, B) float32; None of images (B, h, w, 3): all."""
    if pixels.shape[3] == 3:
        return None
    shown = torch.from_numpy(np.ascontiguousarray(pixels[..., 3])).to(device)
    return seen_cells(shown, hierarchy.coarsest_grid).flatten(1).T


def seen_cells(shown: Tensor, grid: Size) -> Tensor:
    """Which cells of a grid an image shows as a whole: (B, h, w), 1 or 0 float32.

    From the fourth channel (B, H, W) of aligned images, 255 where they show something, of a whole number of cells.
    """
    strides = [int(side) // cells for side, cells in zip(shown.shape[1:], grid, strict=True)]
    hidden = (shown < SHOWN).float()[:, None]
    seen: Tensor = 1 - max_pool2d(hidden, strides, strides)[:, 0]
    return seen


def draw_channels(n_total: int, n_features: int | None, seed: int) -> NDArray[np.int64]:
    """Channels drawn at random without replacement, sorted; all of them if `n_features` is None.

    Source: PaDiM section III-B (random dimensionality reduction).
    """
    if n_features is None:
        return np.arange(n_total)
    if isinstance(n_features, bool) or not isinstance(n_features, int | np.integer) or not 1 <= n_features <= n_total:
        raise ParameterError(
            f"n_features must lie between 1 and {n_total}, the channels of these layers; got {n_features}"
        )
    return np.sort(np.random.default_rng(seed).choice(n_total, n_features, replace=False))


def build_hierarchy(grids: Sequence[Size], n_channels: Sequence[int], selected: NDArray[np.int64]) -> Hierarchy:
    """Hierarchy of layers with these grids and channel counts, of which `selected` (sorted, concatenated) are used."""
    total = sum(n_channels)
    if len(selected) == 0 or len(np.unique(selected)) != len(selected) or selected.min() < 0 or selected.max() >= total:
        raise ParameterError(f"channels must be distinct indices from 0 to {total - 1}, got {len(selected)} of them")
    finest = finest_grid(grids)
    offsets = np.concatenate([[0], np.cumsum(n_channels)])
    order = sorted(range(len(grids)), key=lambda layer: grids[layer][0] * grids[layer][1])
    levels: list[Level] = []
    cell: NDArray[np.int64] | None = None  # cell of the last level made, for every position of the finest grid
    for layer in order:
        columns = np.flatnonzero((selected >= offsets[layer]) & (selected < offsets[layer + 1]))
        if len(columns) == 0:
            continue
        own, group_parent, n_groups, children, cell = find_cells(grids[layer], finest, cell)
        levels.append(
            Level(
                layer=layer,
                grid=grids[layer],
                channels=torch.from_numpy(selected[columns] - offsets[layer]),
                columns=torch.from_numpy(columns),
                n_coarser=sum(level.n_channels for level in levels),
                own=own,
                group_parent=group_parent,
                n_groups=n_groups,
                children=children,
            )
        )
    return Hierarchy(finest, tuple(levels), unless_identity(cell, finest[0] * finest[1]), len(selected))


def project_hierarchy(grids: Sequence[Size], components: Tensor) -> Hierarchy:
    """Hierarchy of the projection of layers with these grids onto components (C, k): one level, the finest grid."""
    n_features = components.shape[1]
    whole = build_hierarchy([finest_grid(grids)], [n_features], np.arange(n_features))
    return replace(whole, projection=Projection(tuple(grids), components))


def find_cells(
    grid: Size, finest: Size, coarser: NDArray[np.int64] | None
) -> tuple[Tensor | None, Tensor | None, int, int, NDArray[np.int64]]:
    """Of a level: own position of each cell, parent of each group, groups, children; and each position's cell."""
    position = nearest_positions(grid, finest)
    n_positions = grid[0] * grid[1]
    if coarser is None:
        return None, None, n_positions, 1, position
    pair, cell = np.unique(coarser * n_positions + position, return_inverse=True)
    parent, own = np.divmod(pair, n_positions)
    siblings = np.bincount(parent)
    if siblings.min() == siblings.max():
        return unless_identity(own, n_positions), None, len(siblings), int(siblings[0]), cell
    return unless_identity(own, n_positions), unless_identity(parent, len(siblings)), len(parent), 1, cell


def unless_identity(index: NDArray[np.int64] | None, n: int) -> Tensor | None:
    """An index as a tensor; None of each of n in turn."""
    if index is None or (len(index) == n and np.array_equal(index, np.arange(n))):
        return None
    return torch.from_numpy(index)
