"""Batches of good images as the networks learn them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["GoodImages", "to_planes"]


class GoodImages(Protocol):
    """Good images, resized, that a network learns from."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def take(self, numbers: Sequence[int]) -> NDArray[np.uint8]:
        """Some of them, (B, H, W, 3)."""
        ...


def to_planes(images: Tensor) -> Tensor:
    """Images (B, H, W, 3) uint8 as planes (B, 3, H, W) float32 in 0..1."""
    return images.permute(0, 3, 1, 2).float() / 255


def upload(images: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Images as planes on a device."""
    return to_planes(torch.from_numpy(images).to(device))
