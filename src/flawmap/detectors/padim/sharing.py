"""How much of their covariance patches share, chosen by defects that are pasted onto good images.

The likelihood asks what describes good images best, and shares little. What finds defects best is another question:
with many images each patch learns every way in which good parts vary, and is blind to defects that look like it. So
defects are pasted onto some good images. Each image, and two copies of it with a defect each, are scored by the
Gaussians without the image, exactly (`leave_one_out_with_copies`), in a quarter of the positions, in blocks. The area
under the ROC curve of copies against images says how well a sharing tells them apart. Images of one group would vouch
for each other: only one of each counts, also in these Gaussians.

The likelihood's sharing gives way to the one of the greatest area among those that are better beyond doubt: by more
than twice the standard error of the difference (DeLong, DeLong and Clarke-Pearson 1988). `docs/regularisation.md` has
the study.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flawmap.backbones import Backbone
from flawmap.decision import map_score
from flawmap.detectors.anomaly_map import anomaly_maps, cells_of
from flawmap.detectors.batches import Batch, KeptEmbeddings
from flawmap.detectors.good_images import GoodImages
from flawmap.detectors.padim.embedding import SHOWN, Hierarchy, embed, shown_cells
from flawmap.detectors.padim.gaussian.blocks import left_out_distances, spread_over_members
from flawmap.detectors.padim.gaussian.factor import Factor, factorise, inner_products
from flawmap.detectors.padim.gaussian.leave_one_out import leave_one_out_with_copies
from flawmap.detectors.padim.gaussian.moments import Moments, Regularization, shared_covariance, subtract, update
from flawmap.detectors.padim.part import Part
from flawmap.images.pasted import paste_defect
from flawmap.prediction import Placement, Size

SHARINGS = (0.0, 0.3, 0.5, 0.8)
"""Candidates beside the likelihood's."""
MOST_IMAGES = 96
"""Good images, at most, onto which defects are pasted."""
FEWEST_IMAGES = 20
"""Fewer do not tell one sharing from another."""
N_BLOCKS = 8
"""The image is divided into so many blocks a side, of which every second one in every second row counts."""
MOST_BYTES = 128 * 2**20
"""Memory of embeddings, unless that of 20 images takes more."""
DOUBT = 2.0
"""Standard errors by which another sharing must be better."""
N_COPIES = 2
"""Of each image, with one defect each."""
STEP = 8
"""Images that are embedded, and scored, at a time."""
CHANNELS = 3
"""Of an image that is not aligned; a fourth says what an aligned one shows."""


