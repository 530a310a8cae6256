"""How SPADE learns and searches: features into a gallery, and from the nearest images to patch distances."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flawmap.backbones import Backbone
from flawmap.detectors.anomaly_map import anomaly_maps
from flawmap.detectors.batches import Batch, make_batch
from flawmap.detectors.calibration import HeldOutScores, all_scores
from flawmap.detectors.feature_detector import feature_maps
from flawmap.detectors.neighbours import PatchSearch, Pyramid, build_pyramid, greedy_coreset, nearest_images
from flawmap.detectors.spade.gallery import Gallery
from flawmap.images import Loaded
from flawmap.prediction import Size

Variant = Literal["paper", "port"]

QUERY_IMAGES = 4
"""Images that are compared at a time: they read a neighbour that they share once."""
POOLED_BLOCK = 256
"""Training images that look for their own nearest images at a time."""


@dataclass(frozen=True, eq=False)
class Layout:
    """How an image's features become a row of the gallery, and what is compared.

    Attributes:
        pyramids: one of all layers ("paper"), or one of each ("port").
        n_cells: coarsest cells of each that are kept.
        image_layer: which of the backbone's layers is pooled for the image stage.
        squared: whether distances are squared, as in the paper's equations.
    """

    pyramids: tuple[Pyramid, ...]
    n_cells: tuple[int, ...]
    image_layer: int
    squared: bool

    @classmethod
    def of(
        cls,
        shapes: Sequence[tuple[int, Size]],
        n_layers: int,
        image_layer: int,
        *,
        variant: Variant,
        coreset: float | None,
    ) -> Layout:
        """The layout for layers of these channels and grids, the first `n_layers` of which are compared."""
        grids, n_channels = [grid for _, grid in shapes], [n for n, _ in shapes]
        groups = [range(n_layers)] if variant == "paper" else [[layer] for layer in range(n_layers)]
        pyramids = tuple(build_pyramid(grids, n_channels, group) for group in groups)
        cells = tuple(max(1, round((coreset or 1) * pyramid.n_cells)) for pyramid in pyramids)
        return cls(pyramids, cells, image_layer, squared=variant == "paper")

    @property
    def n_values(self) -> int:
        """Numbers that the gallery keeps of an image."""
        return sum(math.prod(shape) for shapes in self._shapes() for shape in shapes)

    def row(self, features: Sequence[Tensor]) -> Tensor:
        """An image's row (n_values,) of the gallery from its maps (1, C, h, w)."""
        parts: list[Tensor] = []
        for pyramid, n_cells in zip(self.pyramids, self.n_cells, strict=True):
            levels = [level[0] for level in pyramid.arrange(features)]
            if n_cells < pyramid.n_cells:
                points = torch.cat(
                    [level.view(-1, pyramid.n_cells, level.shape[1]).transpose(0, 1).flatten(1) for level in levels], 1
                )
                levels = pyramid.keep(levels, greedy_coreset(points, n_cells))
            parts += [level.flatten() for level in levels]
        return torch.cat(parts)

    def split(self, row: Tensor) -> list[list[Tensor]]:
        """A row of the gallery as patches (patches, C) of each level of each pyramid."""
        shapes = self._shapes()
        sizes = [math.prod(shape) for group in shapes for shape in group]
        parts = iter(row.split_with_sizes(sizes))
        return [[next(parts).view(shape) for shape in group] for group in shapes]

    def pooled(self, features: Sequence[Tensor]) -> Tensor:
        """What the image stage compares: (B, C)."""
        return features[self.image_layer].mean(dim=(2, 3))

    def _shapes(self) -> list[list[tuple[int, int]]]:
        return [pyramid.shapes(n) for pyramid, n in zip(self.pyramids, self.n_cells, strict=True)]


@dataclass(frozen=True, eq=False)
class Known:
    """What SPADE has learnt: pooled features (N, C), and the gallery of patches, a row per image."""

    pooled: Tensor
    gallery: Gallery


