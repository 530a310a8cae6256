"""MahalanobisAD: one Gaussian over whole images per level of a network (Rippel et al. 2020, arXiv 2005.14140).

One Gaussian over whole images' pooled features, with Ledoit-Wolf shrinkage, and its exact leave-one-out distances.

With N vectors x_i of d channels, their mean m and covariance S (divided by N), the shrunk covariance is
C = (1 - a) S + a t I, where t = trace(S) / d and a is the coefficient of Ledoit & Wolf 2004 (MahalanobisAD: Rippel et
al. 2020). Without image i, with r = x_i - m, both S and t lose a part of it:

    S_i = c (S - r r^T / (N - 1)),    t_i = c (t - |r|^2 / ((N - 1) d)),    c = N / (N - 1),
    C_i = c (C - e I - k r r^T),      e = a |r|^2 / ((N - 1) d),            k = (1 - a) / (N - 1),

with `a` held fixed. In the eigenvectors of C (eigenvalues l, r = V w) the inverse of C - e I is at hand for every i, so
that with q = sum_j w_j^2 / (l_j - e) Sherman-Morrison and x_i - m_i = c r give, exactly,

    d2_loo = c q / (1 - k q).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from flawmap.backbones import feature_levels, plain_torch
from flawmap.detectors.batches import batch_size, in_batches
from flawmap.detectors.calibration import HeldOutScores, all_scores
from flawmap.detectors.document import Record, Stored
from flawmap.detectors.feature_detector import FeatureDetector, feature_maps
from flawmap.detectors.good_images import GoodImages
from flawmap.errors import ParameterError, TrainingSetError
from flawmap.images import ImageInput, collect, stream
from flawmap.model_file import Streamed
from flawmap.options import MAX_LAYERS, MIN_IMAGES, FactorDtype

SMALLEST = 1e-12
"""Least variance, as a share of the largest: what is left of it after taking out an image that alone had it."""


class LearntRecord(Record):
    """What the document keeps: the Ledoit-Wolf coefficient of each level."""

    shrinkage: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(min_length=1, max_length=MAX_LAYERS)


class MahalanobisAD(FeatureDetector):
    """Learns one Gaussian per level of a network from good images; scores whole images by their Mahalanobis distances.

    It says whether an image is anomalous and not where: its predictions have no anomaly map, mask or regions. `layers`
    are the levels that are pooled; None for all: of an EfficientNet its stem, its stages and its head. `fit` keeps the
    pooled features of all good images: 12 KB an image for EfficientNet-B4. The held-out scores are exact.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> good = rng.normal(128, 20, (8, 64, 64, 3)).clip(0, 255).astype(np.uint8)
        >>> model = MahalanobisAD(resize=64, layers=["blocks.1"]).fit(good)
        >>> model.predict(255 - good[0] // 4).pred_label
        1

    Attributes after `fit`, beside those of every detector:
        gaussians_: the Gaussian of each level.
    """

    name = "mahalanobis-ad"
    presets: ClassVar = {"mahalanobis-ad-effnet-b4": {"backbone": "efficientnet_b4", "resize": 380, "reading": "whole"}}
    localises = False
    libraries = ("scikit-learn",)

    @plain_torch()
    def distances(self, images: ImageInput, *, batch_size: int | None = None) -> NDArray[np.float64]:
        """Mahalanobis distances (N, levels), the sum of which is an image's score."""
        backbone = self.backbone_
        loaded = stream(collect(images).items, self.preprocessing, workers=self.workers)
        parts = []
        for batch in in_batches(loaded, self._step if batch_size is None else batch_size):
            pooled = [maps.mean(dim=(2, 3)).cpu().numpy() for maps in backbone.features(batch.pixels)]
            levels = zip(self.gaussians_, pooled, strict=True)
            parts.append(np.stack([gaussian.distances(vectors) for gaussian, vectors in levels], axis=1))
        return np.concatenate(parts) if parts else np.empty((0, len(self.gaussians_)))

    def _learn(self, good: GoodImages) -> HeldOutScores | None:
        """Raises TrainingSetError for fewer than two images, and if all look alike."""
        layers = feature_levels(self.backbone) if self.layers is None else self.layers
        backbone = self._load_backbone(layers, n_images=good.at_least, most_layers=MAX_LAYERS)
        parts: list[list[NDArray[np.float32]]] = []
        for batch in good.first(batch_size(self.preprocessing.input_size)):
            parts.append([maps.mean(dim=(2, 3)).cpu().numpy() for maps in feature_maps(backbone, batch)])
        if len(good.learnt) < 2:
            raise TrainingSetError(
                f"MahalanobisAD learns a spread and needs at least 2 good images, got {len(good.learnt)} usable; "
                f"a few dozen are a good start"
            )
        learnt = [learn_pooled(np.concatenate(level)) for level in zip(*parts, strict=True)]
        self._backbone, self.gaussians_ = backbone, [gaussian for gaussian, _ in learnt]
        if self.calibrate is None or len(good.learnt) < MIN_IMAGES:
            return None
        return all_scores(np.sum([left_out for _, left_out in learnt], axis=0))

    def _head(self, *, for_graph: bool = False) -> nn.Module:
        return _Head(self.gaussians_, torch.device("cpu") if for_graph else self.backbone_.device)

    def _learnt(self) -> dict[str, Any]:
        return {"shrinkage": [gaussian.shrinkage for gaussian in self.gaussians_]}

    def _tensors(self, dtype: FactorDtype) -> dict[str, Tensor | Streamed]:  # noqa: ARG002 (they are small)
        tensors: dict[str, Tensor | Streamed] = {}
        for layer, gaussian in zip(self.backbone_.layers, self.gaussians_, strict=True):
            tensors[f"{layer}.mean"] = torch.from_numpy(gaussian.mean)
            tensors[f"{layer}.whitening"] = torch.from_numpy(gaussian.whitening)
        return tensors

    def _unpack(self, stored: Stored) -> None:
        shrinkage, record = stored.learnt(LearntRecord).shrinkage, stored.document.backbone
        layers = () if record is None else record.layers
        if len(shrinkage) != len(layers):
            raise ParameterError("layers and shrinkages differ in number")
        expected: dict[str, tuple[int, ...]] = {}
        for layer, (n, _) in zip(layers, self.shapes_, strict=True):
            expected |= {f"{layer}.mean": (n,), f"{layer}.whitening": (n, n)}
        tensors = {name: value.cpu().numpy() for name, value in stored.read(expected).items()}
        self.gaussians_ = [
            PooledGaussian(tensors[f"{layer}.mean"], tensors[f"{layer}.whitening"], coefficient)
            for layer, coefficient in zip(layers, shrinkage, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class PooledGaussian:
    """A Gaussian of vectors of d channels.

    Attributes:
        mean: (d,) float32.
        whitening: (d, d) float32; the Mahalanobis distance is the length of (x - mean) @ whitening.
        shrinkage: Ledoit-Wolf coefficient, 0 to 1.
    """

    mean: NDArray[np.float32]
    whitening: NDArray[np.float32]
    shrinkage: float

    def distances(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        """Mahalanobis distances (B,) of vectors (B, d)."""
        centred = vectors.astype(np.float64) - self.mean
        return np.asarray(np.linalg.norm(centred @ self.whitening.astype(np.float64), axis=1), np.float64)


def learn_pooled(vectors: NDArray[np.float32]) -> tuple[PooledGaussian, NDArray[np.float64]]:
    """The Gaussian of vectors (N, d), and the distance (N,) of each by the Gaussian without it.

    Raises TrainingSetError if all vectors are equal. With fewer than three, there are no leave-one-out distances (0,).
    """
    from sklearn.covariance import ledoit_wolf  # takes a second to import, which the other detectors need not pay

    wide = vectors.astype(np.float64)
    count, n_channels = wide.shape
    mean = wide.mean(axis=0)
    centred = wide - mean
    if not centred.any():
        raise TrainingSetError(f"the {count} good images are all alike: there is no spread to be learnt from them")
    covariance, shrinkage = ledoit_wolf(centred, assume_centered=True)
    variances, axes = np.linalg.eigh(covariance)
    variances = np.maximum(variances, SMALLEST * variances[-1])
    whitening = (axes / np.sqrt(variances)).astype(np.float32)
    gaussian = PooledGaussian(mean.astype(np.float32), whitening, float(shrinkage))
    if count < 3:
        return gaussian, np.empty(0)
    remaining, dilution = (1 - shrinkage) / (count - 1), count / (count - 1)
    lost = shrinkage * np.square(centred).sum(axis=1) / ((count - 1) * n_channels)
    left = np.maximum(variances - lost[:, None], SMALLEST * variances[-1])
    whole = (np.square(centred @ axes) / left).sum(axis=1)
    return gaussian, np.sqrt(dilution * whole / np.maximum(1 - remaining * whole, SMALLEST))


class _Head(nn.Module):
    """Feature maps (N, C, h, w) of each level to image scores (N,): the sum of the levels' Mahalanobis distances."""

    def __init__(self, gaussians: Sequence[PooledGaussian], device: torch.device) -> None:
        super().__init__()
        self.means = nn.ParameterList(_constant(gaussian.mean, device) for gaussian in gaussians)
        self.whitenings = nn.ParameterList(_constant(gaussian.whitening, device) for gaussian in gaussians)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor]:
        """Image scores (N,)."""
        pooled = [level.mean(dim=(2, 3)) for level in features]
        parts = zip(pooled, self.means, self.whitenings, strict=True)
        lengths = [((vector - mean) @ whitening).square().sum(dim=1).sqrt() for vector, mean, whitening in parts]
        return (torch.stack(lengths).sum(dim=0),)


def _constant(values: NDArray[np.float32], device: torch.device) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(values).to(device), requires_grad=False)