def choose_sharing(
    moments: Moments,
    likely: Regularization,
    good: GoodImages,
    backbone: Backbone,
    input_size: Size,
    *,
    kept: KeptEmbeddings,
    top_share: float,
    seed: int,
) -> Regularization:
    """The likelihood's choice, or the same ridge with the sharing that finds pasted defects better beyond doubt.

    Of at least 20 groups an image must be there to be read again, or else it is the likelihood's. `kept` holds
    embeddings that are known; `top_share` is the part of a map whose mean is its score.
    """
    trial = _Trial(moments, input_size, top_share)
    indices, single = _one_of_each(good)
    if len(indices) < FEWEST_IMAGES or not trial.learn_only(single, good, backbone, kept):
        return likely
    most = min(len(indices), MOST_IMAGES, max(FEWEST_IMAGES, MOST_BYTES // trial.bytes_per_image))
    chosen = [indices[i] for i in np.linspace(0, len(indices) - 1, most).round().astype(int)]
    trial.embed(good, chosen, backbone, kept, seed)
    usual = _told_apart(*trial.scores(likely))
    best, highest = likely, 0.0
    for sharing in SHARINGS:
        gain = _told_apart(*trial.scores(replace(likely, sharing=sharing))) - usual
        if gain.mean() > max(highest, DOUBT * gain.std(ddof=1) / math.sqrt(len(gain))):
            best, highest = replace(likely, sharing=sharing), float(gain.mean())
    return best


def _one_of_each(good: GoodImages) -> tuple[list[int], list[int]]:
    """Indices, ascending, of one image of each group, of one that can be read again if there is one; those that can."""
    readable, groups = good.readable, good.grouping.groups
    one = {groups[index]: index for index in [*reversed(good.learnt), *reversed(readable)]}
    again = set(readable)
    return sorted(again.intersection(one.values())), sorted(one.values())


def _told_apart(images: NDArray[np.float64], copies: NDArray[np.float64]) -> NDArray[np.float64]:
    """What each image adds (N,) to the area under the ROC curve of copies (N, 2) against images (N,), their mean."""
    higher = np.sign(copies[..., None] - images) / 2 + 0.5  # (N, 2, N)
    told: NDArray[np.float64] = higher.mean(axis=(1, 2)) + higher.mean(axis=(0, 1)) - higher.mean()
    return told


class _Trial:
    """Images and their copies with defects, to be scored by different Gaussians."""

    def __init__(self, moments: Moments, input_size: Size, top_share: float) -> None:
        whole = moments.hierarchy
        self._blocks = _blocks(whole)
        self._part = Part.of(whole, torch.from_numpy(self._blocks.ravel()).to(moments.mean[0].device))
        self._moments, self._shared = self._part.moments(moments), shared_covariance(moments)
        self._grid, self._size = whole.grid, input_size
        inspected = self._part.positions if whole.inspected is None else whole.inspected[self._part.positions].nonzero()
        self._share = top_share * len(inspected) / (whole.grid[0] * whole.grid[1])
        self._whole = whole
        self._embedded: list[tuple[list[Tensor], Tensor | None, list[Placement]]] = []

    @property
    def bytes_per_image(self) -> int:
        """Memory that the embeddings of an image and its copies take."""
        levels = zip(self._part.own, self._whole.levels, strict=True)
        return max(1, (1 + N_COPIES) * 4 * sum(len(own) * level.n_channels for own, level in levels))

    def learn_only(self, indices: Sequence[int], good: GoodImages, backbone: Backbone, kept: KeptEmbeddings) -> bool:
        """Let the Gaussians be those of some of the images that were learnt; whether the images can be read for that.

        Either these are learnt or the others forgotten, whichever are fewer.
        """
        others = sorted(set(good.learnt).difference(indices))
        sides = [side for side in (others, indices) if set(good.readable).issuperset(side)]
        if not sides:
            return False
        fewer, some = min(sides, key=len), self._moments.emptied()
        for batch in good.again(fewer, STEP):
            update(some, *self._embed_part(batch, backbone, kept))
        if fewer is others:
            subtract(self._moments, some)
        else:
            self._moments = some
        return True

    def embed(
        self, good: GoodImages, indices: Sequence[int], backbone: Backbone, kept: KeptEmbeddings, seed: int
    ) -> None:
        """Embed good images of these indices, and copies of each with a defect."""
        rng = np.random.default_rng(seed)
        for batch in good.again(indices, STEP):
            placements = [image.placement for image in batch.images]
            copies = [
                paste_defect(pixels, self._allowed(pixels, placement), rng)
                for _ in range(N_COPIES)
                for pixels, placement in zip(batch.pixels, placements, strict=True)
            ]
            images, seen = self._embed_part(batch, backbone, kept)
            changed = embed(backbone, self._whole, np.stack(copies))
            columns = [
                torch.cat([one, other[own]], dim=1)
                for one, other, own in zip(images, changed, self._part.own, strict=True)
            ]
            self._embedded.append((columns, seen, placements))

    def _embed_part(self, batch: Batch, backbone: Backbone, kept: KeptEmbeddings) -> tuple[list[Tensor], Tensor | None]:
        """Embeddings of images in the part, per level (cells, B, d), and which coarsest cells (cells, B) they show."""
        columns = kept.get(batch.indices, backbone.device) or embed(backbone, self._whole, batch.pixels)
        seen = shown_cells(batch.pixels, self._whole, backbone.device)
        of_part = [column[own] for column, own in zip(columns, self._part.own, strict=True)]
        return of_part, None if seen is None else seen[self._part.own[0]]

    def scores(self, regularization: Regularization) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Scores of the images (N,) and of their copies (N, 2), by the Gaussians without the image."""
        factor = factorise(self._moments, regularization=regularization, shared=self._shared)
        found: list[list[float]] = [[] for _ in range(1 + N_COPIES)]
        for columns, seen, placements in self._embedded:
            squared = self._squared(factor, columns, seen, regularization.sharing)
            for scores, part in zip(found, squared, strict=True):
                maps = part.new_zeros(len(part), self._grid[0] * self._grid[1])
                maps[:, self._part.positions] = part.sqrt()
                smooth = anomaly_maps(maps.view(-1, *self._grid), self._size, roi=placements[0].roi).cpu().numpy()
                for anomaly_map, placement in zip(smooth, placements, strict=True):
                    top, left, bottom, right = placement.content
                    scores.append(map_score(anomaly_map[top:bottom, left:right], self._share))
        return np.array(found[0]), np.array(found[1:]).T

    def _squared(self, factor: Factor, columns: Sequence[Tensor], seen: Tensor | None, sharing: float) -> list[Tensor]:
        """Squared distances (1 + copies) x (B, positions) of a batch of images, and of their copies."""
        without = self._without if factor.hierarchy.blocks is None else self._without_of_blocks
        squared = without(factor, columns, seen, sharing).float()  # (positions, B, 1 + copies)
        if seen is not None and factor.known is not None:
            squared = squared * self._spread(seen * factor.known[:, None])[..., None]
        return list(squared.permute(2, 1, 0))

    def _without(self, factor: Factor, columns: Sequence[Tensor], _: Tensor | None, sharing: float) -> Tensor:
        n_images = columns[0].shape[1] // (1 + N_COPIES)
        products = inner_products(factor, columns).view(-1, 1 + N_COPIES, n_images, 1 + N_COPIES, n_images)
        products = products.diagonal(dim1=2, dim2=4).movedim(3, 1)  # (positions, B, 1 + copies, 1 + copies)
        count: int | Tensor = self._moments.count
        if self._moments.seen is not None:
            count = self._spread(self._moments.seen)[:, None]
        return leave_one_out_with_copies(products, count, sharing=sharing)

    def _without_of_blocks(
        self, factor: Factor, columns: Sequence[Tensor], seen: Tensor | None, sharing: float
    ) -> Tensor:
        n_together = 1 + N_COPIES
        squared = left_out_distances(
            factor,
            columns,
            self._moments.count if self._moments.seen is None else self._moments.seen,
            n_together=n_together,
            n_left_out=1,
            shown=None if seen is None else seen.repeat(1, n_together),
            sharing=sharing,
        )
        return squared.view(len(squared), n_together, -1).transpose(1, 2)

    def _spread(self, per_cell: Tensor) -> Tensor:
        """Values (cells, ...) of the coarsest level at each of the positions."""
        hierarchy = self._part.hierarchy
        if hierarchy.blocks is not None:
            return hierarchy.blocks.unfold(spread_over_members(hierarchy, per_cell))
        return hierarchy.to_positions(per_cell[hierarchy.coarsest_of_cells[-1]])

    def _allowed(self, pixels: NDArray[np.uint8], placement: Placement) -> NDArray[np.bool_]:
        """Pixels (H, W) of an image on which a defect may lie: in the blocks, shown, and inspected."""
        height, width = pixels.shape[:2]
        rows = np.arange(height) * len(self._blocks) // height
        columns = np.arange(width) * self._blocks.shape[1] // width
        top, left, bottom, right = placement.content
        allowed: NDArray[np.bool_] = np.zeros((height, width), bool)
        allowed[top:bottom, left:right] = self._blocks[rows[top:bottom, None], columns[left:right]]
        if pixels.shape[2] > CHANNELS:
            allowed &= pixels[..., CHANNELS] == SHOWN
        if placement.roi is not None:
            allowed &= placement.roi
        return allowed


def _blocks(hierarchy: Hierarchy) -> NDArray[np.bool_]:
    """Cells (h, w) of the coarsest level that count: every second block of every second row of blocks.

    Of a region of interest all of its cells, if few of them lie in those blocks.
    """
    side = 1 if hierarchy.blocks is None else math.isqrt(hierarchy.blocks.n_members)
    grid = hierarchy.covariances.coarsest_grid
    rows, columns = (np.arange(n) // math.ceil(n / N_BLOCKS) % 2 == 0 for n in grid)
    chosen: NDArray[np.bool_] = np.logical_and.outer(rows, columns)
    if hierarchy.inspected is not None:
        inspected = cells_of(hierarchy.inspected.cpu().numpy().reshape(hierarchy.grid), grid)
        in_blocks = chosen & inspected
        chosen = in_blocks if 8 * in_blocks.sum() >= inspected.sum() else inspected
    return chosen.repeat(side, axis=0).repeat(side, axis=1)
