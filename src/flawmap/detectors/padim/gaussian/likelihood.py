"""Choosing the regularisation from good images alone, by the exact leave-one-out likelihood.

With Sigma = (1 - a) S / (N - 1) + a Sbar + eps I, k = (1 - a) N / (N - 1)^2 and d2 an image's squared distance, its
log-likelihood under the Gaussian fitted without it is, up to constants,

    -1/2 [ log det Sigma + log(1 - k d2) + (N / (N - 1))^2 d2 / (1 - k d2) ],

averaged over images and over positions spread evenly on the grid. In the eigenvectors of (1 - a) S / (N - 1) + a Sbar
every eps costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flawmap.detectors.padim.embedding import Hierarchy, spread_positions
from flawmap.detectors.padim.gaussian.leave_one_out import SMALLEST
from flawmap.detectors.padim.gaussian.moments import Moments
from flawmap.detectors.padim.gaussian.regularization import PAPER, Regularization, shared_scatter
from flawmap.options import MIN_IMAGES

__all__ = ["Probe", "choose_regularization", "log_likelihoods"]

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


class Probe:
    """Embeddings at a few positions, of a random sample of the images that pass by (reservoir sampling, seeded).

    Images of one group are near-duplicates, and would vouch for each other: only the first of each is taken.
    """

    def __init__(self, hierarchy: Hierarchy) -> None:
        n_probed = max(6, min(N_POSITIONS, N_POSITIONS * 200**2 // hierarchy.n_features**2))
        self.positions = spread_positions(hierarchy.grid, n_probed)
        self.thinned = False
        self._own = [list(level) for level in zip(*map(hierarchy.own_positions, self.positions), strict=True)]
        self._rng = np.random.default_rng(0)
        self._kept: list[Tensor] = []
        self._groups: set[Hashable] = set()
        self._n_taken = 0

    def take(self, columns: Sequence[Tensor], groups: Sequence[Hashable]) -> None:
        """Take note of a batch of embeddings, per level (positions, B, d), and of the group of each image."""
        batch = torch.cat([column[own] for column, own in zip(columns, self._own, strict=True)], dim=2)
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
    if count < MIN_IMAGES:
        return PAPER
    shared = _assemble(shared_scatter(moments)) / (moments.count - 1)
    variance = float(shared.diagonal().mean())
    if variance <= 0:  # identical images
        return PAPER
    ridges = [share * variance for share in RIDGES]
    scores = log_likelihoods(delta, own, shared, count, SHARINGS, ridges)
    sharing, ridge = np.unravel_index(int(scores.argmax()), scores.shape)
    return Regularization(ridge=ridges[ridge], sharing=SHARINGS[sharing])


def log_likelihoods(
    delta: Tensor, own: Tensor, shared: Tensor, count: int, sharings: Sequence[float], ridges: Sequence[float]
) -> NDArray[np.float64]:
    """Mean leave-one-out log-likelihood (sharings, ridges) of an image at a position, up to a constant.

    From embeddings less their mean (P, B, d), covariances (P, d, d) of `count` images, and the shared one (d, d).
    """
    result = np.empty((len(sharings), len(ridges)))
    for i, sharing in enumerate(sharings):
        values, vectors = torch.linalg.eigh((1 - sharing) * own + sharing * shared)
        squares = (delta @ vectors).square_()
        k = (1 - sharing) * count / (count - 1) ** 2
        for j, ridge in enumerate(ridges):
            spread = values.clamp(min=0) + ridge
            squared = (squares @ (1 / spread)[..., None])[..., 0]
            left = (1 - k * squared).clamp_(min=SMALLEST)
            terms = left.log() + (count / (count - 1)) ** 2 * squared / left
            result[i, j] = -0.5 * float((spread.log().sum(dim=1) + terms.mean(dim=1)).mean())
    return result


def _statistics(moments: Moments, probe: Probe) -> tuple[Tensor, Tensor, int]:
    """Embeddings less their mean (P, B, d), covariances (P, d, d), and the number of images they are of."""
    embeddings = probe.embeddings()
    if probe.thinned:
        delta = embeddings - embeddings.mean(dim=1, keepdim=True)
        count = delta.shape[1]
        return delta, delta.transpose(1, 2) @ delta / max(1, count - 1), count
    rows = [moments.hierarchy.own_positions(position) for position in probe.positions]
    mean = torch.stack([torch.cat([level[i] for level, i in zip(moments.mean, row, strict=True)]) for row in rows])
    cells = [moments.hierarchy.ancestors(position) for position in probe.positions]
    blocks = [
        [(cross[i], own[i]) for cross, own, i in zip(moments.cross, moments.own, row, strict=True)] for row in cells
    ]
    own = torch.stack([_assemble(position) for position in blocks])
    return embeddings - mean[:, None], own / (moments.count - 1), moments.count


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
