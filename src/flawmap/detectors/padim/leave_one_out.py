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
from flawmap.detectors.batches import Batch, KeptEmbeddings
from flawmap.detectors.calibration import HeldOutScores, find_groups, near_duplicates
from flawmap.detectors.good_images import GoodImages
from flawmap.detectors.padim.embedding import SHOWN, embed, shown_cells
from flawmap.detectors.padim.gaussian.blocks import (
    leave_each_out_of_blocks,
    leave_set_out_of_blocks,
    left_out_distances,
)
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
MOST_ROWS = 64
"""Embeddings of such a group that one covariance is of, at most, where blocks of positions share it."""
MOST_BYTES = 64 * 2**20
"""Memory from which on embeddings are compared at half as many positions, or by half as many channels."""
FEWEST_POSITIONS, FEWEST_CHANNELS = 8, 16
"""No fewer are compared; so many values of independent images have a correlation below 0.6 for certain."""
HIGH = 0.95
"""Quantile of scores; their spread is taken from the median up to it."""
COMPARED = 512
"""Images that are whitened at a time."""
Distances = Callable[[Factor, Sequence[Tensor], Tensor | None], Tensor]
"""Squared distances (B, h, w) of a batch of embeddings, and of what its images show."""


def is_large(n_members: int, count: int, refit_below: int = REFIT_BELOW, *, n_together: int = 1) -> bool:
    """Whether a group of so many images is left out by a refit, for which all moments must be kept.

    `n_together` positions share a covariance.
    """
    if n_members == 1:
        return count < refit_below
    return n_members > min(LARGEST_BLOCK, LARGEST_SHARE * count, MOST_ROWS // n_together)


class Likeness:
    """Embeddings of all good images at a few positions, by which those that belong together are found.

    Whitened by the model, the embeddings of independent images are nearly uncorrelated, however alike the parts look;
    copies, frames of a burst and mild augmentations of one photo keep a correlation. Memory is bounded: for many images
    there are fewer positions, later fewer channels, and from some 130,000 on no more are taken.

    Args:
        positions: of the finest grid.
        n_together: of these in turn that share a covariance.

    Attributes:
        indices: of the images in the training order.
    """

    def __init__(self, positions: Sequence[int], n_together: int = 1) -> None:
        self.indices: list[int] = []
        self._positions, self._n_together = list(positions), n_together
        self._steps = (1, 1)  # every so many of the positions and channels are compared
        self._kept: list[Tensor] = []
        self._gaussians: tuple[Tensor, Tensor, Tensor, int | Tensor] | None = None
        self._known: Tensor | None = None
        self._strongest = PAPER

    def take(self, batch: Tensor, indices: Sequence[int]) -> None:
        """Take note of embeddings (P, B, d) at the positions, NaN where an image does not show one."""
        some = self._some_of(batch)
        while (len(self.indices) + len(indices)) * some[:, 0].nbytes > MOST_BYTES:
            if len(some) >= 2 * max(FEWEST_POSITIONS, self._n_together):
                steps = (2, 1)
            elif some.shape[2] >= 2 * FEWEST_CHANNELS:
                steps = (1, 2)
            else:
                return
            self._steps = (self._steps[0] * steps[0], self._steps[1] * steps[1])
            self._kept = [self._every(kept, steps[0])[..., :: steps[1]].clone() for kept in self._kept]
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
        if self._n_together == 1:
            by_position = count[:, None] if isinstance(count, Tensor) else count
            squared = leave_one_out(white.double().square().sum(dim=2), by_position, sharing=sharing)
            without = leave_set_out
        else:
            white = white.view(-1, self._n_together, *white.shape[1:])
            count = count.view(-1, self._n_together) if isinstance(count, Tensor) else count
            squared = leave_each_out_of_blocks(white.double(), count, sharing=sharing).flatten(0, 1)
            without = leave_set_out_of_blocks
        scores = squared.amax(dim=0).sqrt()
        alone, most = scores.clone(), len(scores) - (MIN_IMAGES - 1)
        groups = [group for group in groups if len(group) <= most]
        for group in groups:
            squared = without(white[..., group, :].double(), count, sharing=sharing)
            alone[group] = squared.flatten(0, -2).amax(dim=0).clamp(min=0).sqrt()
        usual, high = np.quantile(torch.stack([scores, alone]).cpu().numpy(), (0.5, HIGH), axis=1)
        least = float((high - usual).min())
        return [group for group in groups if float((alone - scores)[group].mean()) > least]

    def _some_of(self, batch: Tensor) -> Tensor:
        return self._every(batch, self._steps[0])[..., :: self._steps[1]]

    def _every(self, values: Tensor, step: int) -> Tensor:
        """Values (P, ...) at every so many positions, or blocks of them."""
        return values.view(-1, self._n_together, *values.shape[1:])[::step].flatten(0, 1)

    def _sliced(self) -> tuple[Tensor, Tensor, Tensor, int | Tensor]:
        """Means (P, d), covariances (P, d, d) and the shared one (d, d) of what is compared, of so many images."""
        if self._gaussians is None:
            raise ValueError("learn has not been called")
        mean, own, shared, count = self._gaussians
        step, c = self._steps[0], slice(None, None, self._steps[1])
        mean, own = self._every(mean, step)[:, c], self._every(own, step)[:, c, c]
        return mean, own, shared[c, c], self._every(count, step) if isinstance(count, Tensor) else count

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
        return white if self._known is None else white * self._every(self._known, self._steps[0])[:, None, None]


def _unit(white: Tensor) -> NDArray[np.float32]:
    """Vectors (N, P * d) of unit length, whose products are correlations, of (P, N, d)."""
    vectors = torch.nn.functional.normalize(white.transpose(0, 1).flatten(1), dim=1)
    return np.asarray(vectors.cpu().numpy(), np.float32)


def _plain_distances(factor: Factor, columns: Sequence[Tensor], _: Tensor | None) -> Tensor:
    return squared_distances(factor, columns)


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
        self._seen, self._counts = seen, count if seen is None else factor.hierarchy.to_finest(seen)
        self._take = take
        self._result = HeldOutScores(top_share=top_share)

    def held_out(self, groups: Sequence[Sequence[int]], advance: Callable[[int], None]) -> HeldOutScores:
        """Scores of images that were not learnt, given the indices of each group's."""
        numbers = {index: number for number, group in enumerate(groups) for index in group}

        def taken() -> Iterator[Batch]:
            for batch in self._embedded(sorted(numbers), self._step):
                self._take(batch, self._shown(batch))
                yield batch

        self._score(taken(), numbers, _plain_distances, self._factor, advance)
        return self._result

    def left_out(self, groups: Sequence[Sequence[int]], advance: Callable[[int], None]) -> HeldOutScores:
        """Scores of images that were learnt, each without its group, given the indices of each group's.

        A group of so many images that fewer than two remain without it has no score.
        """
        numbers = {index: number for number, group in enumerate(groups) for index in group}
        one_out: Distances = self._one_out
        group_out: Distances = self._group_out
        if self._factor.hierarchy.blocks is not None:
            one_out, group_out = self._one_out_of_blocks, self._group_out_of_blocks
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

    def _one_out(self, factor: Factor, columns: Sequence[Tensor], _: Tensor | None) -> Tensor:
        sharing = self._regularization.sharing
        return leave_one_out(squared_distances(factor, columns), self._counts, sharing=sharing)

    def _group_out(self, factor: Factor, columns: Sequence[Tensor], shown: Tensor | None) -> Tensor:
        counts, sharing = self._counts, self._regularization.sharing
        counts = counts.flatten() if isinstance(counts, Tensor) else counts
        shown = None if shown is None else factor.hierarchy.to_finest(shown.T).flatten(1).T
        squared = leave_group_out(inner_products(factor, columns), counts, sharing=sharing, shown=shown)
        return squared.T.reshape(-1, *factor.hierarchy.grid)

    def _one_out_of_blocks(self, factor: Factor, columns: Sequence[Tensor], shown: Tensor | None) -> Tensor:
        return self._out_of_blocks(factor, columns, shown, 1)

    def _group_out_of_blocks(self, factor: Factor, columns: Sequence[Tensor], shown: Tensor | None) -> Tensor:
        return self._out_of_blocks(factor, columns, shown, columns[0].shape[1])

    def _out_of_blocks(
        self, factor: Factor, columns: Sequence[Tensor], shown: Tensor | None, n_together: int
    ) -> Tensor:
        squared = left_out_distances(
            factor,
            columns,
            self._count if self._seen is None else self._seen,
            n_together=n_together,
            shown=shown,
            sharing=self._regularization.sharing,
        )
        return squared.T.reshape(-1, *factor.hierarchy.grid)

    def _is_large(self, group: Sequence[int]) -> bool:
        blocks = self._factor.hierarchy.blocks
        n_together = 1 if blocks is None else blocks.n_members
        return is_large(len(group), self._count, self._refit_below, n_together=n_together)

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
        self._score(embedded, numbers, _plain_distances, factor, advance)

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
        distances: Distances,
        factor: Factor,
        advance: Callable[[int], None],
    ) -> None:
        """Add the scores of some images, by squared distances (B, h, w) of a batch and of what it shows."""
        result = self._result
        for batch in embedded:
            shown = self._shown(batch)
            found = distances(factor, batch.embedding, shown).sqrt_()
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
