"""Principal components of a patch embedding: the other way to fewer channels in table II of the PaDiM paper.

One set of directions serves all patches. Coarse layers are repeated onto the finest grid (nearest neighbour), as in the
whole embedding; since that is linear, each layer is projected on its own grid and the results are added up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flawmap.prediction import Size

__all__ = ["Projection", "concatenate", "finest_grid", "nearest_positions"]


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


def concatenate(features: Sequence[Tensor]) -> Tensor:
    """Whole embeddings (B * positions, C) of the finest grid from the layers' maps (B, C, h, w)."""
    grids = [(maps.shape[2], maps.shape[3]) for maps in features]
    finest = finest_grid(grids)
    repeated = [
        maps.flatten(2)[:, :, torch.from_numpy(nearest_positions(grid, finest)).to(maps.device)]
        for maps, grid in zip(features, grids, strict=True)
    ]
    return torch.cat(repeated, dim=1).transpose(1, 2).flatten(0, 1)
