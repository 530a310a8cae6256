"""PaDiM's scoring as the usual scripts write it.

A torch network with its channels first, repeated embeddings, one full inverse per patch, up-sampling, scipy's filter.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from flawmap.backbones import Backbone, NormalisedNetwork
from flawmap.prediction import Size

__all__ = ["PlainPaDiM"]


class PlainPaDiM:
    """Scores by full matrices. Means and inverses are random: time does not depend on them."""

    def __init__(self, backbone: Backbone, grid: Size, channels: Tensor, input_size: Size) -> None:
        n_positions, n_features = grid[0] * grid[1], len(channels)
        network = copy.deepcopy(backbone.network).to(memory_format=torch.contiguous_format)
        self._network = NormalisedNetwork(network, backbone.mean, backbone.std)
        self._channels, self._input_size = channels, input_size
        self._mean = torch.randn(n_positions, n_features)
        self._inverse = torch.randn(n_positions, n_features, n_features)

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        """Maps (B, H, W) and scores (B,) of images (B, H, W, 3)."""
        maps = self._network(torch.from_numpy(images))
        finest = max((part.shape[2:] for part in maps), key=lambda size: size[0] * size[1])
        joined = torch.cat([F.interpolate(part, size=finest, mode="nearest") for part in maps], dim=1)
        embedding = joined[:, self._channels].flatten(2).permute(2, 0, 1)
        delta = embedding - self._mean[:, None]
        squared = ((delta @ self._inverse) * delta).sum(dim=2).abs()
        patches = squared.sqrt().T.reshape(-1, 1, *finest)
        large = F.interpolate(patches, size=self._input_size, mode="bilinear")[:, 0]
        smooth = torch.stack([torch.from_numpy(gaussian_filter(one.numpy(), sigma=4)) for one in large])
        return smooth, smooth.amax(dim=(1, 2))
