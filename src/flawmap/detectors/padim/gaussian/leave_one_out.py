"""Distances of training images from the model fitted without them, without refitting.

Taking a group of m images out of N changes a scatter matrix by a term of rank m, so the inverse of the covariance
follows from the Woodbury identity. With D (m, d) the group's embeddings less the mean of all, G = D Sigma^-1 D^T their
inner products under the whole model, c = (N - 1) / (N - m - 1), kappa = (1 - a) / (N - 1) for a sharing of a, and
M = I + 1 1^T / (N - m),

    d2_without(j) = b_j^T P (P - G)^-1 G b_j / c,    P = (kappa M)^-1,    b_j = e_j + 1 / (N - m).

For one image, m = 1, that is the formula of Sherman and Morrison: with d2 = G and k = N / ((N - 1) (N - 2)),

    d2_without = (N / (N - 1))^2 / c * d2 / (1 - (1 - a) (k / c) d2).

Only its part in what regularises is neglected, that is the factor c and, with sharing, its part in the pooled
covariance: for one image the distance is too low by up to 3 % at N = 48, 1.3 % at N = 90 and 0.3 % at N = 320. Among
fewer than 50 images the Gaussians are fitted again instead (`flawmap.detectors.padim.leave_one_out`).

The regularisation is chosen from good images alone, by the exact leave-one-out likelihood. With Sigma = (1 - a) S / (N
- 1) + a Sbar + eps I, k = (1 - a) N / (N - 1)^2 and d2 an image's squared distance, its
log-likelihood under the Gaussian fitted without it is, up to constants,

    -1/2 [ log det Sigma + log(1 - k d2) + (N / (N - 1))^2 d2 / (1 - k d2) ],

averaged over images and over positions spread evenly on the grid. In the eigenvectors of (1 - a) S / (N - 1) + a Sbar
every eps costs next to nothing.

A group of images is left out as a whole there too: with B = M^(1/2) G M^(1/2) for the Gram matrix G of its members, the
log-determinant loses log det(I - kappa B), and d2_without is as above, but for c.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flawmap.detectors.padim.embedding import Hierarchy
from flawmap.detectors.padim.gaussian.factor import known_cells
from flawmap.detectors.padim.gaussian.moments import PAPER, Moments, Regularization, shared_covariance
from flawmap.options import MIN_IMAGES

SMALLEST = 1e-6
"""What remains of an image's weight stays above it: rounding may take it lower where the ridge is small."""
TINY = 1e-12
"""Least ridge, for images that are all alike."""
SHARINGS = (0.0, 0.05, 0.1)
"""Candidates for a."""
RIDGES = (0.03, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Candidates for eps, in units of the mean variance of a feature, which differs between backbones by a factor of 1000.

The likelihood would go lower: it gains wherever a feature hardly varies, but an image's score is its greatest distance,
and such features make distances extreme. `docs/regularisation.md` has the figures.
"""
N_POSITIONS = 64
"""Positions at which candidates are compared; fewer for embeddings of more than 200 channels, as each takes d^3."""
N_IMAGES = 512
"""Images, at most, whose likelihood is taken: a sample of all."""
LEAST_IMAGES = 64
"""Of these at least, where the limit is divided by the positions of a block."""


def leave_one_out(squared: Tensor, count: int | Tensor, *, sharing: float = 0.0) -> Tensor:
    """Squared leave-one-out distances from squared distances of training images, of any shape, under `count` images.

    `count` may differ by position, and then has the last dimensions of `squared`; fewer than three count as three.
    `sharing` is that of the regularisation: only the rest of a covariance is the position's own.
    """
    if isinstance(count, Tensor):
        count = count.to(squared.dtype).clamp(min=MIN_IMAGES)
    elif count < MIN_IMAGES:
        raise ValueError(f"leaving one out needs at least {MIN_IMAGES} images, got {count}")
    c = (count - 1) / (count - 2)
    k = (1 - sharing) * count / ((count - 1) * (count - 2))
    remaining = (1 - (k / c) * squared).clamp(min=SMALLEST)
    return (count / (count - 1)) ** 2 / c * squared / remaining


def leave_one_out_with_copies(products: Tensor, count: int | Tensor, *, sharing: float = 0.0) -> Tensor:
    """Squared distances (..., 1 + m) of training images, and of changed copies of them, from the model without each.

    From inner products (..., 1 + m, 1 + m) of an image and its copies under the model of all. With x the image's and y
    a copy's embedding less the mean, the copy lies y + x / (N - 1) from the mean without the image, and the inverse
    covariance without it is that of Sherman and Morrison. `count` and `sharing` as for `leave_one_out`.
    """
    if isinstance(count, Tensor):
        count = count.to(products.dtype).clamp(min=MIN_IMAGES)[..., None]
    weight = 1 / (count - 1)
    image, both, own = products[..., :1, 0], products[..., 0, :], products.diagonal(dim1=-2, dim2=-1)
    k = (1 - sharing) * count * weight**2
    remaining = (1 - k * image).clamp(min=SMALLEST)
    # the image is its own copy y = x
    distance, along = own + 2 * weight * both + weight**2 * image, both + weight * image
    squared: Tensor = (distance + k * along.square() / remaining).clamp(min=0) * ((count - 2) * weight)
    return squared


def leave_group_out(
    products: Tensor, count: int | Tensor, *, sharing: float = 0.0, shown: Tensor | None = None
) -> Tensor:
    """Squared distances (..., m) of a group from the model without it, from inner products (..., m, m) under all.

    `count` may differ by position (...). Where an image is not `shown` (..., m) it is not left out, and its distance is
    0; None if all are.
    """
    n_members = products.shape[-1]
    if isinstance(count, int) and count - n_members < MIN_IMAGES - 1:
        raise ValueError(f"leaving {n_members} of {count} images out leaves fewer than {MIN_IMAGES - 1}")
    weight = torch.ones_like(products[..., 0], dtype=torch.float64) if shown is None else shown.double()
    both, n_left_out = weight[..., None] * weight[..., None, :], weight.sum(dim=-1)[..., None, None]
    gram = products.double() * both
    total = torch.as_tensor(count, dtype=gram.dtype, device=gram.device)[..., None, None]
    total = total.maximum(n_left_out + MIN_IMAGES - 1)
    rest = total - n_left_out
    identity = torch.eye(n_members, dtype=gram.dtype, device=gram.device)
    kappa = (1 - sharing) / (total - 1)
    # the eigenvectors of B = M^(1/2) G M^(1/2) solve P (P - G)^-1 G = M^(-1/2) B (I - kappa B)^-1 M^(-1/2)
    root = identity + ((total / rest) ** 0.5 - 1) / n_left_out.clamp(min=1) * both
    values, vectors = torch.linalg.eigh(root @ gram @ root)
    values = values.clamp(min=0)
    weights = values[..., None, :] / (1 - kappa * values[..., None, :]).clamp(min=SMALLEST)
    # b_j = M e_j, and M^(-1/2) M = M^(1/2)
    shifted = root @ vectors
    c = (total - 1) / (rest - 1)
    squared: Tensor = (shifted.square() * weights / c).sum(dim=-1)
    return squared.to(products.dtype)


def leave_set_out(white: Tensor, count: int | Tensor, *, sharing: float = 0.0) -> Tensor:
    """Squared distances (P, m) of a group of any size from the model without it, from (P, m, d) whitened by all.

    `count` may differ by position (P,); an image that does not show one is 0 there. Of many images it is the inverse of
    d x d that is taken, not of m x m.
    """
    m, d = white.shape[1:]
    shown = (white != 0).any(dim=2)
    if 2 * m <= d:
        return leave_group_out(white @ white.transpose(1, 2), count, sharing=sharing, shown=shown)
    n_left_out = shown.sum(dim=1)[:, None, None]
    total = torch.as_tensor(count, dtype=white.dtype, device=white.device)[..., None, None]
    total = total.maximum(n_left_out + MIN_IMAGES - 1)
    rest = total - n_left_out
    shifted = white + white.sum(dim=1, keepdim=True) / rest
    taken = (1 - sharing) / (total - 1) * white.transpose(1, 2) @ shifted
    left = (1 + SMALLEST) * torch.eye(d, dtype=white.dtype, device=white.device) - taken
    factor = torch.linalg.cholesky_ex(left)[0]
    inverse = torch.linalg.solve_triangular(factor, shifted.transpose(1, 2), upper=False)
    squared: Tensor = inverse.square().sum(dim=1) * ((rest - 1) / (total - 1))[..., 0] * shown
    return squared


class Probe:
    """Embeddings at a few positions of some of the images that pass by, whose groups may become known later.

    Attributes:
        positions: of the finest grid; all of some blocks, one after the other, where blocks share a covariance.
        n_members: positions that share one.
        indices: of a sample of at most `N_IMAGES`, in the training order.
    """

    def __init__(self, hierarchy: Hierarchy) -> None:
        n_probed = max(6, min(N_POSITIONS, N_POSITIONS * 200**2 // hierarchy.n_features**2))
        self.positions, blocks = spread_positions(hierarchy, n_probed), hierarchy.blocks
        if blocks is not None:  # whole blocks, so fewer of them, and of fewer images
            some = spread_positions(hierarchy, max(6, n_probed // blocks.n_members))
            found = dict.fromkeys(map(blocks.block_of, some))
            self.positions = blocks.positions_of(list(found))
        self.n_members = 1 if blocks is None else blocks.n_members
        self._most = N_IMAGES if blocks is None else max(LEAST_IMAGES, N_IMAGES // blocks.n_members)
        self.indices: list[int] = []
        self._own = [list(level) for level in zip(*map(hierarchy.own_positions, self.positions), strict=True)]
        self._coarsest = [hierarchy.ancestors(position)[0] for position in self.positions]
        self._rng = np.random.default_rng(0)
        self._kept: list[Tensor] = []
        self._n_taken = 0

    def take(self, batch: Tensor, indices: Sequence[int]) -> None:
        """Take note of embeddings (P, B, d) at the positions, and of the index of each image."""
        for embedding, index in zip(batch.unbind(1), indices, strict=True):
            self._n_taken += 1
            if len(self._kept) < self._most:
                self._kept.append(embedding.clone())
                self.indices.append(index)
            elif (place := int(self._rng.integers(self._n_taken))) < self._most:
                self._kept[place], self.indices[place] = embedding.clone(), index

    def at_positions(self, columns: Sequence[Tensor], seen: Tensor | None = None) -> Tensor:
        """Embeddings (P, B, d), channels coarse to fine, out of those per level (positions, B, d).

        `seen` as for `update`; where an image does not show a position, its embedding there is NaN.
        """
        batch = torch.cat([column[own] for column, own in zip(columns, self._own, strict=True)], dim=2)
        return batch if seen is None else batch.masked_fill(seen[self._coarsest][..., None] == 0, math.nan)

    def embeddings(self) -> Tensor:
        """Of the sample: (positions, images, d) float64."""
        return torch.stack(self._kept, dim=1).double()


def spread_positions(hierarchy: Hierarchy, n_positions: int) -> list[int]:
    """Some of the inspected positions, ascending: evenly spread, and never in step with the rows (golden ratio)."""
    total = hierarchy.grid[0] * hierarchy.grid[1]
    known = np.arange(total) if hierarchy.inspected is None else np.flatnonzero(hierarchy.inspected.cpu().numpy())
    spread = np.arange(1, n_positions + 1) * 0.6180339887498949 % 1 * len(known)
    return [int(position) for position in known[np.unique(spread.astype(np.int64))]]


def choose_regularization(moments: Moments, probe: Probe, group_of: Sequence[Hashable] | None = None) -> Regularization:
    """The candidate of greatest leave-one-out likelihood; the paper's setting for too few images.

    With the group of each image of the training order, groups are left out as a whole; too few are those that leave
    fewer than two images.
    """
    is_grouped = group_of is not None and len(set(group_of)) < len(group_of)
    of_sample = is_grouped and len(probe.indices) < moments.count
    delta, own, count = _statistics(moments, probe, of_sample=of_sample)
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for row, index in enumerate(probe.indices):
        groups[row if group_of is None else group_of[index]].append(row)
    most = (count if isinstance(count, int) else len(probe.indices)) - (MIN_IMAGES - 1)
    members = [group for group in groups.values() if len(group) <= most]
    shared = shared_at_all(moments)
    variance = float(shared.diagonal().mean())
    if not members or not len(own) or variance <= 0:  # identical images
        return PAPER
    ridges = [share * variance for share in RIDGES]
    scores = log_likelihoods(delta, own, shared, count, SHARINGS, ridges, members)
    sharing, ridge = np.unravel_index(int(scores.argmax()), scores.shape)
    return Regularization(ridge=ridges[ridge], sharing=SHARINGS[sharing])


def strongest_regularization(moments: Moments) -> Regularization:
    """The strongest candidate: chance is least under it, so that copies are alike, however few images there are."""
    variance = float(shared_at_all(moments).diagonal().mean())
    return Regularization(ridge=RIDGES[-1] * variance, sharing=SHARINGS[-1])


def log_likelihoods(
    delta: Tensor,
    own: Tensor,
    shared: Tensor,
    count: int | Tensor,
    sharings: Sequence[float],
    ridges: Sequence[float],
    groups: Sequence[Sequence[int]],
) -> NDArray[np.float64]:
    """Mean leave-one-out log-likelihood (sharings, ridges) of an image at a position, up to a constant.

    From embeddings less their mean (P, B, d), covariances (P / m, d, d), one of m positions each, of `count` images, or
    of (P,), the shared one (d, d), and the rows of each group's images. An embedding of NaN does not count.
    """
    m = len(delta) // len(own)
    delta = delta.reshape(len(own), -1, delta.shape[2])
    by_size: dict[int, list[Sequence[int]]] = defaultdict(list)
    for group in groups:
        by_size[len(group)].append(group)
    rows = {size: torch.tensor(same, device=delta.device) for size, same in by_size.items()}
    shown = ~delta[..., 0].isnan()
    n_shown = _of_images(shown, torch.cat([same.flatten() for same in rows.values()]), m).sum(dim=(1, 2))
    result = np.empty((len(sharings), len(ridges)))
    for i, sharing in enumerate(sharings):
        values, vectors = torch.linalg.eigh((1 - sharing) * own + sharing * shared)
        turned = delta.nan_to_num(nan=0) @ vectors
        for j, ridge in enumerate(ridges):
            spread = values.clamp(min=0) + ridge
            white = turned / spread.sqrt()[:, None]
            terms = [
                _left_out(_of_images(white, same, m), _of_images(shown, same, m), count, m, sharing)
                for same in rows.values()
            ]
            change = torch.stack(terms).sum(dim=0) / n_shown
            result[i, j] = -0.5 * float((spread.log().sum(dim=1) + change).nanmean())
    return result


def _of_images(values: Tensor, rows: Tensor, m: int) -> Tensor:
    """Values (Q, m * B, ...) of some images (groups, k) or (k,): (Q, groups, m * k, ...), or (Q, m, k, ...)."""
    some = values.view(len(values), m, -1, *values.shape[2:])[:, :, rows]
    return some if rows.ndim == 1 else some.transpose(1, 2).flatten(2, 3)


def _left_out(white: Tensor, shown: Tensor, count: int | Tensor, n_members: int, sharing: float) -> Tensor:
    """What log-determinant and squared distance come to without a group, summed over all images: (Q,).

    From whitened embeddings (Q, groups, m, d) under all images, m being the group's times `n_members` positions that
    share a covariance; only where `shown` (Q, groups, m), elsewhere 0. `count` may differ by position (Q * n_members,).
    """
    weight = shown.to(white.dtype)
    left = weight.view(*weight.shape[:2], n_members, -1).sum(dim=3)  # (Q, groups, n_members)
    count = torch.as_tensor(count, dtype=white.dtype, device=white.device)
    count = count.view(-1, 1, n_members) if count.ndim else count
    count = count.maximum(left + MIN_IMAGES - 1)
    kappa = ((1 - sharing) / (count - 1).sum(dim=2))[..., None, None]
    identity = torch.eye(white.shape[2], dtype=white.dtype, device=white.device)
    at_position = torch.eye(n_members, dtype=white.dtype, device=white.device)
    group_size = white.shape[2] // n_members
    at_position = at_position.repeat_interleave(group_size, 0).repeat_interleave(group_size, 1)
    ones = weight[..., None] * weight[..., None, :] * at_position
    scale = ((count / (count - left)).sqrt() - 1) / left.clamp(min=1)
    root = identity + scale.repeat_interleave(group_size, 2)[..., None] * ones
    m = weight.sum(dim=2)
    rows = root @ white  # B is their Gram matrix
    left = identity + SMALLEST * torch.diag_embed(weight) - kappa * rows @ rows.transpose(2, 3)
    factor = torch.linalg.cholesky_ex(left)[0]
    inverse = torch.linalg.solve_triangular(factor, root, upper=False)
    squared = (inverse.square().sum(dim=(2, 3)) - root.square().sum(dim=(2, 3))) / kappa[..., 0, 0]
    log_det = 2 * factor.diagonal(dim1=2, dim2=3).clamp(min=SMALLEST).log().sum(dim=2)
    change: Tensor = (squared + m * log_det).sum(dim=1)
    return change


def _statistics(moments: Moments, probe: Probe, *, of_sample: bool) -> tuple[Tensor, Tensor, int | Tensor]:
    """Embeddings less their mean (P, B, d), covariances (P / m, d, d) of m positions each, number of images, or (P,).

    Positions that too few images show are left out, unless they share with others. `of_sample`: of the probe's images
    alone, since others of their groups would vouch for them.
    """
    embeddings, m = probe.embeddings(), probe.n_members
    if of_sample:
        shown = (~embeddings[..., 0].isnan()).sum(dim=1)
        delta = embeddings - embeddings.nanmean(dim=1, keepdim=True)
        zeroed = delta.nan_to_num(nan=0).view(len(delta) // m, -1, delta.shape[2])
        freedom = (shown - 1).clamp(min=0).view(-1, m).sum(dim=1).clamp(min=1)
        own = zeroed.transpose(1, 2) @ zeroed / freedom[:, None, None]
        count: int | Tensor = len(probe.indices) if moments.seen is None else shown
    else:
        mean, own, count = moments_at(moments, probe.positions)
        delta, own = embeddings - mean[:, None], own[::m]
    if isinstance(count, int):
        return delta, own, count
    known = known_cells(count, len(probe.indices) if of_sample else moments.count) > 0
    blocks = known.view(-1, m).any(dim=1)
    known = blocks.repeat_interleave(m)
    return delta[known], own[blocks], count[known]


def moments_at(moments: Moments, positions: Sequence[int]) -> tuple[Tensor, Tensor, int | Tensor]:
    """Means (P, d), covariances (P, d, d) at some positions, channels coarse to fine, of so many images, or (P,)."""
    rows = [moments.hierarchy.own_positions(position) for position in positions]
    mean = torch.stack([torch.cat([level[i] for level, i in zip(moments.mean, row, strict=True)]) for row in rows])
    cells = [moments.hierarchy.covariance_cells(position) for position in positions]
    blocks = [
        [(cross[i], own[i]) for cross, own, i in zip(moments.cross, moments.own, row, strict=True)] for row in cells
    ]
    scatter = torch.stack([_assemble(position) for position in blocks])
    freedom = moments.freedom
    if moments.seen is None or isinstance(freedom, int):
        return mean, scatter / freedom, moments.count
    own_freedom = freedom[[path[0] for path in cells]].clamp(min=1)
    seen = moments.seen[[moments.hierarchy.ancestors(position)[0] for position in positions]]
    return mean, scatter / own_freedom[:, None, None], seen


def shared_at_all(moments: Moments) -> Tensor:
    """The covariance (d, d) float64 that all positions share, channels coarse to fine."""
    return _assemble(shared_covariance(moments))


def _assemble(blocks: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """A whole symmetric matrix (d, d) float64, channels coarse to fine, from its blocks of each level."""
    width = sum(len(own) for _, own in blocks)
    whole = blocks[0][1].new_zeros(width, width, dtype=torch.float64)
    stop = 0
    for cross, own in blocks:
        start, stop = stop, stop + len(own)
        whole[start:stop, :start], whole[:start, start:stop] = cross.double(), cross.double().T
        whole[start:stop, start:stop] = own.double()
    return whole
