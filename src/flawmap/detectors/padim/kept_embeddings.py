"""Embeddings of a first pass, kept for the second as far as memory is granted: the backbone then runs only once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["KeptEmbeddings"]


class KeptEmbeddings:
    """Embeddings by the image's place in the first pass.

    Args:
        reserve: memory of so many bytes, or None where no more is granted.
    """

    def __init__(self, reserve: Callable[[int], NDArray[np.uint8] | None]) -> None:
        self._reserve = reserve
        self._kept: dict[int, NDArray[np.float32]] = {}
        self._shapes: list[tuple[int, int]] = []

    def add(self, places: Sequence[int], columns: Sequence[Tensor]) -> None:
        """Keep a batch's, per level (positions, B, d), of the images at these places; those that find room."""
        self._shapes = [(len(part), part.shape[2]) for part in columns]
        n_values = sum(positions * d for positions, d in self._shapes)
        host = [part.cpu().numpy() for part in columns]
        for i, place in enumerate(places):
            memory = self._reserve(4 * n_values)
            if memory is None:
                return
            values, start = memory.view(np.float32), 0
            for part, (positions, d) in zip(host, self._shapes, strict=True):
                values[start : start + positions * d].reshape(positions, d)[:] = part[:, i]
                start += positions * d
            self._kept[place] = values

    def get(self, places: Sequence[int], device: torch.device) -> list[Tensor] | None:
        """The same for a batch of any images; None unless all of them were kept."""
        if not self._kept.keys() >= set(places):
            return None
        columns, start = [], 0
        for positions, d in self._shapes:
            parts = [self._kept[place][start : start + positions * d].reshape(positions, d) for place in places]
            columns.append(torch.from_numpy(np.stack(parts, axis=1)).to(device))
            start += positions * d
        return columns
