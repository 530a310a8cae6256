"""A detector's whole way from images to scores and labels as one torch module, for every graph format."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flawmap.decision import Decision, n_highest
from flawmap.detectors.anomaly_map import image_scores


class GraphNetwork(nn.Module):
    """Images (N, H, W, 3) uint8, resized or letterboxed, to what a detector's network and its decision say of them.

    That is anomaly maps (N, h, w), where there are any, and scores (N,); of a calibrated model also p-values (N,) and
    labels (N,) int32.

    Args:
        network: from the model's input to maps and scores.
        window: rows and columns of the images that are the model's input.
        decision: what the labels follow from, or None.
        roi: (h, w), the pixels that are inspected: maps are 0 elsewhere, and scores those of the rest. None for all.
        top_share: part of such a map whose mean is its score; 0 for its highest value.
    """

    def __init__(
        self,
        network: nn.Module,
        window: tuple[slice, slice],
        decision: Decision | None,
        *,
        roi: NDArray[np.bool_] | None = None,
        top_share: float = 0.0,
    ) -> None:
        super().__init__()
        self.network = network
        self.n_channels: int = getattr(network, "n_channels", 3)
        self._rows, self._columns = window
        self.n_highest = 1 if roi is None else n_highest(roi.shape[0], roi.shape[1], top_share)
        self.roi: Tensor | None
        self.register_buffer("roi", None if roi is None else torch.from_numpy(roi).float())
        self._decides = decision is not None
        if decision is not None:
            self.known: Tensor
            self.weights: Tensor
            self.register_buffer("known", torch.from_numpy(decision.scores))
            self.register_buffer("weights", torch.from_numpy(decision.weights).float())
            self.one_more, self.threshold = 1 / (decision.n_groups + 1), decision.threshold

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps, if any, and scores; then the share of good images that score as high, and 1 for anomalous."""
        outputs: tuple[Tensor, ...] = self.network(images[:, self._rows, self._columns])
        if self.roi is not None:
            maps = outputs[0] * self.roi
            outputs = (maps, image_scores(maps, self.n_highest))
        if not self._decides:
            return tuple(outputs)
        scores = outputs[-1]
        as_high = (self.known >= scores[:, None]).float()
        p_values = (as_high @ self.weights + self.one_more).clamp(max=1)  # rounding may end above
        return *outputs, p_values, (scores > self.threshold).to(torch.int32)
