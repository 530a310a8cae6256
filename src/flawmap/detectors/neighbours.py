"""Nearest neighbours of images and of patches: exact, by matrix products, without an index.

|a - b|^2 = |a|^2 + |b|^2 - 2 a.b finds the neighbour, and the difference a - b measures it. Rounding to float32 may
thus name a neighbour that is farther than the nearest by a millionth of |a|^2, less than what a camera's noise does;
its distance is right. Embeddings of several layers (Cohen & Hoshen 2020, section 3.3) are never concatenated: where the
grids divide each other, the squared distance of two fine patches is that of their own channels plus that of the coarser
cells they lie in, which is found once for all their children. For the three layers of a Wide ResNet-50-2 this takes a
sixth of the products, and less time than an exact index over the concatenation (faiss's IndexFlatL2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flawmap.prediction import Size

BLOCK_VALUES = 16 * 2**20
"""Products computed at a time, or for each image, 64 MB."""


@dataclass(frozen=True, eq=False)
class PyramidLevel:
    """One grid of a pyramid.

    Attributes:
        layers: layers that it holds, those of coarser grids repeated onto it.
        grid: (height, width).
        n_channels: channels of these layers together.
        order: (positions,) row-major position of each patch; patches stand by child number, then by parent, so that the
            parent of patch i is patch i % parents.
    """

    layers: tuple[int, ...]
    grid: Size
    n_channels: int
    order: Tensor


@dataclass(frozen=True, eq=False)
class Pyramid:
    """Some layers' feature maps as one embedding per patch: levels coarse to fine, each grid dividing the next."""

    levels: tuple[PyramidLevel, ...]

    @property
    def grid(self) -> Size:
        """The finest grid."""
        return self.levels[-1].grid

    @property
    def n_cells(self) -> int:
        """Cells of the coarsest grid."""
        return len(self.levels[0].order)

    def arrange(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Patches (B, positions, C) of each level from the layers' maps (B, C, h, w)."""
        arranged = []
        for level in self.levels:
            maps = torch.cat([_repeat(features[layer], level.grid) for layer in level.layers], dim=1)
            arranged.append(maps.flatten(2)[:, :, level.order.to(maps.device)].transpose(1, 2).contiguous())
        return arranged

    def shapes(self, n_cells: int) -> list[tuple[int, int]]:
        """Shape (patches, C) of each level of which so many coarsest cells are kept."""
        return [(len(level.order) // self.n_cells * n_cells, level.n_channels) for level in self.levels]

    def keep(self, levels: Sequence[Tensor], cells: Tensor) -> list[Tensor]:
        """Of patches (positions, C) per level, those that lie in some coarsest cells."""
        return [level.view(-1, self.n_cells, level.shape[1])[:, cells].flatten(0, 1) for level in levels]

    def to_grid(self, values: Tensor) -> Tensor:
        """Values (positions,) of the finest patches as a map (h, w)."""
        spread = torch.empty_like(values)
        spread[self.levels[-1].order.to(values.device)] = values
        return spread.view(self.grid)


def build_pyramid(grids: Sequence[Size], n_channels: Sequence[int], layers: Sequence[int]) -> Pyramid:
    """Pyramid of some of the layers. A grid that does not divide the next finer one is repeated onto it (nearest)."""
    groups: list[list[int]] = []
    for layer in sorted(layers, key=lambda layer: -grids[layer][0] * grids[layer][1]):
        finer = grids[groups[-1][0]] if groups else None
        if finer is None or (
            finer != grids[layer] and not any(f % c for f, c in zip(finer, grids[layer], strict=True))
        ):
            groups.append([layer])
        else:
            groups[-1].append(layer)
    levels: list[PyramidLevel] = []
    for group in reversed(groups):
        grid = grids[group[0]]
        order = torch.arange(grid[0] * grid[1])
        if levels:
            (rows, columns), parents = levels[-1].grid, levels[-1].order
            split = order.view(rows, grid[0] // rows, columns, grid[1] // columns).permute(1, 3, 0, 2)
            order = split.reshape(-1, len(parents))[:, parents].flatten()
        levels.append(PyramidLevel(tuple(group), grid, sum(n_channels[layer] for layer in group), order))
    return Pyramid(tuple(levels))


def nearest_images(gallery: Tensor, queries: Tensor, k: int, *, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The `k` nearest rows of a gallery (N, d) to each query (B, d): their places and squared distances (B, k).

    `own` (B,) names a row for each query that does not count, for queries that are themselves of the gallery.
    """
    wide = gallery.double()  # in float32 the products would confuse neighbours that are nearly as far
    products = torch.addmm(wide.square().sum(1), queries.double(), wide.T, alpha=-2)
    if own is not None:
        products[torch.arange(len(queries), device=products.device), own] = torch.inf
    places = products.topk(k, dim=1, largest=False).indices
    squared = torch.stack([(gallery[row] - query).square().sum(1) for row, query in zip(places, queries, strict=True)])
    return places, squared


def nearest_distances(queries: Tensor, gallery: Tensor) -> Tensor:
    """Distances (B, P) of each image's patches (B, P, d) to the nearest of a gallery (G, d).

    In operations that graph formats have, whatever the number of images.
    """
    mean = gallery.mean(dim=0)
    n_known = max(1, BLOCK_VALUES // queries.shape[1])
    shape = queries.shape[:2]
    gallery, queries = gallery - mean, (queries - mean).flatten(0, 1)  # products around zero lose less to rounding
    nearest, least = queries, torch.full_like(queries[:, :1], torch.inf)
    for start in range(0, len(gallery), n_known):  # a graph holds each part once, however many queries there are
        known = gallery[start : start + n_known]
        products = _products(queries, known, known.square().sum(dim=1))
        places = products.argmin(dim=1)
        values = products.gather(1, places[:, None])
        nearest = torch.where(values < least, known.index_select(0, places), nearest)
        least = torch.minimum(values, least)
    return (queries - nearest).square().sum(dim=1).sqrt().view(shape)


class PatchSearch:
    """The nearest of all gallery patches to each patch of one image, over galleries offered one after the other.

    Args:
        query: patches (positions, C) of each level of a pyramid.
        n_cells: cells of its coarsest grid.
    """

    def __init__(self, query: Sequence[Tensor], n_cells: int) -> None:
        # distances do not change, but the products of patches around zero lose less to rounding
        self._means = [level.mean(0) for level in query]
        by_cell = [
            (level - mean).view(-1, n_cells, level.shape[1]) for level, mean in zip(query, self._means, strict=True)
        ]
        step = max(1, BLOCK_VALUES // len(query[-1]) // by_cell[-1].shape[0])
        self._blocks = [
            [level[:, start : start + step].flatten(0, 1) for level in by_cell] for start in range(0, n_cells, step)
        ]
        self._children = by_cell[-1].shape[0]
        self._nearest = [torch.full_like(block[-1][:, 0], torch.inf) for block in self._blocks]
        self._squared = [torch.full_like(nearest, torch.inf) for nearest in self._nearest]

    def offer(self, gallery: Sequence[Tensor]) -> None:
        """Look among more patches, (patches, C) per level."""
        gallery = [level - mean for level, mean in zip(gallery, self._means, strict=True)]
        norms = [level.square().sum(1) for level in gallery]
        for block, nearest, squared in zip(self._blocks, self._nearest, self._squared, strict=True):
            values, parents = _search(block, gallery, norms)
            better = (values < nearest).nonzero()[:, 0]
            nearest[better] = values[better]
            squared[better] = _measure(block, gallery, better, parents[better])

    def squared(self) -> Tensor:
        """Squared distance (positions,) of each finest patch to the nearest one offered."""
        return torch.cat([block.view(self._children, -1) for block in self._squared], dim=1).flatten()


def _search(block: Sequence[Tensor], gallery: Sequence[Tensor], norms: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """For each finest patch the least |b|^2 - 2 a.b, and the parent (or itself, without levels above) of that patch."""
    sums = _products(block[0], gallery[0], norms[0])
    for level in range(1, len(block)):
        products = _products(block[level], gallery[level], norms[level])
        family = products.view(-1, sums.shape[0], products.shape[1] // sums.shape[1], sums.shape[1])
        if level == len(block) - 1:  # the least of the siblings first: what lies above them is the same
            sums = family.amin(2).add_(sums).flatten(0, 1)
        else:
            family += sums[:, None]
            sums = products
    least = sums.min(1)
    return least.values, least.indices


def _products(queries: Tensor, known: Tensor, norms: Tensor) -> Tensor:
    """|b|^2 - 2 a.b (Q, G) of vectors a (Q, d) and b (G, d), of which `norms` holds |b|^2: least for the nearest b."""
    return torch.addmm(norms, queries, known.T, alpha=-2)


def _measure(block: Sequence[Tensor], gallery: Sequence[Tensor], patches: Tensor, parents: Tensor) -> Tensor:
    """Squared distance of some finest patches to the nearest child of a gallery parent each, by differences."""
    n_parents = len(gallery[-2]) if len(gallery) > 1 else len(gallery[-1])
    total = torch.zeros(len(patches), device=patches.device)
    for own, others in zip(block[:-1], gallery[:-1], strict=True):
        total += (own[patches % len(own)] - others[parents % len(others)]).square().sum(1)
    siblings = [
        (block[-1][patches] - gallery[-1][parents + first]).square().sum(1)
        for first in range(0, len(gallery[-1]), n_parents)
    ]
    return total + torch.stack(siblings).amin(0)


def greedy_coreset(points: Tensor, n_kept: int) -> Tensor:
    """Ascending places of `n_kept` rows of (n, d) that cover the others well: each next is the one farthest from all.

    Greedy k-centre (Sener & Savarese 2018), begun with the row farthest from the mean; at most twice the best radius.
    Time n^2 d for the distances and n per row kept; memory n^2.
    """
    centred = points - points.mean(0)
    norms = centred.square().sum(1)
    squared = torch.addmm(norms, centred, centred.T, alpha=-2).add_(norms[:, None])
    uncovered, kept = norms, []
    for _ in range(n_kept):
        kept.append(int(uncovered.argmax()))
        uncovered = squared[kept[-1]] if len(kept) == 1 else torch.minimum(uncovered, squared[kept[-1]])
        uncovered[kept[-1]] = -torch.inf
    return torch.tensor(sorted(kept), device=points.device)


def _repeat(maps: Tensor, grid: Size) -> Tensor:
    """Maps (B, C, h, w) repeated onto a finer grid: nearest neighbour."""
    height, width = maps.shape[2:]
    if (height, width) == grid:
        return maps
    rows = torch.arange(grid[0], device=maps.device) * height // grid[0]
    columns = torch.arange(grid[1], device=maps.device) * width // grid[1]
    return maps[:, :, rows][:, :, :, columns]
