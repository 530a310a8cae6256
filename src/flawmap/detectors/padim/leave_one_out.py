"""Held-out scores of good images: each by a model that has seen neither it nor its near-duplicates.

Images of one group (copies, frames of one clip, views of one part) make each other's scores too low, so they are left
out together. A small group is left out by the block identity. Of a large one, whose part in what regularises is no
longer negligible (and of every image, if there are few), the moments are subtracted and the Gaussians factored again:
a refit, which is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flawmap.backbones import Backbone
from flawmap.detectors.anomaly_map import anomaly_maps
from flawmap.detectors.batches import Batch
from flawmap.detectors.calibration import HeldOutScores
from flawmap.detectors.good_images import GoodImages
from flawmap.detectors.padim.embedding import embed, shown_cells
from flawmap.detectors.padim.gaussian.factor import Factor, factorise, inner_products, squared_distances
from flawmap.detectors.padim.gaussian.leave_one_out import leave_group_out, leave_one_out
from flawmap.detectors.padim.gaussian.moments import Moments, Regularization, merge, subtract, update
from flawmap.options import MIN_IMAGES
from flawmap.prediction import Size

REFIT_BELOW = 50
"""Images of which a single one is no longer negligible."""
LARGEST_BLOCK = 32
"""Images of a group that is left out by the block identity, at most."""
LARGEST_SHARE = 0.02
"""Share of all images that such a group may be: the relative error of what regularises."""


def is_large(n_members: int, count: int, refit_below: int = REFIT_BELOW) -> bool:
    """Whether a group of so many images is left out by a refit, for which all moments must be kept."""
    if n_members == 1:
        return count < refit_below
    return n_members > min(LARGEST_BLOCK, LARGEST_SHARE * count)


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


class Calibrator:
    """Scores good images by the model without them, which was fitted on `count` images.

    `moments` are those of all images that were learnt, for groups that are large; they are as they were afterwards.

    Attributes:
        vectors: (B, D) of images that were not learnt, batch by batch, by which near-duplicates are told.
    """

    def __init__(
        self,
        backbone: Backbone,
        factor: Factor,
        regularization: Regularization,
        count: int,
        good: GoodImages,
        input_size: Size,
        *,
        step: int,
        kept: KeptEmbeddings,
        seen: Tensor | None = None,
        as_vectors: Callable[[Sequence[Tensor], Tensor | None], NDArray[np.float32]],
        moments: Moments | None = None,
        refit_below: int = REFIT_BELOW,
    ) -> None:
        self._backbone, self._factor, self._regularization, self._count = backbone, factor, regularization, count
        self._good, self._input_size, self._step, self._moments = good, input_size, step, moments
        self._kept, self._refit_below = kept, refit_below
        self._counts: int | Tensor = count  # images that show each position of the finest grid
        if seen is not None:
            self._counts = factor.hierarchy.to_finest(seen)
        self._as_vectors = as_vectors
        self.vectors: list[NDArray[np.float32]] = []
        self._result = HeldOutScores()

    def held_out(self, groups: Sequence[Sequence[int]], advance: Callable[[int], None]) -> HeldOutScores:
        """Scores of images that were not learnt, given the indices of each group's."""
        numbers = {index: number for number, group in enumerate(groups) for index in group}
        embedded = (self._compared(batch) for batch in self._embedded(sorted(numbers), self._step))
        self._score(embedded, numbers, squared_distances, self._factor, advance)
        return self._result

    def left_out(self, groups: Sequence[Sequence[int]], advance: Callable[[int], None]) -> HeldOutScores:
        """Scores of images that were learnt, each without its group, given the indices of each group's.

        A group of so many images that fewer than two remain without it has no score.
        """
        numbers = {index: number for number, group in enumerate(groups) for index in group}
        sharing = self._regularization.sharing

        def one_out(factor: Factor, columns: Sequence[Tensor]) -> Tensor:
            return leave_one_out(squared_distances(factor, columns), self._counts, sharing=sharing)

        def group_out(factor: Factor, columns: Sequence[Tensor]) -> Tensor:
            counts = self._counts.flatten() if isinstance(self._counts, Tensor) else self._counts
            squared = leave_group_out(inner_products(factor, columns), counts, sharing=sharing)
            return squared.T.reshape(-1, *factor.hierarchy.grid)

        small = [group for group in groups if not self._is_large(group)]
        alone = sorted(group[0] for group in small if len(group) == 1)
        self._score(self._embedded(alone, self._step), numbers, one_out, self._factor, advance)
        for group in groups:
            if self._count - len(group) < MIN_IMAGES - 1:
                continue
            if self._is_large(group):
                self._without(group, numbers, advance)
            elif len(group) > 1:
                self._score(self._embedded(group, len(group)), numbers, group_out, self._factor, advance)
        return self._result

    def _is_large(self, group: Sequence[int]) -> bool:
        return is_large(len(group), self._count, self._refit_below)

    def _without(self, group: Sequence[int], numbers: dict[int, int], advance: Callable[[int], None]) -> None:
        """Score a group by the Gaussians fitted without it."""
        if self._moments is None:
            raise ValueError("the moments were not kept, but a group is large")
        masked = self._moments.seen is not None
        part = Moments.empty(self._moments.hierarchy, self._backbone.device, masked=masked)
        embedded: Iterable[Batch] = self._embedded(group, self._step)
        if len(group) <= self._step:
            embedded = list(embedded)  # for the scores too
        for batch in embedded:
            update(part, batch.embedding, self._shown(batch))
        subtract(self._moments, part)
        try:
            factor = factorise(self._moments, regularization=self._regularization)
        finally:
            merge(self._moments, part)
        if not isinstance(embedded, list):
            embedded = self._embedded(group, self._step)
        self._score(embedded, numbers, squared_distances, factor, advance)

    def _score(
        self,
        embedded: Iterable[Batch],
        numbers: dict[int, int],
        distances: Callable[[Factor, Sequence[Tensor]], Tensor],
        factor: Factor,
        advance: Callable[[int], None],
    ) -> None:
        """Add the scores of some images, by squared distances (B, h, w) of a batch."""
        result = self._result
        for batch in embedded:
            found, shown = distances(factor, batch.embedding).sqrt_(), self._shown(batch)
            if shown is not None and factor.known is not None:
                found = found * factor.hierarchy.to_finest((shown * factor.known[:, None]).T)
            maps = anomaly_maps(found, self._input_size).cpu().numpy()
            for index, image, anomaly_map in zip(batch.indices, batch.images, maps, strict=True):
                result.add_map(index, anomaly_map, image.placement, group=numbers[index])
            advance(len(batch.images))

    def _compared(self, batch: Batch) -> Batch:
        """The batch, whose vectors are kept."""
        self.vectors.append(self._as_vectors(batch.embedding, self._shown(batch)))
        return batch

    def _shown(self, batch: Batch) -> Tensor | None:
        return shown_cells(batch.pixels, self._factor.hierarchy, self._backbone.device)

    def _embedded(self, indices: Sequence[int], size: int) -> Iterator[Batch]:
        """Images of these indices in batches of up to `size`, with their embeddings."""
        for batch in self._good.again(indices, size):
            kept = self._kept.get(batch.indices, self._backbone.device)
            yield replace(batch, embedding=kept or embed(self._backbone, self._factor.hierarchy, batch.pixels))