@dataclass
class Sample:
    """A uniform draw of so many images from a stream of unknown length (Vitter 1985, algorithm R)."""

    size: int
    seed: int
    kept: list[tuple[int, Loaded]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    def offer(self, index: int, image: Loaded) -> None:
        """Keep an image, or do not."""
        if len(self.kept) < self.size:
            self.kept.append((index, image))
        elif (slot := int(self._rng.integers(index + 1))) < self.size:
            self.kept[slot] = (index, image)


def learn(backbone: Backbone, layout: Layout, batches: Iterable[Batch], *, cache_mb: float, sample: Sample) -> Known:
    """Features of all images; `sample` draws those that set the pixel threshold."""
    gallery = Gallery(layout.n_values, cache_mb=cache_mb)
    pooled: list[Tensor] = []
    for batch in batches:
        features = feature_maps(backbone, batch)
        pooled.append(layout.pooled(features))
        for i, image in enumerate(batch.images):
            sample.offer(len(gallery), image)
            gallery.append(layout.row([maps[i : i + 1] for maps in features]))
    return Known(torch.cat(pooled) if pooled else torch.empty(0, 0), gallery)


def calibrate(
    backbone: Backbone,
    layout: Layout,
    known: Known,
    sample: Sample,
    input_size: Size,
    *,
    n_neighbors: int,
    advance: Callable[[int], None],
) -> HeldOutScores:
    """Leave-one-out scores of all images, and how often the values of the sampled images' maps occur."""
    n_images = len(known.pooled)
    k = min(n_neighbors, n_images - 1)
    scores = []
    for own in torch.split(torch.arange(n_images, device=known.pooled.device), POOLED_BLOCK):
        squared = nearest_images(known.pooled, known.pooled[own], k, own=own)[1]
        scores.append(_score(squared, layout))
    result = all_scores(torch.cat(scores).cpu().numpy())
    for start in range(0, len(sample.kept), QUERY_IMAGES):
        indices, images = zip(*sample.kept[start : start + QUERY_IMAGES], strict=True)
        batch = make_batch(images)
        _, distances = patch_distances(backbone, layout, known, batch.pixels, n_neighbors=k, own=torch.tensor(indices))
        for image, anomaly_map in zip(images, mean_maps(distances, input_size), strict=True):
            result.count(anomaly_map, image.placement)
        advance(len(images))
    return result


def patch_distances(
    backbone: Backbone,
    layout: Layout,
    known: Known,
    pixels: NDArray[np.uint8],
    *,
    n_neighbors: int,
    own: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Image scores (B,) and, per pyramid, patch distances (B, h, w) of images; `own` (B,) leaves a known image out."""
    features = backbone.features(pixels)
    nearest, squared = nearest_images(
        known.pooled, layout.pooled(features), n_neighbors, own=None if own is None else own.to(backbone.device)
    )
    searches = []
    for i in range(len(pixels)):
        levels = [pyramid.arrange([maps[i : i + 1] for maps in features]) for pyramid in layout.pyramids]
        searches.append(
            [
                PatchSearch([level[0] for level in group], pyramid.n_cells)
                for pyramid, group in zip(layout.pyramids, levels, strict=True)
            ]
        )
    wanted = [set(row) for row in nearest.tolist()]
    for index in sorted(set().union(*wanted)):  # in one order, whatever the batch: ties fall the same way
        gallery = layout.split(known.gallery.row(index).to(backbone.device))
        for search, images in zip(searches, wanted, strict=True):
            if index in images:
                for part, patches in zip(search, gallery, strict=True):
                    part.offer(patches)
    maps = []
    for number, pyramid in enumerate(layout.pyramids):
        distances = torch.stack([pyramid.to_grid(search[number].squared()) for search in searches])
        maps.append(distances if layout.squared else distances.sqrt_())
    return _score(squared, layout), maps


def mean_maps(distances: Sequence[Tensor], input_size: Size) -> NDArray[np.float32]:
    """Anomaly maps (B, H, W): the mean over the pyramids' patch distances (B, h, w)."""
    maps = [anomaly_maps(part, input_size) for part in distances]
    mean: NDArray[np.float32] = torch.stack(maps).mean(dim=0).cpu().numpy()
    return mean


def _score(squared: Tensor, layout: Layout) -> Tensor:
    """Image scores (B,) from squared distances (B, K) to the nearest images."""
    return (squared if layout.squared else squared.sqrt()).mean(dim=1)


def typical_distance(layout: Layout, known: Known, *, n_neighbors: int) -> float:
    """Median patch distance of the first good image to its nearest others, the mean over the pyramids."""
    device = known.pooled.device
    first = torch.zeros(1, dtype=torch.int64, device=device)
    k = min(n_neighbors, len(known.pooled) - 1)
    nearest = nearest_images(known.pooled, known.pooled[:1], k, own=first)[0]
    searches = [
        PatchSearch(levels, n_cells)
        for levels, n_cells in zip(layout.split(known.gallery.row(0).to(device)), layout.n_cells, strict=True)
    ]
    for index in sorted(nearest[0].tolist()):
        for search, levels in zip(searches, layout.split(known.gallery.row(index).to(device)), strict=True):
            search.offer(levels)
    squared = [search.squared() for search in searches]
    medians = [float((part if layout.squared else part.sqrt()).median()) for part in squared]
    return sum(medians) / len(medians)
