"""Passes over images: batches of them to embeddings, to moments, to anomaly maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flawmap.backbones import Backbone
from flawmap.detectors.anomaly_map import anomaly_maps, image_scores
from flawmap.detectors.padim.embedding import Hierarchy
from flawmap.detectors.padim.gaussian import Moments, Probe, update
from flawmap.errors import ParameterError, TrainingSetError
from flawmap.images import Loaded
from flawmap.prediction import Size

__all__ = [
    "AT_ONCE",
    "FIT_BATCH",
    "batch_size",
    "batches",
    "blank_padding",
    "check_finite",
    "embed",
    "feature_maps",
    "learn",
    "map_batch",
    "pixels_of",
    "pool",
    "score_maps",
]

BATCH_PIXELS = 32 * 256 * 256
"""Input pixels per batch: 32 images of 256 x 256, fewer of larger ones."""
AT_ONCE = 4
"""Images that a CPU's backbone takes at once: more are no faster, and their feature maps take more memory."""
FIT_BATCH = 64
"""Embeddings that are gathered before the moments take them in; fewer make it slower."""
FIT_BYTES = 24 * 2**20
"""Memory of embeddings from which on fewer will do."""


def batch_size(input_size: Size, hierarchy: Hierarchy | None = None) -> int:
    """Images per step: 32 of 256 x 256, fewer of larger ones, or of larger embeddings."""
    size = min(32, BATCH_PIXELS // math.prod(input_size))
    if hierarchy is not None:
        size = min(size, FIT_BYTES // (4 * sum(level.n_positions * level.n_channels for level in hierarchy.levels)))
    return max(1, size)


def batches(images: Iterator[Loaded], size: int) -> Iterator[list[Loaded]]:
    """Images in lists of so many."""
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ParameterError(f"batch_size must be a number from 1, got {size!r}")
    while batch := list(islice(images, size)):
        yield batch


def learn(
    backbone: Backbone,
    hierarchy: Hierarchy,
    images: Iterator[list[Loaded]],
    advance: Callable[[int], None],
    *,
    probe: Probe | None = None,
    groups: Sequence[Hashable] = (),
    keep: Callable[[list[Tensor]], None] | None = None,
) -> Moments:
    """Moments of all images; a `probe` is shown them too, with their groups, a list that grows as they are read.

    `keep` is shown each batch's embeddings, per level (positions, B, d).
    """
    moments = Moments.empty(hierarchy, backbone.device)
    pending: list[list[Tensor]] = []
    n_read = 0
    for batch in images:
        columns = embed(backbone, hierarchy, batch)
        if probe is not None:
            probe.take(columns, groups[n_read : n_read + len(batch)])
        if keep is not None:
            keep(columns)
        n_read += len(batch)
        pending.append(columns)
        n_bytes = sum(part.nbytes for part in columns)
        if sum(part[0].shape[1] for part in pending) >= FIT_BATCH or (len(pending) + 1) * n_bytes > FIT_BYTES:
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


def map_batch(batch: Sequence[Loaded], distances: Tensor, input_size: Size) -> tuple[Tensor, Tensor]:
    """Anomaly maps (B, H, W) and image scores (B,) of a batch, on the CPU, from patch distances (B, h, w)."""
    return score_maps(batch, anomaly_maps(distances, input_size).cpu())


def score_maps(batch: Sequence[Loaded], maps: Tensor) -> tuple[Tensor, Tensor]:
    """The same from maps whose padding is still to be left out, in place."""
    for image, anomaly_map in zip(batch, maps, strict=True):
        blank_padding(anomaly_map, image.placement.content)
    return maps, image_scores(maps)


def embed(backbone: Backbone, hierarchy: Hierarchy, batch: Sequence[Loaded]) -> list[Tensor]:
    """Embeddings of a batch, per level (positions, B, d)."""
    columns: list[Tensor] = []
    for here, maps in _in_parts(backbone, batch):  # in place: all parts beside the whole would take twice the memory
        for level, part in enumerate(hierarchy.select(maps)):
            if here.start == 0:
                columns.append(part.new_empty(len(part), len(batch), part.shape[2]))
            columns[level][:, here] = part
    check_finite(columns, batch)
    return columns


def feature_maps(backbone: Backbone, batch: Sequence[Loaded]) -> list[Tensor]:
    """Feature maps (B, C, h, w) of each layer, finite."""
    whole: list[Tensor] = []
    for here, maps in _in_parts(backbone, batch):
        for layer, part in enumerate(maps):
            if here.start == 0:
                whole.append(part.new_empty(len(batch), *part.shape[1:]))
            whole[layer][here] = part
    check_finite(whole, batch)
    return whole


def _in_parts(backbone: Backbone, batch: Sequence[Loaded]) -> Iterator[tuple[slice, list[Tensor]]]:
    """Feature maps of a few images at a time, and which of the batch they are."""
    pixels = pixels_of(batch)
    size = AT_ONCE if backbone.device.type == "cpu" else len(batch)
    for start in range(0, len(batch), size):
        here = slice(start, start + size)
        yield here, backbone.features(pixels[here])


def pool(backbone: Backbone, batch: Sequence[Loaded]) -> list[NDArray[np.float32]]:
    """Each layer's features, averaged over the whole image: (B, C) per layer."""
    return [features.mean(dim=(2, 3)).cpu().numpy() for features in feature_maps(backbone, batch)]


def pixels_of(batch: Sequence[Loaded]) -> NDArray[np.uint8]:
    """Images (B, h, w, 3) uint8 of a batch."""
    return np.stack([image.pixels for image in batch])


def check_finite(features: Sequence[Tensor], batch: Sequence[Loaded]) -> None:
    """Raise TrainingSetError for NaN or infinity in what comes from a backbone."""
    if not all(bool(torch.isfinite(part.sum())) for part in features):
        raise TrainingSetError(
            f"the backbone's features are not finite for the images from {batch[0].name} on; its weights may be damaged"
        )


def _join(parts: Sequence[list[Tensor]]) -> list[Tensor]:
    """Batches of embeddings, per level, as one."""
    if len(parts) == 1:
        return parts[0]
    return [torch.cat(columns, dim=1) for columns in zip(*parts, strict=True)]


def blank_padding(anomaly_map: Tensor, content: tuple[int, int, int, int]) -> None:
    """Zero what a letterbox added, in place: no part is there to be judged."""
    top, left, bottom, right = content
    anomaly_map[:top], anomaly_map[bottom:] = 0, 0
    anomaly_map[:, :left], anomaly_map[:, right:] = 0, 0
