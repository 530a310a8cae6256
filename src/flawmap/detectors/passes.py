"""Passes over images: batches of them to embeddings, to moments, to leave-one-out scores, to anomaly maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flawmap.anomaly_map import anomaly_maps, image_scores
from flawmap.backbones import Backbone
from flawmap.decision import PixelHistogram
from flawmap.embedding import Hierarchy
from flawmap.errors import TrainingSetError
from flawmap.gaussian import Factor, Moments, leave_one_out, squared_distances, update
from flawmap.images import Loaded
from flawmap.records import Size

__all__ = ["FIT_BATCH", "batch_size", "batches", "embed", "feature_maps", "learn", "leave_out", "map_batch", "pool"]

BATCH_PIXELS = 32 * 256 * 256
"""Input pixels per batch: 32 images of 256 x 256, fewer of larger ones."""
FIT_BATCH = 64
"""Embeddings that are gathered before the moments take them in; fewer make it slower."""


def batch_size(input_size: Size) -> int:
    """Images per step: 32 of 256 x 256, fewer of larger ones."""
    return max(1, min(32, BATCH_PIXELS // math.prod(input_size)))


def batches(images: Iterator[Loaded], size: int) -> Iterator[list[Loaded]]:
    """Images in lists of so many."""
    while batch := list(islice(images, size)):
        yield batch


def learn(
    backbone: Backbone,
    hierarchy: Hierarchy,
    groups: Iterator[list[Loaded]],
    advance: Callable[[int], None],
) -> Moments:
    """Moments of all images."""
    moments = Moments.empty(hierarchy, backbone.device)
    pending: list[list[Tensor]] = []
    for batch in groups:
        pending.append(embed(backbone, hierarchy, batch))
        if sum(columns[0].shape[1] for columns in pending) >= FIT_BATCH:
            update(moments, _join(pending))
            pending = []
        advance(len(batch))
    if pending:
        update(moments, _join(pending))
    if moments.count < 2:
        raise TrainingSetError(
            f"PaDiM learns a spread and needs at least 2 good images, got {moments.count} usable; "
            f"a few dozen are a good start"
        )
    return moments


def leave_out(
    backbone: Backbone,
    factor: Factor,
    groups: Iterator[list[Loaded]],
    input_size: Size,
    count: int,
    advance: Callable[[int], None],
) -> tuple[list[str], NDArray[np.float32], PixelHistogram]:
    """Names and leave-one-out scores (N,) of the training images, and how often their maps' values occur."""
    names, scores, pixels = [], [], PixelHistogram()
    for batch in groups:
        squared = squared_distances(factor, embed(backbone, factor.hierarchy, batch))
        maps, batch_scores = map_batch(batch, leave_one_out(squared, count).sqrt_(), input_size)
        for image, anomaly_map in zip(batch, maps.numpy(), strict=True):
            top, left, bottom, right = image.placement.content
            pixels.add(anomaly_map[top:bottom, left:right])
            names.append(image.name)
        scores.append(batch_scores.numpy())
        advance(len(batch))
    return names, np.concatenate(scores), pixels


def map_batch(batch: Sequence[Loaded], distances: Tensor, input_size: Size) -> tuple[Tensor, Tensor]:
    """Anomaly maps (B, H, W) and image scores (B,) of a batch, on the CPU."""
    maps = anomaly_maps(distances, input_size).cpu()
    for image, anomaly_map in zip(batch, maps, strict=True):
        _blank_padding(anomaly_map, image.placement.content)
    return maps, image_scores(maps)


def embed(backbone: Backbone, hierarchy: Hierarchy, batch: Sequence[Loaded]) -> list[Tensor]:
    """Embeddings of a batch, per level (positions, B, d)."""
    columns = hierarchy.select(backbone.features(np.stack([image.pixels for image in batch])))
    if not all(bool(torch.isfinite(column.sum())) for column in columns):
        raise TrainingSetError(
            f"the backbone's features are not finite for the images from {batch[0].name} on; its weights may be damaged"
        )
    return columns


def feature_maps(backbone: Backbone, batch: Sequence[Loaded]) -> list[Tensor]:
    """Feature maps (B, C, h, w) of each layer, finite."""
    maps = backbone.features(np.stack([image.pixels for image in batch]))
    if not all(bool(torch.isfinite(features.sum())) for features in maps):
        raise TrainingSetError(
            f"the backbone's features are not finite for the images from {batch[0].name} on; its weights may be damaged"
        )
    return maps


def pool(backbone: Backbone, batch: Sequence[Loaded]) -> list[NDArray[np.float32]]:
    """Each layer's features, averaged over the whole image: (B, C) per layer."""
    return [features.mean(dim=(2, 3)).cpu().numpy() for features in feature_maps(backbone, batch)]


def _join(parts: Sequence[list[Tensor]]) -> list[Tensor]:
    """Batches of embeddings, per level, as one."""
    return [torch.cat(columns, dim=1) for columns in zip(*parts, strict=True)]


def _blank_padding(anomaly_map: Tensor, content: tuple[int, int, int, int]) -> None:
    """Zero what a letterbox added, in place: no part is there to be judged."""
    top, left, bottom, right = content
    anomaly_map[:top], anomaly_map[bottom:] = 0, 0
    anomaly_map[:, :left], anomaly_map[:, right:] = 0, 0
