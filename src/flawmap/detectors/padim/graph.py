"""PaDiM's whole way from images to anomaly maps as one network, that graph formats and compilers are given.

It computes in plain tensor operations what `gaussian` and `anomaly_map` compute: the hierarchy of distances, with each
level's factors stored once per cell, and the map as A M B^T.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from flawmap.detectors.anomaly_map import image_scores, smoothing_operator
from flawmap.detectors.padim.embedding import Level
from flawmap.detectors.padim.gaussian import Factor
from flawmap.errors import ParameterError
from flawmap.images import Preprocessing
from flawmap.prediction import Size

__all__ = ["ScoringNetwork"]


class ScoringNetwork(nn.Module):
    """Images (N, H, W, 3) uint8, resized or letterboxed, to anomaly maps (N, h, w) and image scores (N,), float32.

    The padding of a letterbox is scored like everything else: where it lies depends on the original image.

    Args:
        features: a backbone from pixels on: images (N, h, w, 3) uint8 to the feature maps of each layer.
    """

    def __init__(self, features: nn.Module, factor: Factor, preprocessing: Preprocessing) -> None:
        super().__init__()
        if factor.hierarchy.projection is not None:
            raise ParameterError("models reduced by principal components cannot be exported; use reduction='random'")
        self._rows, self._columns = preprocessing.window
        self.features = features
        self.distances = _Distances(factor)
        self.smoothing = _Smoothing(factor.hierarchy.grid, preprocessing.input_size)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Anomaly maps (N, h, w) and image scores (N,)."""
        maps = self.smoothing(self.distances(self.features(images[:, self._rows, self._columns])))
        return maps, image_scores(maps)


class _Distances(nn.Module):
    """Feature maps (N, C, h, w) of each layer to patch distances (N, h, w) on the finest grid."""

    def __init__(self, factor: Factor) -> None:
        super().__init__()
        hierarchy = factor.hierarchy
        self.grid = hierarchy.grid
        self.levels = nn.ModuleList(
            _LevelDistances(level, *tensors)
            for level, *tensors in zip(hierarchy.levels, factor.mean, factor.cross, factor.own, strict=True)
        )
        self.cell = _Index(hierarchy.cell)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        parents: Tensor | None = None
        total: Tensor | None = None
        last = len(self.levels) - 1
        for depth, level in enumerate(self.levels):
            own, total, above = cast(_LevelDistances, level)(features, parents, total)
            if depth < last:
                parents = own if above is None else torch.cat([above, own], dim=2)
        positions = self.cell(total)
        distances: Tensor = positions.sqrt().transpose(0, 1).reshape(-1, *self.grid)
        return distances


class _LevelDistances(nn.Module):
    """One level: |A_level x|^2 of each of its cells, plus what the cells of the next coarser level have."""

    def __init__(self, level: Level, mean: Tensor, cross: Tensor, own: Tensor) -> None:
        super().__init__()
        self.layer = level.layer
        self.n_groups, self.n_children, self.width = level.n_groups, level.children, level.n_channels
        self.mean: Tensor
        self.own: Tensor
        self.channels = _Index(level.channels, axis=1)
        self.register_buffer("mean", mean[:, None].contiguous().cpu())  # (positions, 1, d)
        self.own_position = _Index(level.own)
        self.register_buffer("own", own.transpose(1, 2).contiguous().cpu())  # (cells, d, d): x A^T in one product
        self.parent = _Index(level.group_parent)
        self.cross: Tensor | None
        if level.n_coarser:
            grouped = cross.view(self.n_groups, self.n_children * self.width, level.n_coarser)
            self.register_buffer("cross", grouped.transpose(1, 2).contiguous().cpu())  # (groups, D, children * d)
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
        centred: Tensor = self.own_position(selected.flatten(2).permute(2, 0, 1) - self.mean)
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


class _Smoothing(nn.Module):
    """Patch distances (N, h, w) to anomaly maps (N, H, W): up-sampling and Gaussian filter as two products."""

    def __init__(self, grid: Size, input_size: Size) -> None:
        super().__init__()
        self.rows: Tensor
        self.columns: Tensor
        self.register_buffer("rows", smoothing_operator(grid[0], input_size[0]).clone())
        self.register_buffer("columns", smoothing_operator(grid[1], input_size[1]).T.contiguous())

    def forward(self, distances: Tensor) -> Tensor:
        return self.rows @ distances @ self.columns


class _Index(nn.Module):
    """Elements along an axis by constant indices; all of them where there are none."""

    def __init__(self, index: Tensor | None, axis: int = 0) -> None:
        super().__init__()
        self.axis = axis
        self.index: Tensor | None
        self.register_buffer("index", None if index is None else index.cpu())

    def forward(self, values: Tensor) -> Tensor:
        return values if self.index is None else values.index_select(self.axis, self.index)
