"""PaDiM's head: from feature maps to anomaly maps in plain tensor operations, for torch and for graph formats alike.

It computes what `gaussian` and `anomaly_map` compute: the hierarchy of distances, with each level's factors stored once
per cell, and the map as A M B^T.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import interpolate

from flawmap.decision import n_highest
from flawmap.detectors.anomaly_map import image_scores, roi_weights, smooth_shown, smoothing_operator
from flawmap.detectors.padim.embedding import SHOWN, Level, Projection, finest_grid, nearest_positions, seen_cells
from flawmap.detectors.padim.gaussian.factor import Factor
from flawmap.prediction import Size


class PaDiMHead(nn.Module):
    """Feature maps (N, C, h, w) of each layer to anomaly maps (N, H, W) and image scores (N,), float32.

    Args:
        factor: the Gaussians. Without `for_graph` the head shares their memory.
        input_size: (height, width) of the maps.
        top_share: part of a map whose mean is its score; 0 for its highest value.
        for_graph: keep constants on the CPU, laid out as graph formats store them.
        roi: (H, W), the pixels that are inspected; the maps are 0 elsewhere. None for all.
    """

    def __init__(
        self,
        factor: Factor,
        input_size: Size,
        *,
        top_share: float = 0.0,
        for_graph: bool = False,
        roi: NDArray[np.bool_] | None = None,
    ) -> None:
        super().__init__()
        self.n_highest = n_highest(*input_size, top_share)
        grid = factor.hierarchy.grid
        device = torch.device("cpu") if for_graph else factor.mean[0].device
        self.distances = _Distances(factor, for_graph)
        self.grid, self.coarsest = grid, factor.hierarchy.coarsest_grid
        self.known: Tensor | None
        known = None if factor.known is None else factor.known.reshape(1, 1, *self.coarsest).to(device)
        self.register_buffer("known", known)
        self.rows: Tensor
        self.columns: Tensor
        self.register_buffer("rows", smoothing_operator(grid[0], input_size[0]).clone().to(device))
        self.register_buffer("columns", smoothing_operator(grid[1], input_size[1]).T.contiguous().to(device))
        weights = (None, None) if roi is None else tuple(part.to(device) for part in roi_weights(roi, grid))
        self.cells: Tensor | None
        self.gain: Tensor | None
        self.register_buffer("cells", weights[0])
        self.register_buffer("gain", weights[1])

    def forward(self, features: Sequence[Tensor], shown: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Anomaly maps (N, H, W) and image scores (N,); images show only pixels where `shown` (N, H, W) is 255."""
        if shown is None:
            maps = self.maps(features)
            return maps, image_scores(maps, self.n_highest)
        seen = seen_cells(shown, self.coarsest)[:, None]
        seen = seen if self.known is None else seen * self.known
        cells = interpolate(seen, size=self.grid, mode="nearest")[:, 0]
        region = None if self.cells is None or self.gain is None else (self.cells, self.gain)
        distances = self.distances(features)
        maps, weighed = smooth_shown(distances, self.rows, self.columns, cells, shown == SHOWN, region)
        return maps, image_scores(weighed, self.n_highest)

    def maps(self, features: Sequence[Tensor]) -> Tensor:
        """The maps alone, of images that show everything."""
        distances = self.distances(features)
        if self.cells is not None:
            distances = distances * self.cells
        maps: Tensor = self.rows @ distances @ self.columns
        return maps if self.gain is None else maps * self.gain


class _Distances(nn.Module):
    """Feature maps (N, C, h, w) of each layer to patch distances (N, h, w) on the finest grid."""

    def __init__(self, factor: Factor, for_graph: bool) -> None:
        super().__init__()
        hierarchy, blocks = factor.hierarchy, factor.hierarchy.blocks
        self.grid = hierarchy.grid
        shared = hierarchy.covariances
        members = (None,) * len(shared.levels) if blocks is None else blocks.members
        self.levels = nn.ModuleList(
            _LevelDistances(level, rows, *tensors, for_graph=for_graph)
            for level, rows, *tensors in zip(shared.levels, members, factor.mean, factor.cross, factor.own, strict=True)
        )
        self.cell = _Index(shared.cell, for_graph=for_graph)
        self.n_members = 1 if blocks is None else blocks.n_members
        self.place = _Index(None if blocks is None else blocks.places, for_graph=for_graph)
        self.projection = None if hierarchy.projection is None else _Projected(hierarchy.projection, for_graph)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Distances (N, h, w) from the layers' maps (N, C, h, w)."""
        if self.projection is not None:
            features = [self.projection(features)]
        parents: Tensor | None = None
        total: Tensor | None = None
        last = len(self.levels) - 1
        for depth, level in enumerate(self.levels):
            own, total, above = cast(_LevelDistances, level)(features, parents, total)
            if depth < last:
                parents = own if above is None else torch.cat([above, own], dim=2)
        positions = self.cell(total)
        if self.n_members > 1:  # (blocks, members * N) to (positions, N)
            positions = self.place(positions.reshape(self.grid[0] * self.grid[1], -1))
        distances: Tensor = positions.sqrt().transpose(0, 1).reshape(-1, *self.grid)
        return distances


