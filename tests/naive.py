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


def block_of_positions(grid: tuple[int, int], coarsest: tuple[int, int], side: int) -> np.ndarray:
    """Number (P,) of the block of each position: the block of its coarsest cell, and its place in that cell."""
    names = []
    for y in range(grid[0]):
        for x in range(grid[1]):
            height, width = grid[0] // coarsest[0], grid[1] // coarsest[1]
            names.append((y // height // side, y % height, x // width // side, x % width))
    return np.unique(np.array(names), axis=0, return_inverse=True)[1].ravel()


def fit_blocks(
    embeddings: np.ndarray,
    block: np.ndarray,
    ridge: float,
    sharing: float = 0.0,
    shown: np.ndarray | None = None,
    scale: dict[int, float] | None = None,
    shared: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean (P, d), covariance (P, d, d) and degrees of freedom (P,), the latter two of the blocks of positions (P,).

    Of images that `shown` (P, N) shows. What regularises is scaled by `scale` of each block, and is `shared`, if given.
    """
    n_positions, n_images, d = embeddings.shape
    shown = np.ones((n_positions, n_images), bool) if shown is None else shown
    mean = np.stack([x[s].mean(axis=0) if s.any() else np.zeros(d) for x, s in zip(embeddings, shown, strict=True)])
    covariance, freedom = np.zeros((n_positions, d, d)), np.zeros(n_positions)
    for number in np.unique(block):
        members = np.flatnonzero(block == number)
        scatter = np.zeros((d, d))
        for p in members:
            delta = embeddings[p][shown[p]] - mean[p]
            scatter += delta.T @ delta
        freedom[members] = sum(max(0, shown[p].sum() - 1) for p in members)
        covariance[members] = scatter / max(1, freedom[members[0]])
    any_freedom = freedom > 0
    if shared is None:
        shared = covariance[any_freedom].mean(axis=0)
    own = np.where(any_freedom, sharing, 1.0)[:, None, None]
    factors = np.array([1.0 if scale is None else scale[number] for number in block])[:, None, None]
    regularised = (1 - own) * covariance + factors * (own * shared + ridge * np.eye(d))
    return mean, regularised, freedom
