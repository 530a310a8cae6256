"""Good images as the networks learn from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flawmap.detectors.good_images import GoodImages


class TrainingImages:
    """Good images to learn from, by their number.

    Args:
        good: the images, before their crop.
        indices: of those that are meant, in the training order.
        window: rows and columns that the crop keeps; None for whole images.
    """

    def __init__(self, good: GoodImages, indices: Sequence[int], window: tuple[slice, slice] | None) -> None:
        self._good, self._indices = good, indices
        self._rows, self._columns = window or (slice(None), slice(None))

    def __len__(self) -> int:
        return len(self._indices)

    def take(self, numbers: Sequence[int]) -> NDArray[np.uint8]:
        """Some of them, (B, H, W, 3)."""
        images = self._good.replay.second([self._indices[number] for number in numbers])
        return np.stack([image.pixels[self._rows, self._columns] for image in images])

    def batches(self, size: int) -> Iterator[NDArray[np.uint8]]:
        """All of them, in order."""
        for start in range(0, len(self), size):
            yield self.take(range(start, min(start + size, len(self))))


def to_planes(images: Tensor) -> Tensor:
    """Images (B, H, W, 3) uint8 as planes (B, 3, H, W) float32 in 0..1."""
    return images.permute(0, 3, 1, 2).float() / 255


def upload(images: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Images as planes on a device."""
    return to_planes(torch.from_numpy(images).to(device))
