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

Near-duplicates are images that agree in what sets them apart from the rest. Whitened by the model, the embeddings of
independent images are nearly uncorrelated, however alike the parts look;
copies, burst frames and mild augmentations of one photo keep a high correlation. It is estimated at a few positions,
by a count sketch (Charikar et al. 2002), so that an image takes 2 KB and all pairs are compared at once.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flawmap.detectors.padim.embedding import Hierarchy, spread_positions
from flawmap.detectors.padim.gaussian.factor import Factor, known_cells, triangles
from flawmap.detectors.padim.gaussian.moments import PAPER, Moments, Regularization, shared_covariance
from flawmap.options import MIN_IMAGES

SMALLEST = 1e-6
"""What remains of an image's weight stays above it: rounding may take it lower where the ridge is small."""
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
NEAR = 0.6
"""Correlation from which images count as near-duplicates.

Seen: 0.7 to 1 for photos saved again, 0.5 to 0.9 for shifts by a few pixels, below 0.55 for other parts, also in the
same pose.
"""
N_SKETCHED = 48
N_BUCKETS = 512
BLOCK = 1024
"""Images that are compared with all others at a time."""


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


def leave_group_out(products: Tensor, count: int | Tensor, *, sharing: float = 0.0) -> Tensor:
    """Squared distances (..., m) of a group from the model without it, from inner products (..., m, m) under all.

    `count` may differ by position (...); products with images that do not show a position are 0 there.
    """
    n_left_out = products.shape[-1]
    gram = products.double()
    if isinstance(count, Tensor):
        count = count.double().clamp(min=n_left_out + MIN_IMAGES - 1)[..., None, None]
    elif count - n_left_out < MIN_IMAGES - 1:
        raise ValueError(f"leaving {n_left_out} of {count} images out leaves fewer than {MIN_IMAGES - 1}")
    rest = count - n_left_out
    identity = torch.eye(n_left_out, dtype=gram.dtype, device=gram.device)
    kappa = (1 - sharing) / (count - 1)
    # the eigenvectors of B = M^(1/2) G M^(1/2) solve P (P - G)^-1 G = M^(-1/2) B (I - kappa B)^-1 M^(-1/2)
    root = identity + ((count / rest) ** 0.5 - 1) / n_left_out
    values, vectors = torch.linalg.eigh(root @ gram @ root)
    values = values.clamp(min=0)
    weights = values[..., None, :] / (1 - kappa * values[..., None, :]).clamp(min=SMALLEST)
    # b_j = M e_j, and M^(-1/2) M = M^(1/2)
    shifted = root @ vectors
    c = (count - 1) / (rest - 1)
    squared: Tensor = (shifted.square() * weights / c).sum(dim=-1)
    return squared.to(products.dtype)


