"""A detector's whole way from images to scores and labels as one torch module, for every graph format."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flawmap.decision import Decision


class GraphNetwork(nn.Module):
    """Images (N, H, W, 3) uint8, resized or letterboxed, to what a detector's network and its decision say of them.

    That is anomaly maps (N, h, w), where there are any, and scores (N,); of a calibrated model also p-values (N,) and
    labels (N,) int32.

    Args:
        network: from the model's input to maps and scores.
        window: rows and columns of the images that are the model's input.
        decision: what the labels follow from, or None.
    """

    def __init__(self, network: nn.Module, window: tuple[slice, slice], decision: Decision | None) -> None:
        super().__init__()
        self.network = network
        self.n_channels: int = getattr(network, "n_channels", 3)
        self._rows, self._columns = window
        self._decides = decision is not None
        if decision is not None:
            self.known: Tensor
            self.weights: Tensor
            self.register_buffer("known", torch.from_numpy(decision.scores))
            self.register_buffer("weights", torch.from_numpy(decision.weights).float())
            self.lowest_rate, self.threshold = decision.lowest_rate, decision.threshold

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps, if any, and scores; then the share of good images that score as high, and 1 for anomalous."""
        outputs: tuple[Tensor, ...] = self.network(images[:, self._rows, self._columns])
        if not self._decides:
            return tuple(outputs)
        scores = outputs[-1]
        as_high = (self.known >= scores[:, None]).float()
        p_values = (as_high @ self.weights + self.lowest_rate).clamp(max=1)  # rounding may end above
        return *outputs, p_values, (scores > self.threshold).to(torch.int32)
