"""One Gaussian over whole images' pooled features, with Ledoit-Wolf shrinkage, and its exact leave-one-out distances.

With N vectors x_i of d channels, their mean m and covariance S (divided by N), the shrunk covariance is
C = (1 - a) S + a t I, where t = trace(S) / d and a is the coefficient of Ledoit & Wolf 2004 (MahalanobisAD: Rippel et
al. 2020). Without image i, with r = x_i - m, both S and t lose a part of it:

    S_i = c (S - r r^T / (N - 1)),    t_i = c (t - |r|^2 / ((N - 1) d)),    c = N / (N - 1),
    C_i = c (C - e I - k r r^T),      e = a |r|^2 / ((N - 1) d),            k = (1 - a) / (N - 1),

with `a` held fixed. In the eigenvectors of C (eigenvalues l, r = V w) the inverse of C - e I is at hand for every i, so
that with q = sum_j w_j^2 / (l_j - e) Sherman-Morrison and x_i - m_i = c r give, exactly,

    d2_loo = c q / (1 - k q).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flawmap.errors import TrainingSetError

__all__ = ["PooledGaussian", "learn_pooled"]

SMALLEST = 1e-12
"""Least variance, as a share of the largest: what is left of it after taking out an image that alone had it."""


@dataclass(frozen=True, eq=False)
class PooledGaussian:
    """A Gaussian of vectors of d channels.

    Attributes:
        mean: (d,) float32.
        whitening: (d, d) float32; the Mahalanobis distance is the length of (x - mean) @ whitening.
        shrinkage: Ledoit-Wolf coefficient, 0 to 1.
    """

    mean: NDArray[np.float32]
    whitening: NDArray[np.float32]
    shrinkage: float

    def distances(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        """Mahalanobis distances (B,) of vectors (B, d)."""
        centred = vectors.astype(np.float64) - self.mean
        return np.asarray(np.linalg.norm(centred @ self.whitening.astype(np.float64), axis=1), np.float64)


def learn_pooled(vectors: NDArray[np.float32]) -> tuple[PooledGaussian, NDArray[np.float64]]:
    """The Gaussian of vectors (N, d), and the distance (N,) of each by the Gaussian without it.

    Raises TrainingSetError if all vectors are equal. With fewer than three, there are no leave-one-out distances (0,).
    """
    from sklearn.covariance import ledoit_wolf  # takes a second to import, which the other detectors need not pay

    wide = vectors.astype(np.float64)
    count, n_channels = wide.shape
    mean = wide.mean(axis=0)
    centred = wide - mean
    if not centred.any():
        raise TrainingSetError(f"the {count} good images are all alike: there is no spread to be learnt from them")
    covariance, shrinkage = ledoit_wolf(centred, assume_centered=True)
    variances, axes = np.linalg.eigh(covariance)
    variances = np.maximum(variances, SMALLEST * variances[-1])
    whitening = (axes / np.sqrt(variances)).astype(np.float32)
    gaussian = PooledGaussian(mean.astype(np.float32), whitening, float(shrinkage))
    if count < 3:
        return gaussian, np.empty(0)
    remaining, dilution = (1 - shrinkage) / (count - 1), count / (count - 1)
    lost = shrinkage * np.square(centred).sum(axis=1) / ((count - 1) * n_channels)
    left = np.maximum(variances - lost[:, None], SMALLEST * variances[-1])
    whole = (np.square(centred @ axes) / left).sum(axis=1)
    return gaussian, np.sqrt(dilution * whole / np.maximum(1 - remaining * whole, SMALLEST))
