"""Near-duplicates among good images: those that agree in what sets them apart from the rest.

Whitened by the model, the embeddings of independent images are nearly uncorrelated, however alike the parts look;
copies, burst frames and mild augmentations of one photo keep a high correlation. It is estimated at a few positions,
by a count sketch (Charikar et al. 2002), so that an image takes 2 KB and all pairs are compared at once.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from flawmap.detectors.padim.embedding import spread_positions
from flawmap.detectors.padim.gaussian.factor import Factor, triangles

__all__ = ["NEAR", "Sketcher", "near_duplicates"]

NEAR = 0.6
"""Correlation from which images count as near-duplicates.

Seen: 0.7 to 1 for photos saved again, 0.5 to 0.9 for shifts by a few pixels, below 0.55 for other parts, also in the
same pose.
"""
N_POSITIONS = 48
N_BUCKETS = 512
BLOCK = 1024
"""Images that are compared with all others at a time."""


class Sketcher:
    """Makes the sketch of an image from its embeddings."""

    def __init__(self, factor: Factor) -> None:
        n_features = factor.hierarchy.n_features
        n_positions = max(8, min(N_POSITIONS, N_POSITIONS * 256 // n_features))
        positions = spread_positions(factor.hierarchy.grid, n_positions)
        self._own = [list(level) for level in zip(*map(factor.hierarchy.own_positions, positions), strict=True)]
        self._mean = torch.cat([mean[own] for mean, own in zip(factor.mean, self._own, strict=True)], dim=1)
        self._whiten = triangles(factor, positions).float()
        rng = np.random.default_rng(0)
        n_values, device = len(positions) * n_features, self._mean.device
        self._bucket = torch.from_numpy(rng.integers(N_BUCKETS, size=n_values)).to(device)
        self._sign = torch.from_numpy(rng.choice(np.array([-1, 1], np.float32), size=n_values)).to(device)

    def __call__(self, columns: list[Tensor]) -> Tensor:
        """Sketches (B, buckets) of unit length, on the CPU, of embeddings per level (positions, B, d)."""
        picked = torch.cat([column[own] for column, own in zip(columns, self._own, strict=True)], dim=2)
        white = torch.bmm(picked - self._mean[:, None], self._whiten.transpose(1, 2))
        values = white.transpose(0, 1).flatten(1) * self._sign
        sketch = values.new_zeros(len(values), N_BUCKETS).index_add_(1, self._bucket, values)
        return torch.nn.functional.normalize(sketch, dim=1).cpu()


def near_duplicates(sketches: Tensor, groups: list[int]) -> list[tuple[int, int]]:
    """Pairs (earlier, later) of near-duplicates in different groups: for each image the earlier one most like it."""
    pairs = []
    group = torch.tensor(groups)
    for start in range(0, len(sketches), BLOCK):
        stop = min(start + BLOCK, len(sketches))
        alike = sketches[start:stop] @ sketches[:stop].T
        later = torch.arange(start, stop)[:, None] <= torch.arange(stop)[None]
        alike[later | (group[start:stop, None] == group[None, :stop])] = -math.inf
        best, earlier = alike.max(dim=1)
        pairs += [(int(earlier[i]), start + int(i)) for i in torch.nonzero(best > NEAR).flatten()]
    return pairs
