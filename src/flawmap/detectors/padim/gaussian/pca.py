"""Principal components from moments."""

from __future__ import annotations

import torch
from torch import Tensor

from flawmap.detectors.padim.gaussian.moments import Moments
from flawmap.errors import ParameterError, TrainingSetError

__all__ = ["principal_components"]


def principal_components(moments: Moments, n_features: int) -> Tensor:
    """Directions (C, n_features) float32 of greatest variance, orthonormal, from moments of one cell of C channels.

    Each points where its largest entry is positive. Raises ParameterError for more directions than channels.
    """
    scatter = moments.own[0][0].double()
    if not 1 <= n_features <= len(scatter):
        raise ParameterError(
            f"n_features must lie between 1 and {len(scatter)}, the channels of these layers; got {n_features}"
        )
    if not bool(torch.isfinite(scatter).all()):
        raise TrainingSetError("the backbone's features are not finite; its weights may be damaged")
    vectors = torch.linalg.eigh(scatter)[1].flip(1)[:, :n_features]
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    components: Tensor = (vectors * largest.sign()).float().contiguous()
    return components
