"""Embeddings of images, and those of a first pass kept for the second as far as memory is granted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flawmap.backbones import Backbone
from flawmap.detectors.padim.embedding import Hierarchy

__all__ = ["KeptEmbeddings", "embed"]


def embed(backbone: Backbone, hierarchy: Hierarchy, pixels: NDArray[np.uint8]) -> list[Tensor]:
    """Embeddings of images (B, h, w, 3) uint8, per level (positions, B, d)."""
    columns: list[Tensor] = []
    for here, maps in backbone.parts(pixels):  # in place: all parts beside the whole would need twice the memory
        for level, part in enumerate(hierarchy.select(maps)):
            if here.start == 0:
                columns.append(part.new_empty(len(part), len(pixels), part.shape[2]))
            columns[level][:, here] = part
    return columns


class KeptEmbeddings:
    """Embeddings by the image's index in the first pass: the backbone then runs only once.

    Args:
        reserve: memory of so many bytes, or None where no more is granted; None keeps nothing.
    """

    def __init__(self, reserve: Callable[[int], NDArray[np.uint8] | None] | None) -> None:
        self._reserve = reserve
        self._kept: dict[int, NDArray[np.float32]] = {}
        self._shapes: list[tuple[int, int]] = []

    def add(self, indices: Sequence[int], columns: Sequence[Tensor]) -> None:
        """Keep a batch's, per level (positions, B, d), of the images of these indices; those that find room."""
        if self._reserve is None:
            return
        self._shapes = [(len(part), part.shape[2]) for part in columns]
        n_values = sum(positions * d for positions, d in self._shapes)
        host = [part.cpu().numpy() for part in columns]
        for i, index in enumerate(indices):
            memory = self._reserve(4 * n_values)
            if memory is None:
                return
            values, start = memory.view(np.float32), 0
            for part, (positions, d) in zip(host, self._shapes, strict=True):
                values[start : start + positions * d].reshape(positions, d)[:] = part[:, i]
                start += positions * d
            self._kept[index] = values

    def get(self, indices: Sequence[int], device: torch.device) -> list[Tensor] | None:
        """The same for a batch of any images; None unless all of them were kept."""
        if not self._kept.keys() >= set(indices):
            return None
        columns, start = [], 0
        for positions, d in self._shapes:
            parts = [self._kept[index][start : start + positions * d].reshape(positions, d) for index in indices]
            columns.append(torch.from_numpy(np.stack(parts, axis=1)).to(device))
            start += positions * d
        return columns
