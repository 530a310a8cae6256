"""Held-out scores of good images: each by a model that has seen neither it nor its near-duplicates.

Images of one group (copies, frames of one clip, views of one part) make each other's scores too low, so they are left
out together. A small group is left out by the block identity. Of a large one, whose part in what regularises is no
longer negligible (and of every image, if there are few), the moments are subtracted and the Gaussians factored again:
a refit, which is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flawmap.backbones import Backbone
from flawmap.detectors.anomaly_map import anomaly_maps, masked_maps
from flawmap.detectors.batches import Batch
from flawmap.detectors.calibration import HeldOutScores, find_groups, near_duplicates
from flawmap.detectors.good_images import GoodImages
from flawmap.detectors.padim.embedding import SHOWN, embed, shown_cells
from flawmap.detectors.padim.gaussian.factor import Factor, factorise, inner_products, known_cells, squared_distances
from flawmap.detectors.padim.gaussian.leave_one_out import (
    SMALLEST,
    TINY,
    leave_group_out,
    leave_one_out,
    leave_set_out,
    moments_at,
    shared_at_all,
    strongest_regularization,
)
from flawmap.detectors.padim.gaussian.moments import PAPER, Moments, Regularization, merge, subtract, update
from flawmap.options import MIN_IMAGES
from flawmap.prediction import Size

REFIT_BELOW = 50
"""Images of which a single one is no longer negligible."""
LARGEST_BLOCK = 32
"""Images of a group that is left out by the block identity, at most."""
LARGEST_SHARE = 0.02
"""Share of all images that such a group may be: the relative error of what regularises."""
MOST_BYTES = 64 * 2**20
"""Memory from which on embeddings are compared at half as many positions, or by half as many channels."""
FEWEST_POSITIONS, FEWEST_CHANNELS = 8, 16
"""No fewer are compared; so many values of independent images have a correlation below 0.6 for certain."""
HIGH = 0.95
"""Quantile of scores; their spread is taken from the median up to it."""
COMPARED = 512
"""Images that are whitened at a time."""


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


class Likeness:
    """Embeddings of all good images at a few positions, by which those that belong together are found.

    Whitened by the model, the embeddings of independent images are nearly uncorrelated, however alike the parts look;
    copies, frames of a burst and mild augmentations of one photo keep a correlation. Memory is bounded: for many images
    there are fewer positions, later fewer channels, and from some 130,000 on no more are taken.

    Args:
        positions: of the finest grid.

    Attributes:
        indices: of the images in the training order.
    """

    def __init__(self, positions: Sequence[int]) -> None:
        self.indices: list[int] = []
        self._positions = list(positions)
        self._steps = (1, 1)  # every so many of the positions and channels are compared
        self._kept: list[Tensor] = []
        self._gaussians: tuple[Tensor, Tensor, Tensor, int | Tensor] | None = None
        self._known: Tensor | None = None
        self._strongest = PAPER

    def take(self, batch: Tensor, indices: Sequence[int]) -> None:
        """Take note of embeddings (P, B, d) at the positions, NaN where an image does not show one."""
        some = self._some_of(batch)
        while (len(self.indices) + len(indices)) * some[:, 0].nbytes > MOST_BYTES:
            if len(some) >= 2 * FEWEST_POSITIONS:
                steps = (2, 1)
            elif some.shape[2] >= 2 * FEWEST_CHANNELS:
                steps = (1, 2)
            else:
                return
            self._steps = (self._steps[0] * steps[0], self._steps[1] * steps[1])
            self._kept = [kept[:: steps[0], :, :: steps[1]].clone() for kept in self._kept]
            some = self._some_of(batch)
        self._kept.append(some.clone())
        self.indices += indices

    def learn(self, moments: Moments) -> None:
        """Take note of the Gaussians at the positions; the moments may change afterwards."""
        mean, own, count = moments_at(moments, self._positions)
        self._gaussians = mean, own, shared_at_all(moments), count
        self._known = known_cells(count, moments.count) if isinstance(count, Tensor) else None
        self._strongest = strongest_regularization(moments)

    def find(
        self, among: Sequence[int], order: Callable[[Sequence[int]], Sequence[int]], regularization: Regularization
    ) -> list[list[int]]:
        """Indices of the images of each group that is found `among` some, which `order` puts in that of capture."""
        rows = {index: row for row, index in enumerate(self.indices)}
        indices = order([index for index in among if index in rows])
        if len(indices) < 2:
            return []
        chosen = [rows[index] for index in indices]
        strict, white = (self._whitened(rule)[:, chosen] for rule in (self._strongest, regularization))
        that_matter = partial(self._that_matter, white, regularization.sharing)
        found = find_groups(_unit(white), _unit(strict), that_matter)
        return [sorted(indices[place] for place in group) for group in found]

    def duplicates(self, group_of: Sequence[Hashable]) -> list[tuple[int, int]]:
        """Indices (earlier, later) of near-duplicates in different groups."""
        rows = sorted(range(len(self.indices)), key=self.indices.__getitem__)
        indices = [self.indices[row] for row in rows]
        vectors = _unit(self._whitened(self._strongest)[:, rows])
        pairs = near_duplicates(vectors, [group_of[index] for index in indices])
        return [(indices[i], indices[j]) for i, j in pairs]

    def _that_matter(self, white: Tensor, sharing: float, groups: list[list[int]]) -> list[list[int]]:
        """Those of some groups of images, rows of (P, N, d), whose company matters.

        An image's score is the highest of its distances, by the model without it, or without its group. Company matters
        if scores rise without it, on average, by as much as tells one of the highest in twenty from a median one, where
        all images have their company or where none has, whichever is less.
        """
        _, _, _, count = self._sliced()
        by_position = count[:, None] if isinstance(count, Tensor) else count
        scores = leave_one_out(white.double().square().sum(dim=2), by_position, sharing=sharing).amax(dim=0).sqrt()
        alone, most = scores.clone(), white.shape[1] - (MIN_IMAGES - 1)
        groups = [group for group in groups if len(group) <= most]
        for group in groups:
            squared = leave_set_out(white[:, group].double(), count, sharing=sharing)
            alone[group] = squared.amax(dim=0).clamp(min=0).sqrt()
        usual, high = np.quantile(torch.stack([scores, alone]).cpu().numpy(), (0.5, HIGH), axis=1)
        least = float((high - usual).min())
        return [group for group in groups if float((alone - scores)[group].mean()) > least]

    def _some_of(self, batch: Tensor) -> Tensor:
        return batch[:: self._steps[0], :, :: self._steps[1]]

    def _sliced(self) -> tuple[Tensor, Tensor, Tensor, int | Tensor]:
        """Means (P, d), covariances (P, d, d) and the shared one (d, d) of what is compared, of so many images."""
        if self._gaussians is None:
            raise ValueError("learn has not been called")
        mean, own, shared, count = self._gaussians
        p, c = (slice(None, None, step) for step in self._steps)
        return mean[p, c], own[p, c, c], shared[c, c], count[p] if isinstance(count, Tensor) else count

    def _whitened(self, regularization: Regularization) -> Tensor:
        """Embeddings (P, N, d) float32 whitened by the model of all images; 0 where an image does not show it."""
        mean, own, shared, _ = self._sliced()
        a, variance = regularization.sharing, float(shared.diagonal().mean())
        ridge = max(regularization.ridge, SMALLEST * variance, TINY)
        eye = torch.eye(len(shared), dtype=shared.dtype, device=shared.device)
        factor = torch.linalg.cholesky((1 - a) * own + a * shared + ridge * eye)
        parts = []
        for batch in torch.split(torch.cat(self._kept, dim=1), COMPARED, dim=1):
            delta = (batch.double() - mean[:, None]).nan_to_num(nan=0)
            parts.append(torch.linalg.solve_triangular(factor, delta.transpose(1, 2), upper=False).float())
        white = torch.cat(parts, dim=2).transpose(1, 2)
        return white if self._known is None else white * self._known[:: self._steps[0], None, None]


def _unit(white: Tensor) -> NDArray[np.float32]:
    """Vectors (N, P * d) of unit length, whose products are correlations, of (P, N, d)."""
    vectors = torch.nn.functional.normalize(white.transpose(0, 1).flatten(1), dim=1)
    return np.asarray(vectors.cpu().numpy(), np.float32)


class Calibrator:
    """Scores good images by the model without them, which was fitted on `count` images.

    `moments` are those of all images that were learnt, for groups that are large; they are as they were afterwards.
    `take` gets batches of images that were not learnt, and what they show. `top_share` is the part of a map whose mean
    is its score.
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
        take: Callable[[Batch, Tensor | None], None],
        moments: Moments | None = None,
        refit_below: int = REFIT_BELOW,
        top_share: float = 0.0,
    ) -> None:
        self._backbone, self._factor, self._regularization, self._count = backbone, factor, regularization, count
        self._good, self._input_size, self._step, self._moments = good, input_size, step, moments
        self._kept, self._refit_below = kept, refit_below
        self._counts: int | Tensor = count  # images that show each position of the finest grid
        if seen is not None:
            self._counts = factor.hierarchy.to_finest(seen)
        self._take = take
        self._result = HeldOutScores(top_share=top_share)

    def held_out(self, groups: Sequence[Sequence[int]], advance: Callable[[int], None]) -> HeldOutScores:
        """Scores of images that were not learnt, given the indices of each group's."""
        numbers = {index: number for number, group in enumerate(groups) for index in group}

        def taken() -> Iterator[Batch]:
            for batch in self._embedded(sorted(numbers), self._step):
                self._take(batch, self._shown(batch))
                yield batch

        self._score(taken(), numbers, squared_distances, self._factor, advance)
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
            factor = replace(factorise(self._moments, regularization=self._regularization), known=self._still_known())
        finally:
            merge(self._moments, part)
        if not isinstance(embedded, list):
            embedded = self._embedded(group, self._step)
        self._score(embedded, numbers, squared_distances, factor, advance)

    def _still_known(self) -> Tensor | None:
        """Where the model inspects, as far as the images that are left can say something."""
        seen = None if self._moments is None else self._moments.seen
        if seen is None or self._factor.known is None:
            return self._factor.known
        return self._factor.known * (seen >= MIN_IMAGES - 1)

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
            roi = batch.images[0].placement.roi
            weighed: Iterable[Any] = [None] * len(batch.images)
            if shown is None or factor.known is None:
                maps = anomaly_maps(found, self._input_size, roi=roi).cpu().numpy()
            else:
                cells = factor.hierarchy.to_finest((shown * factor.known[:, None]).T)
                pixels = torch.from_numpy(batch.pixels[..., 3] == SHOWN).to(found.device)
                both = masked_maps(found, self._input_size, cells, pixels, roi=roi)
                maps, weighed = (part.cpu().numpy() for part in both)
            for index, image, anomaly_map, scoring in zip(batch.indices, batch.images, maps, weighed, strict=True):
                result.add_map(index, anomaly_map, image.placement, group=numbers[index], weighed=scoring)
            advance(len(batch.images))

    def _shown(self, batch: Batch) -> Tensor | None:
        return shown_cells(batch.pixels, self._factor.hierarchy, self._backbone.device)

    def _embedded(self, indices: Sequence[int], size: int) -> Iterator[Batch]:
        """Images of these indices in batches of up to `size`, with their embeddings."""
        for batch in self._good.again(indices, size):
            kept = self._kept.get(batch.indices, self._backbone.device)
            yield replace(batch, embedding=kept or embed(self._backbone, self._factor.hierarchy, batch.pixels))
