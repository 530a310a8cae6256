"""Float64 twins of the Gaussians, written position by position as the paper states them."""

from __future__ import annotations

import numpy as np


def nearest(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Repeat (N, C, h, w) onto a finer grid."""
    rows = np.arange(size[0]) * maps.shape[2] // size[0]
    columns = np.arange(size[1]) * maps.shape[3] // size[1]
    return maps[:, :, rows][:, :, :, columns]


def embed(features: list[np.ndarray], channels: np.ndarray) -> np.ndarray:
    """Embeddings (P, N, d): coarser maps repeated, concatenated, channels selected."""
    finest = max((maps.shape[2:] for maps in features), key=np.prod)
    joined = np.concatenate([nearest(maps.astype(np.float64), finest) for maps in features], axis=1)
    return joined[:, channels].reshape(len(joined), len(channels), -1).transpose(2, 0, 1)


def fit(embeddings: np.ndarray, ridge: float, sharing: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Mean (P, d) and covariance (P, d, d)."""
    identity = np.eye(embeddings.shape[2])
    own = np.stack([np.cov(position, rowvar=False, ddof=1).reshape(identity.shape) for position in embeddings])
    return embeddings.mean(axis=1), (1 - sharing) * own + sharing * own.mean(axis=0) + ridge * identity


def squared_distances(embeddings: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Squared Mahalanobis distances (P, N)."""
    delta = embeddings - mean[:, None]
    return np.stack([np.sum(d * np.linalg.solve(c, d.T).T, axis=1) for d, c in zip(delta, covariance, strict=True)])
