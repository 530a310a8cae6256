"""Batches of images: what a detector learns from and scores at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flawmap.errors import ParameterError, TrainingSetError
from flawmap.images import Loaded
from flawmap.prediction import Size

BATCH_PIXELS = 32 * 256 * 256
"""Input pixels of a batch: 32 images of 256 x 256, fewer of larger ones."""
MOST_AT_ONCE = 2**20
"""Largest batch that may be asked for."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Images that are processed together.

    Attributes:
        images: (B) with their names and placements.
        pixels: (B, h, w, 3) uint8, the model's input.
        indices, groups: of images that are learnt from, their index in the training order and their group; else empty.
        embedding: of images whose embedding is known, per level (positions, B, d) float32; else empty.
    """

    images: Sequence[Loaded]
    pixels: NDArray[np.uint8]
    indices: Sequence[int] = ()
    groups: Sequence[Hashable] = ()
    embedding: Sequence[Tensor] = ()


def make_batch(images: Sequence[Loaded], indices: Sequence[int] = (), groups: Sequence[Hashable] = ()) -> Batch:
    """A batch of some images, of one size."""
    return Batch(images, np.stack([image.pixels for image in images]), indices, groups)


def batch_of_one(image: Loaded, size: int | None) -> Batch:
    """The batch of one image, whatever `size` was asked for. Raises ParameterError for no size."""
    check_size(size)
    return make_batch([image])


def in_batches(images: Iterator[Loaded], size: int) -> Iterator[Batch]:
    """Images in batches of up to `size`. Raises ParameterError for no size."""
    check_size(size)
    while chosen := list(islice(images, size)):
        yield make_batch(chosen)


def check_size(size: int | None) -> None:
    """Raise ParameterError for no number of images; None lets flawmap choose."""
    if size is None:
        return
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or not 1 <= size <= MOST_AT_ONCE:
        raise ParameterError(f"batch_size must be a number from 1 to {MOST_AT_ONCE}, got {size!r}")


def batch_size(input_size: Size) -> int:
    """Images per step of a fit: 32 of 256 x 256, fewer of larger ones. A prediction processes a quarter of them."""
    return max(1, min(32, BATCH_PIXELS // math.prod(input_size)))


def check_finite(features: Sequence[Tensor], batch: Batch) -> None:
    """Raise TrainingSetError for NaN or infinity in what a backbone gives."""
    if not all(bool(torch.isfinite(part.sum())) for part in features):
        raise TrainingSetError(
            f"the backbone's features are not finite for the images from {batch.images[0].name} on; its weights may be "
            f"damaged"
        )


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
