"""The whole way from images to anomaly maps as one torch module, which every graph format is made from.

It computes what `PaDiM.predict` computes, in plain tensor operations that graph formats have: crop and normalisation,
the backbone, the hierarchy of distances with each level's factors stored once per cell, and the map as A M B^T.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flawmap.anomaly_map import image_scores, smoothing_operator
from flawmap.backbones import Backbone
from flawmap.decision import Decision
from flawmap.embedding import Level
from flawmap.errors import ParameterError
from flawmap.gaussian import Factor, PooledGaussian
from flawmap.images import Preprocessing
from flawmap.records import Size

__all__ = ["JudgingNetwork", "ScoringNetwork", "TrainedScoringNetwork", "WholeImageNetwork", "trace"]


class ScoringNetwork(nn.Module):
    """Images (N, H, W, 3) uint8, resized or letterboxed, to anomaly maps (N, h, w) and image scores (N,), float32.

    The padding of a letterbox is scored like everything else: where it lies depends on the original image.
    """

    def __init__(self, backbone: Backbone, factor: Factor, preprocessing: Preprocessing) -> None:
        super().__init__()
        if factor.hierarchy.projection is not None:
            raise ParameterError("models reduced by principal components cannot be exported; use reduction='random'")
        self._rows, self._columns = _window(preprocessing)
        self.features = _Features(backbone)
        self.distances = _Distances(factor)
        self.smoothing = _Smoothing(factor.hierarchy.grid, preprocessing.input_size)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Anomaly maps (N, h, w) and image scores (N,)."""
        maps = self.smoothing(self.distances(self.features(images[:, self._rows, self._columns])))
        return maps, image_scores(maps)


class WholeImageNetwork(nn.Module):
    """Images (N, H, W, 3) uint8, resized or letterboxed, to MahalanobisAD's image scores (N,)."""

    def __init__(self, backbone: Backbone, gaussians: Sequence[PooledGaussian], preprocessing: Preprocessing) -> None:
        super().__init__()
        self._rows, self._columns = _window(preprocessing)
        self.features = _Features(backbone)
        self.means = nn.ParameterList(_constant(gaussian.mean) for gaussian in gaussians)
        self.whitenings = nn.ParameterList(_constant(gaussian.whitening) for gaussian in gaussians)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Image scores (N,): the sum of the levels' Mahalanobis distances."""
        levels = self.features(images[:, self._rows, self._columns])
        pooled = [level.mean(dim=(2, 3)) for level in levels]
        parts = zip(pooled, self.means, self.whitenings, strict=True)
        lengths = [((vector - mean) @ whitening).square().sum(dim=1).sqrt() for vector, mean, whitening in parts]
        return (torch.stack(lengths).sum(dim=0),)


class TrainedScoringNetwork(nn.Module):
    """Images (N, H, W, 3) uint8, resized or letterboxed, to what a trained detector's network says of them.

    That is anomaly maps (N, h, w), where it makes any, and image scores (N,).
    """

    def __init__(self, scorer: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self._rows, self._columns = _window(preprocessing)
        self.scorer = copy.deepcopy(scorer).cpu()  # the model of the caller stays where it is

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps, where there are any, and scores."""
        outputs: tuple[Tensor, ...] = self.scorer(images[:, self._rows, self._columns])
        return outputs


class JudgingNetwork(nn.Module):
    """A network that ends with image scores (N,), and after them their p-values (N,) and labels (N,) int32."""

    def __init__(self, network: nn.Module, decision: Decision) -> None:
        super().__init__()
        self.network = network
        self.known: Tensor
        self.weights: Tensor
        self.register_buffer("known", torch.from_numpy(decision.scores))
        self.register_buffer("weights", torch.from_numpy(decision.weights).float())
        self.lowest_rate, self.threshold = decision.lowest_rate, decision.threshold

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """What the network says, share of good images that score as high, and 1 for anomalous."""
        outputs: tuple[Tensor, ...] = self.network(images)
        scores = outputs[-1]
        as_high = (self.known >= scores[:, None]).float()
        p_values = (as_high @ self.weights + self.lowest_rate).clamp(max=1)  # rounding may end above
        return *outputs, p_values, (scores > self.threshold).to(torch.int32)


class _Features(nn.Module):
    """Images (N, h, w, 3) uint8 to the feature maps (N, C, ., .) of a backbone's layers."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.scale: Tensor
        self.shift: Tensor
        # x / 255 - mean, over std, as one product and one sum
        self.register_buffer("scale", (1 / (255 * backbone.std.double())).float().cpu())
        self.register_buffer("shift", (-backbone.mean.double() / backbone.std).float().cpu())
        network = copy.deepcopy(backbone.network).cpu()  # the model of the caller stays where it is
        self.network = network.to(memory_format=torch.contiguous_format)

    def forward(self, images: Tensor) -> list[Tensor]:
        features: list[Tensor] = self.network((images.float() * self.scale + self.shift).permute(0, 3, 1, 2))
        return features


def _constant(values: NDArray[np.float32]) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(values), requires_grad=False)


def _window(preprocessing: Preprocessing) -> tuple[slice, slice]:
    """Rows and columns that the crop keeps of an image that has been resized."""
    window = preprocessing.place(preprocessing.resize)  # of an image that has the input's size already
    (top, left), (height, width) = window.offset, window.input_size
    return slice(top, top + height), slice(left, left + width)


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


def trace(network: nn.Module, image_size: Size) -> torch.export.ExportedProgram:
    """The network's operations for any number of images of this size (height, width)."""
    example = torch.zeros(2, *image_size, 3, dtype=torch.uint8)  # a batch of one would be taken for a constant
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(network.eval(), (example,), dynamic_shapes=({0: batch},))
