"""What is added to a sample covariance so that few images give a usable Gaussian.

    Sigma(p) = (1 - a) S(p) / (N - 1) + a Sbar + eps I,    Sbar = mean over positions of S(p) / (N - 1)

PaDiM (section III-B) adds the ridge eps I alone. Sharing, a > 0, also shrinks every patch's covariance towards what all
patches have in common (Ledoit and Wolf 2004, with a pooled target). Sbar is the same everywhere, so the hierarchy of
the factors survives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flawmap.detectors.padim.gaussian.moments import Moments
from flawmap.errors import ParameterError

__all__ = ["PAPER", "Regularization", "shared_scatter"]


@dataclass(frozen=True)
class Regularization:
    """How covariances are regularised.

    Attributes:
        ridge: eps >= 0, added to every variance.
        sharing: a in [0, 1], weight of the covariance that all positions share.
    """

    ridge: float
    sharing: float = 0.0

    @classmethod
    def of(cls, value: object) -> Regularization | None:
        """From what a user gives: "paper", a ridge, or a pair (sharing, ridge); None for "auto". ParameterError."""
        if value == "auto":
            return None
        if value == "paper":
            return PAPER
        pair = tuple(value) if isinstance(value, (tuple, list)) else (0.0, value)
        if len(pair) == 2 and all(isinstance(part, (int, float)) and math.isfinite(part) for part in pair):
            sharing, ridge = (float(part) for part in pair)
            if 0 <= sharing <= 1 and ridge >= 0:
                return cls(ridge, sharing)
        raise ParameterError(
            f"regularization must be 'auto', 'paper', a finite number >= 0, or a pair (sharing from 0 to 1, "
            f"number >= 0); got {value!r}"
        )

    def blend(self, scatter: Tensor, shared: Tensor, count: int) -> Tensor:
        """Blocks of Sigma without its ridge, float64, from those of some cells' S (n, ...) and of their mean (...)."""
        covariance = scatter.double().div_(count - 1)
        if self.sharing:
            covariance.mul_(1 - self.sharing).add_(shared, alpha=self.sharing / (count - 1))
        return covariance


PAPER = Regularization(ridge=0.01)
"""The paper's setting."""


def shared_scatter(moments: Moments) -> list[tuple[Tensor, Tensor]]:
    """Mean of S over the positions of the finest grid: per level its blocks (d, D) and (d, d), float64."""
    blocks = []
    for weight, cross, own in zip(moments.hierarchy.coverage(), moments.cross, moments.own, strict=True):
        share = weight.double() / weight.sum()
        blocks.append((_weighted(share, cross), _weighted(share, own)))
    return blocks


def _weighted(share: Tensor, scatter: Tensor) -> Tensor:
    """Weighted mean (...) float64 over cells (cells, ...), without a float64 copy of them all."""
    total = scatter.new_zeros(scatter.shape[1:], dtype=torch.float64)
    for start in range(0, len(scatter), 256):
        part = scatter[start : start + 256]
        total += torch.tensordot(share[start : start + 256].to(part.dtype), part, dims=1).double()
    return total
