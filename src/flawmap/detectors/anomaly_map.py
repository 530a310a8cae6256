"""From patch distances to an anomaly map and an image score.

Bilinear up-sampling (align_corners=False) followed by a Gaussian filter is one separable linear operator:
map = A M B^T with A = gaussian(bilinear(I)) along the rows and B along the columns.

Of a region of interest, and of what an aligned image shows, only those cells enter, m = 1 in them and 0 in the others,
and each pixel is the weighted mean of those: (A (m M) B^T) / (A m B^T). What lies outside is not smoothed in, and a
defect at a border is not smoothed out. A pixel that is shown, of a cell that is not shown as a whole, has the mean of
those nearby.
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

LEAST_WEIGHT = 1e-12
"""What smoothing leaves, at least, of cells that count: pixels further from any of them are 0."""


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
    rows, columns, region = _operators(distances, input_size, sigma, roi)
    return rows @ distances @ columns if region is None else (rows @ (distances * region[0]) @ columns) * region[1]


def masked_maps(
    distances: Tensor, input_size: Size, cells: Tensor, shown: Tensor, *, roi: NDArray[np.bool_] | None = None
) -> tuple[Tensor, Tensor]:
    """Anomaly maps of images that do not show everything, and what scores them: `smooth_shown`."""
    rows, columns, region = _operators(distances, input_size, SIGMA, roi)
    return smooth_shown(distances, rows, columns, cells, shown, region)


def smooth_shown(
    distances: Tensor,
    rows: Tensor,
    columns: Tensor,
    cells: Tensor,
    shown: Tensor,
    region: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Anomaly maps (B, H, W), 0 where an image shows nothing, and of the same shape what scores the image.

    At a border the network sees what stands in for the rest, which is no part of the image. So what scores is the map
    times the share of the smoothing that falls on cells that count.

    Args:
        distances: patch distances (B, h, w).
        rows: A (H, h).
        columns: B^T (w, W).
        cells: (B, h, w), 1 for cells that count, 0 for others.
        shown: (B, H, W), pixels that are shown.
        region: `roi_weights` of a region of interest.
    """
    if region is not None:
        cells = cells * region[0]
    weights, weighed = rows @ cells @ columns, torch.where(shown, rows @ (distances * cells) @ columns, 0.0)
    maps = weighed / weights.clamp(min=LEAST_WEIGHT)
    return (maps, weighed) if region is None else (maps * (region[1] > 0), weighed * region[1])


def _operators(
    distances: Tensor, input_size: Size, sigma: float, roi: NDArray[np.bool_] | None
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
    """A, B^T, and `roi_weights`, for distances (B, h, w) on their device."""
    device, grid = distances.device, (distances.shape[1], distances.shape[2])
    rows, columns = (smoothing_operator(n, size, sigma).to(device) for n, size in zip(grid, input_size, strict=True))
    if roi is None:
        return rows, columns.T, None
    cells, gain = roi_weights(roi, grid, sigma=sigma)
    return rows, columns.T, (cells.to(device), gain.to(device))


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