class _LevelDistances(nn.Module):
    """One level: |A_level x|^2 of each of its cells, plus what the cells of the next coarser level have.

    Where positions `members` (positions / m, m) share a covariance, a batch of N images is one of m N in each cell.
    """

    def __init__(
        self, level: Level, members: Tensor | None, mean: Tensor, cross: Tensor, own: Tensor, *, for_graph: bool
    ) -> None:
        super().__init__()
        self.layer = level.layer
        self.n_groups, self.n_children, self.width = level.n_groups, level.children, level.n_channels
        self.mean: Tensor
        self.own: Tensor
        self.channels = _Index(level.channels, axis=1, for_graph=for_graph)
        self.register_buffer("mean", _constant(mean[:, None], for_graph))  # (positions, 1, d)
        self.n_members = 1 if members is None else members.shape[1]
        self.member = _Index(None if members is None else members.flatten(), for_graph=for_graph)
        self.own_position = _Index(level.own, for_graph=for_graph)
        self.register_buffer("own", _constant(own.transpose(1, 2), for_graph))  # (cells, d, d): x A^T in one product
        self.parent = _Index(level.group_parent, for_graph=for_graph)
        self.cross: Tensor | None
        if level.n_coarser:
            grouped = cross.view(self.n_groups, self.n_children * self.width, level.n_coarser)
            self.register_buffer("cross", _constant(grouped.transpose(1, 2), for_graph))  # (groups, D, children * d)
        else:
            self.cross = None

    def forward(
        self, features: Sequence[Tensor], parents: Tensor | None, total: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Centred channels (cells, N, d), squared distances so far (cells, N), centred coarser channels (cells, N, D).

        From the layers' maps and, for each cell of the next coarser level, its `parents` (., N, D) and `total` (., N).
        """
        selected = self.channels(features[self.layer])
        batch = selected.shape[0]
        centred: Tensor = selected.flatten(2).permute(2, 0, 1) - self.mean
        if self.n_members > 1:
            batch = batch * self.n_members
            centred = self.member(centred).reshape(-1, batch, self.width)
        centred = self.own_position(centred)
        white = torch.matmul(centred, self.own)
        if self.cross is None or parents is None or total is None:
            return centred, white.square().sum(dim=2), None
        above = self.parent(parents)
        shared = torch.matmul(above, self.cross)  # (groups, N, children * d)
        shared = shared.reshape(self.n_groups, batch, self.n_children, self.width).transpose(1, 2)
        white = white.reshape(self.n_groups, self.n_children, batch, self.width) + shared
        squares = white.square().sum(dim=3) + self.parent(total)[:, None]
        spread = above[:, None].expand(-1, self.n_children, -1, -1).reshape(self.n_groups * self.n_children, batch, -1)
        return centred, squares.reshape(self.n_groups * self.n_children, batch), spread


class _Projected(nn.Module):
    """Principal components of the concatenated layers, on the finest grid: (N, k, h, w)."""

    def __init__(self, projection: Projection, for_graph: bool) -> None:
        super().__init__()
        self.grid = finest_grid(projection.grids)
        self.components: Tensor
        self.register_buffer("components", _constant(projection.components.T, for_graph))
        device = self.components.device
        self.repeated = nn.ModuleList(
            _Index(
                None if grid == self.grid else torch.from_numpy(nearest_positions(grid, self.grid)).to(device),
                axis=2,
                for_graph=for_graph,
            )
            for grid in projection.grids
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Principal components (N, k, h, w) from the layers' maps (N, C, h, w)."""
        parts = torch.split(self.components, [maps.shape[1] for maps in features], dim=1)
        total = torch.stack(
            [
                repeat(torch.matmul(part, maps.flatten(2)))
                for repeat, part, maps in zip(self.repeated, parts, features, strict=True)
            ]
        ).sum(dim=0)
        return total.reshape(-1, self.components.shape[0], *self.grid)


class _Index(nn.Module):
    """Elements along an axis by constant indices; all of them where there are none."""

    def __init__(self, index: Tensor | None, axis: int = 0, *, for_graph: bool) -> None:
        super().__init__()
        self.axis = axis
        self.index: Tensor | None
        self.register_buffer("index", None if index is None else _constant(index, for_graph))

    def forward(self, values: Tensor) -> Tensor:
        """Those values along the axis that were chosen; all without a choice."""
        return values if self.index is None else values.index_select(self.axis, self.index)


def _constant(values: Tensor, for_graph: bool) -> Tensor:
    """Values as a graph format stores them, or as they are: a view shares the model's memory."""
    return values.contiguous().cpu() if for_graph else values
