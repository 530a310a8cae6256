"""From patch distances to an anomaly map and an image score.

Bilinear up-sampling (align_corners=False) followed by a Gaussian filter is one separable linear operator:
map = A M B^T with A = gaussian(bilinear(I)) along the rows and B along the columns.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor
from torch.nn.functional import interpolate

from flawmap.prediction import Size

SIGMA = 4.0
"""Standard deviation of the Gaussian filter in pixels of the model's input (PaDiM section IV-B)."""


@lru_cache(maxsize=64)
def smoothing_operator(n_cells: int, n_pixels: int, sigma: float = SIGMA) -> Tensor:
    """Matrix (n_pixels, n_cells), float32: up-sample a line of cells, then smooth it (reflected at the ends)."""
    identity = torch.eye(n_cells, dtype=torch.float64, device="cpu")[None]
    bilinear = interpolate(identity, size=n_pixels, mode="linear", align_corners=False)[0].T
    smooth = gaussian_filter1d(bilinear.numpy(), sigma, axis=0, mode="reflect", truncate=4.0)
    return torch.from_numpy(np.ascontiguousarray(smooth, dtype=np.float32))


def anomaly_maps(distances: Tensor, input_size: Size, *, sigma: float = SIGMA) -> Tensor:
    """Anomaly maps (B, H, W) at the input size from patch distances (B, h, w)."""
    rows = smoothing_operator(distances.shape[1], input_size[0], sigma).to(distances.device)
    columns = smoothing_operator(distances.shape[2], input_size[1], sigma).to(distances.device)
    return rows @ distances @ columns.T


def image_scores(maps: Tensor) -> Tensor:
    """Image scores (B,): the maximum of each map (B, H, W)."""
    return maps.flatten(1).amax(dim=1)
