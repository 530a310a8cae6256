"""Honest scores of good images: each by a model that has seen neither it nor its near-duplicates.

Images of one group (copies, frames of one clip, views of one part) vouch for each other, so they are left out together.
A small group is left out by the block identity. Of a large one, whose part in what regularises is no longer negligible
(among fewer than 50 images that is every one of them), the moments are subtracted and the Gaussians factored again,
which is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flawmap.backbones import Backbone
from flawmap.decision import PixelHistogram
from flawmap.detectors import passes
from flawmap.detectors.padim.gaussian import (
    MIN_IMAGES,
    Factor,
    Moments,
    Regularization,
    Sketcher,
    factorise,
    inner_products,
    leave_group_out,
    leave_one_out,
    merge,
    near_duplicates,
    squared_distances,
    subtract,
    update,
)
from flawmap.detectors.padim.kept_embeddings import KeptEmbeddings
from flawmap.images import Loaded, Replay
from flawmap.prediction import Size

__all__ = ["Calibration", "Calibrator", "is_large"]

Embedded = tuple[Sequence[int], list[Loaded], list[Tensor]]
"""Places of a batch of images, the images, and their embeddings, per level (positions, B, d)."""

LARGEST_BLOCK = 32
"""Images of a group that is left out by the block identity, at most."""
MOST_SKETCHES = 20_000
"""Images among which near-duplicates are looked for: the first ones, so that memory does not grow without end."""
LARGEST_SHARE = 0.02
"""Share of all images that such a group may be: the relative error of what regularises."""


def is_large(n_members: int, count: int) -> bool:
    """Whether a group of so many images is left out by subtracting its moments, for which all moments must be kept."""
    return n_members > min(LARGEST_BLOCK, LARGEST_SHARE * count)


@dataclass
class Calibration:
    """Scores of good images, in the order they were taken.

    Attributes:
        places, groups: of each image in the training order, and the number of its group.
        scores: image scores.
        pixels: how often their maps' values occur.
        sketches: of the first images, for near-duplicates.
    """

    places: list[int] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    pixels: PixelHistogram = field(default_factory=PixelHistogram)
    sketches: list[Tensor] = field(default_factory=list)

    def in_order(self) -> tuple[list[int], NDArray[np.float32], NDArray[np.int64]]:
        """Places, ascending, with their scores and groups."""
        order = np.argsort(self.places)
        return (
            [self.places[i] for i in order],
            np.array(self.scores, np.float32)[order],
            np.array(self.groups, np.int64)[order],
        )

    def duplicates(self) -> list[tuple[int, int]]:
        """Places of near-duplicates in different groups, the earlier first."""
        sketches = torch.cat(self.sketches)
        order = np.argsort(self.places[: len(sketches)])
        pairs = near_duplicates(sketches[order], [self.groups[i] for i in order])
        return [(self.places[order[earlier]], self.places[order[later]]) for earlier, later in pairs]


class Calibrator:
    """Scores good images by the model without them.

    Args:
        kept: embeddings that need not be computed again.
        moments: those of all images that were learnt; needed where a group `is_large`, and as they were afterwards.
    """

    def __init__(
        self,
        backbone: Backbone,
        factor: Factor,
        regularization: Regularization,
        count: int,
        replay: Replay,
        input_size: Size,
        *,
        batch_size: int,
        kept: KeptEmbeddings,
        moments: Moments | None = None,
    ) -> None:
        self._backbone, self._factor, self._regularization, self._count = backbone, factor, regularization, count
        self._replay, self._input_size, self._batch_size, self._moments = replay, input_size, batch_size, moments
        self._kept = kept
        self._sketch = Sketcher(factor)
        self._result = Calibration()

    def held_out(self, members: Sequence[Sequence[int]], advance: Callable[[int], None]) -> Calibration:
        """Scores of images that were not learnt, given the places of each group's."""
        numbers = {place: number for number, group in enumerate(members) for place in group}
        everything = self._embedded(sorted(numbers), self._batch_size)
        self._score(everything, numbers, squared_distances, self._factor, advance)
        return self._result

    def left_out(self, members: Sequence[Sequence[int]], advance: Callable[[int], None]) -> Calibration:
        """Scores of images that were learnt, each without its group, given the places of each group's.

        A group of so many images that fewer than two remain without it has no score.
        """
        numbers = {place: number for number, group in enumerate(members) for place in group}
        sharing = self._regularization.sharing

        def one_out(factor: Factor, columns: list[Tensor]) -> Tensor:
            return leave_one_out(squared_distances(factor, columns), self._count, sharing=sharing)

        def group_out(factor: Factor, columns: list[Tensor]) -> Tensor:
            squared = leave_group_out(inner_products(factor, columns), self._count, sharing=sharing)
            return squared.T.reshape(-1, *factor.hierarchy.grid)

        small = [group for group in members if not is_large(len(group), self._count)]
        alone = sorted(group[0] for group in small if len(group) == 1)
        self._score(self._embedded(alone, self._batch_size), numbers, one_out, self._factor, advance)
        for group in members:
            if self._count - len(group) < MIN_IMAGES - 1:
                continue
            if is_large(len(group), self._count):
                self._without(group, numbers, advance)
            elif len(group) > 1:
                self._score(self._embedded(group, len(group)), numbers, group_out, self._factor, advance)
        return self._result

    def _without(self, group: Sequence[int], numbers: dict[int, int], advance: Callable[[int], None]) -> None:
        """Score a group by the Gaussians fitted without it."""
        if self._moments is None:
            raise ValueError("the moments were not kept, but a group is large")
        part = Moments.empty(self._moments.hierarchy, self._backbone.device)
        embedded: Iterable[Embedded] = self._embedded(group, self._batch_size)
        if len(group) <= self._batch_size:
            embedded = list(embedded)  # for the scores too
        for _, _, columns in embedded:
            update(part, columns)
        subtract(self._moments, part)
        try:
            factor = factorise(self._moments, regularization=self._regularization)
        finally:
            merge(self._moments, part)
        if not isinstance(embedded, list):
            embedded = self._embedded(group, self._batch_size)
        self._score(embedded, numbers, squared_distances, factor, advance)

    def _score(
        self,
        embedded: Iterable[Embedded],
        numbers: dict[int, int],
        distances: Callable[[Factor, list[Tensor]], Tensor],
        factor: Factor,
        advance: Callable[[int], None],
    ) -> None:
        """Take in the scores of some images, by squared distances (B, h, w) of a batch."""
        result = self._result
        for here, batch, columns in embedded:
            maps, scores = passes.map_batch(batch, distances(factor, columns).sqrt_(), self._input_size)
            for image, anomaly_map in zip(batch, maps.numpy(), strict=True):
                top, left, bottom, right = image.placement.content
                result.pixels.add(anomaly_map[top:bottom, left:right])
            result.places += here
            result.groups += [numbers[place] for place in here]
            result.scores += scores.tolist()
            if len(result.places) <= MOST_SKETCHES:
                result.sketches.append(self._sketch(columns))
            advance(len(batch))

    def _embedded(self, places: Sequence[int], size: int) -> Iterator[Embedded]:
        """Images at these places in batches of up to `size`, with their embeddings."""
        done = 0
        for batch in passes.batches(self._replay.second(places), size):
            here = places[done : done + len(batch)]
            kept = self._kept.get(here, self._backbone.device)
            yield here, batch, kept or passes.embed(self._backbone, self._factor.hierarchy, batch)
            done += len(batch)
