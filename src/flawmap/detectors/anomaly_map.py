"""From patch distances to an anomaly map and an image score.

Bilinear up-sampling (align_corners=False) followed by a Gaussian filter is one separable linear operator:
map = A M B^T with A = gaussian(bilinear(I)) along the rows and B along the columns.

Of a region of interest only its cells enter, m = 1 in them and 0 in the others, and each pixel is the weighted mean of
those: (A (m M) B^T) / (A m B^T). What lies outside is not smoothed in, and a defect at the region's border is not
smoothed out.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from torch import Tensor
from torch.nn.functional import interpolate

from flawmap.decision import STRIDE
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


def anomaly_maps(
    distances: Tensor, input_size: Size, *, sigma: float = SIGMA, roi: NDArray[np.bool_] | None = None
) -> Tensor:
    """Anomaly maps (B, H, W) at the input size from patch distances (B, h, w); 0 outside a region `roi` (H, W)."""
    rows = smoothing_operator(distances.shape[1], input_size[0], sigma).to(distances.device)
    columns = smoothing_operator(distances.shape[2], input_size[1], sigma).to(distances.device)
    if roi is None:
        return rows @ distances @ columns.T
    cells, gain = (
        part.to(distances.device) for part in roi_weights(roi, (distances.shape[1], distances.shape[2]), sigma=sigma)
    )
    return (rows @ (distances * cells) @ columns.T) * gain


def cells_of(roi: NDArray[np.bool_], grid: Size) -> NDArray[np.bool_]:
    """Cells (h, w) of a grid that show anything of a region (H, W)."""
    rows, columns = np.nonzero(roi)
    cells = np.zeros(grid, bool)
    cells[rows * grid[0] // roi.shape[0], columns * grid[1] // roi.shape[1]] = True
    return cells


def roi_weights(roi: NDArray[np.bool_], grid: Size, *, sigma: float = SIGMA) -> tuple[Tensor, Tensor]:
    """What a region (H, W) makes of distances (h, w) before they are smoothed, and of the map after that, float32.

    The first is 1 in cells that show anything of the region, else 0; the second (H, W) is 0 outside the region, and
    inside it one over what the smoothing leaves of the first.
    """
    cells = torch.from_numpy(cells_of(roi, grid).astype(np.float32))
    rows, columns = (smoothing_operator(n, length, sigma) for n, length in zip(grid, roi.shape, strict=True))
    inside = torch.from_numpy(roi)
    smoothed = rows @ cells @ columns.T
    return cells, torch.where(inside, 1 / smoothed.clamp(min=torch.finfo(torch.float32).tiny), 0.0)


def image_scores(maps: Tensor, n_highest: int = 1) -> Tensor:
    """Image scores (B,) of maps (B, H, W): `flawmap.decision.map_score`, as the mean of so many values."""
    if n_highest < 2:
        return maps.flatten(1).amax(dim=1)
    sampled = maps[:, STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE].flatten(1)
    return sampled.topk(n_highest, dim=1, sorted=False).values.mean(dim=1)
