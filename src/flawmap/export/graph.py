"""Each detector's whole way from images to scores as one torch module, which every graph format is made from."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flawmap.backbones import Backbone, NormalisedNetwork
from flawmap.decision import Decision
from flawmap.detectors.pooled_gaussian import PooledGaussian
from flawmap.images import Preprocessing

__all__ = ["JudgingNetwork", "TrainedScoringNetwork", "WholeImageNetwork", "pixel_network"]


class WholeImageNetwork(nn.Module):
    """Images (N, H, W, 3) uint8, resized or letterboxed, to MahalanobisAD's image scores (N,)."""

    def __init__(self, backbone: Backbone, gaussians: Sequence[PooledGaussian], preprocessing: Preprocessing) -> None:
        super().__init__()
        self._rows, self._columns = preprocessing.window
        self.features = pixel_network(backbone)
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
        self._rows, self._columns = preprocessing.window
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


def pixel_network(backbone: Backbone) -> NormalisedNetwork:
    """A backbone from pixels on, as a copy on the CPU: the model of the caller stays as and where it is."""
    network = copy.deepcopy(backbone.network).cpu().to(memory_format=torch.contiguous_format)
    return NormalisedNetwork(network, backbone.mean.cpu(), backbone.std.cpu())


def _constant(values: NDArray[np.float32]) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(values), requires_grad=False)
