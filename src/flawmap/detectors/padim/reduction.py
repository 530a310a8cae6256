"""Fewer channels by principal components instead of a random draw (PaDiM section V-B, table II).

A random draw leaves every layer on its own grid, which the hierarchical factorisation lives on. Components mix the
layers, so every position of the finest grid then has a Gaussian of its own, stored in full.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from flawmap.detectors.padim.embedding import Hierarchy, build_hierarchy, concatenate, draw_channels, project_hierarchy
from flawmap.detectors.padim.gaussian import Moments, principal_components, update
from flawmap.errors import ParameterError, TrainingSetError
from flawmap.prediction import Size

__all__ = ["choose_channels", "learn_components", "reduced_hierarchy"]

CHUNK_BYTES = 64 * 2**20
"""How large a block of whole embeddings may be."""


def choose_channels(
    n_total: int, reduction: str, n_features: int | None, channels: ArrayLike | None, seed: int
) -> NDArray[np.int64]:
    """Channels of `n_total` concatenated ones that are used, ascending: those given, a draw, or all.

    Principal components are of all. Raises ParameterError for parameters that contradict each other.
    """
    if reduction not in ("random", "pca"):
        raise ParameterError(f"reduction must be 'random' or 'pca', got {reduction!r}")
    if reduction == "pca":
        if n_features is None or channels is not None:
            raise ParameterError("reduction='pca' takes n_features, the number of components, and no channels")
        draw_channels(n_total, n_features, seed)  # as many components as channels can be drawn
        return np.arange(n_total)
    if channels is None:
        return draw_channels(n_total, n_features, seed)
    chosen = np.asarray(channels)
    if chosen.ndim != 1 or not np.issubdtype(chosen.dtype, np.integer):
        raise ParameterError(f"channels must be a list of integers, got shape {chosen.shape} of {chosen.dtype}")
    return np.sort(chosen.astype(np.int64))


def reduced_hierarchy(
    shapes: Sequence[tuple[int, Size]],
    channels: NDArray[np.int64],
    reduction: str,
    n_features: int | None,
    features: Iterable[Sequence[Tensor]],
) -> Hierarchy:
    """The embedding of layers of these channels and grids: of some channels, or of principal components of all.

    The latter are learnt from `features`, batches of the layers' maps, which are not looked at otherwise.
    """
    grids, n_channels = [grid for _, grid in shapes], [n for n, _ in shapes]
    if reduction == "random" or n_features is None:
        return build_hierarchy(grids, n_channels, channels)
    return project_hierarchy(grids, learn_components(features, n_features))


def learn_components(features: Iterable[Sequence[Tensor]], n_features: int) -> Tensor:
    """Principal components (C, n_features) of all patches of all images, from batches of their layers' maps, streaming.

    Patches of all positions count alike. Raises ParameterError for more components than channels.
    """
    moments: Moments | None = None
    for maps in features:
        n_channels = sum(part.shape[1] for part in maps)
        if moments is None:
            patches = build_hierarchy([(1, 1)], [n_channels], np.arange(n_channels))
            moments = Moments.empty(patches, maps[0].device)
        n_positions = max(part.shape[2] * part.shape[3] for part in maps)
        step = max(1, CHUNK_BYTES // (4 * n_channels * n_positions))
        for start in range(0, len(maps[0]), step):
            update(moments, [concatenate([part[start : start + step] for part in maps])[None]])
    if moments is None:
        raise TrainingSetError("PaDiM learns a spread and needs at least 2 good images, got 0 usable")
    return principal_components(moments, n_features)