class Probe:
    """Embeddings at a few positions, of a random sample of the images that pass by (reservoir sampling, seeded).

    Images of one group are near-duplicates, and would vouch for each other: only the first of each is taken.
    """

    def __init__(self, hierarchy: Hierarchy) -> None:
        n_probed = max(6, min(N_POSITIONS, N_POSITIONS * 200**2 // hierarchy.n_features**2))
        self.positions = spread_positions(hierarchy.grid, n_probed)
        self.thinned = False
        self._own = [list(level) for level in zip(*map(hierarchy.own_positions, self.positions), strict=True)]
        self._coarsest = [hierarchy.ancestors(position)[0] for position in self.positions]
        self._rng = np.random.default_rng(0)
        self._kept: list[Tensor] = []
        self._groups: set[Hashable] = set()
        self._n_taken = 0

    def take(self, columns: Sequence[Tensor], groups: Sequence[Hashable], seen: Tensor | None = None) -> None:
        """Take note of a batch of embeddings, per level (positions, B, d), and of the group of each image.

        `seen` as for `update`; where an image does not show a position, its embedding there is NaN.
        """
        batch = torch.cat([column[own] for column, own in zip(columns, self._own, strict=True)], dim=2)
        if seen is not None:
            batch = batch.masked_fill(seen[self._coarsest][..., None] == 0, math.nan)
        for embedding, group in zip(batch.unbind(1), groups, strict=True):
            if group in self._groups:
                self.thinned = True
                continue
            self._groups.add(group)
            self._n_taken += 1
            if len(self._kept) < N_IMAGES:
                self._kept.append(embedding.clone())
            elif (place := int(self._rng.integers(self._n_taken))) < N_IMAGES:
                self._kept[place] = embedding.clone()

    def embeddings(self) -> Tensor:
        """Of the sample: (positions, images, d) float64, channels coarse to fine."""
        return torch.stack(self._kept, dim=1).double()


def choose_regularization(moments: Moments, probe: Probe) -> Regularization:
    """The candidate of greatest leave-one-out likelihood; the paper's setting for too few images."""
    delta, own, count = _statistics(moments, probe)
    if not len(own) or (isinstance(count, int) and count < MIN_IMAGES):
        return PAPER
    shared = _assemble(shared_covariance(moments))
    variance = float(shared.diagonal().mean())
    if variance <= 0:  # identical images
        return PAPER
    ridges = [share * variance for share in RIDGES]
    scores = log_likelihoods(delta, own, shared, count, SHARINGS, ridges)
    sharing, ridge = np.unravel_index(int(scores.argmax()), scores.shape)
    return Regularization(ridge=ridges[ridge], sharing=SHARINGS[sharing])


def log_likelihoods(
    delta: Tensor, own: Tensor, shared: Tensor, count: int | Tensor, sharings: Sequence[float], ridges: Sequence[float]
) -> NDArray[np.float64]:
    """Mean leave-one-out log-likelihood (sharings, ridges) of an image at a position, up to a constant.

    From embeddings less their mean (P, B, d), covariances (P, d, d) of `count` images, or of (P,), and the shared one
    (d, d). An embedding of NaN does not count.
    """
    result = np.empty((len(sharings), len(ridges)))
    count = count[:, None] if isinstance(count, Tensor) else count
    for i, sharing in enumerate(sharings):
        values, vectors = torch.linalg.eigh((1 - sharing) * own + sharing * shared)
        squares = (delta @ vectors).square_()
        k = (1 - sharing) * count / (count - 1) ** 2
        for j, ridge in enumerate(ridges):
            spread = values.clamp(min=0) + ridge
            squared = (squares @ (1 / spread)[..., None])[..., 0]
            left = (1 - k * squared).clamp_(min=SMALLEST)
            terms = left.log() + (count / (count - 1)) ** 2 * squared / left
            result[i, j] = -0.5 * float((spread.log().sum(dim=1) + terms.nanmean(dim=1)).nanmean())
    return result


def _statistics(moments: Moments, probe: Probe) -> tuple[Tensor, Tensor, int | Tensor]:
    """Embeddings less their mean (P, B, d), covariances (P, d, d), and the number of images they are of, or (P,).

    Positions that too few images show are left out.
    """
    embeddings = probe.embeddings()
    if probe.thinned and moments.seen is None:
        delta = embeddings - embeddings.mean(dim=1, keepdim=True)
        count = delta.shape[1]
        return delta, delta.transpose(1, 2) @ delta / max(1, count - 1), count
    rows = [moments.hierarchy.own_positions(position) for position in probe.positions]
    mean = torch.stack([torch.cat([level[i] for level, i in zip(moments.mean, row, strict=True)]) for row in rows])
    cells = [moments.hierarchy.ancestors(position) for position in probe.positions]
    blocks = [
        [(cross[i], own[i]) for cross, own, i in zip(moments.cross, moments.own, row, strict=True)] for row in cells
    ]
    scatter = torch.stack([_assemble(position) for position in blocks])
    delta = embeddings - mean[:, None]
    if moments.seen is None:
        return delta, scatter / (moments.count - 1), moments.count
    seen = moments.seen[[path[0] for path in cells]]
    known = known_cells(seen, moments.count) > 0
    return delta[known], scatter[known] / (seen[known] - 1)[:, None, None], seen[known]


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


class Sketcher:
    """Makes the sketch of an image from its embeddings."""

    def __init__(self, factor: Factor) -> None:
        n_features = factor.hierarchy.n_features
        n_positions = max(8, min(N_SKETCHED, N_SKETCHED * 256 // n_features))
        positions = spread_positions(factor.hierarchy.grid, n_positions)
        self._coarsest = [factor.hierarchy.ancestors(position)[0] for position in positions]
        self._own = [list(level) for level in zip(*map(factor.hierarchy.own_positions, positions), strict=True)]
        self._mean = torch.cat([mean[own] for mean, own in zip(factor.mean, self._own, strict=True)], dim=1)
        self._whiten = triangles(factor, positions).float()
        rng = np.random.default_rng(0)
        n_values, device = len(positions) * n_features, self._mean.device
        self._bucket = torch.from_numpy(rng.integers(N_BUCKETS, size=n_values)).to(device)
        self._sign = torch.from_numpy(rng.choice(np.array([-1, 1], np.float32), size=n_values)).to(device)

    def __call__(self, columns: Sequence[Tensor], seen: Tensor | None = None) -> Tensor:
        """Sketches (B, buckets) of unit length, on the CPU, of embeddings per level (positions, B, d).

        `seen` as for `flawmap.detectors.padim.gaussian.moments.update`.
        """
        picked = torch.cat([column[own] for column, own in zip(columns, self._own, strict=True)], dim=2)
        white = torch.bmm(picked - self._mean[:, None], self._whiten.transpose(1, 2))
        if seen is not None:
            white = white * seen[self._coarsest][..., None]
        values = white.transpose(0, 1).flatten(1) * self._sign
        sketch = values.new_zeros(len(values), N_BUCKETS).index_add_(1, self._bucket, values)
        return torch.nn.functional.normalize(sketch, dim=1).cpu()


def near_duplicates(sketches: Tensor, groups: list[int]) -> list[tuple[int, int]]:
    """Pairs (earlier, later) of near-duplicates in different groups: for each image the earlier one most like it."""
    pairs = []
    group = torch.tensor(groups)
    for start in range(0, len(sketches), BLOCK):
        stop = min(start + BLOCK, len(sketches))
        alike = sketches[start:stop] @ sketches[:stop].T
        later = torch.arange(start, stop)[:, None] <= torch.arange(stop)[None]
        alike[later | (group[start:stop, None] == group[None, :stop])] = -math.inf
        best, earlier = alike.max(dim=1)
        pairs += [(int(earlier[i]), start + int(i)) for i in torch.nonzero(best > NEAR).flatten()]
    return pairs
