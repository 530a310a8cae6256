"""How PaDiM learns: one pass over good images for the Gaussians, one over the same images for held-out scores."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from flawmap.backbones import Backbone
from flawmap.detectors.batches import KeptEmbeddings, batch_size, check_finite
from flawmap.detectors.calibration import HeldOutScores
from flawmap.detectors.good_images import GoodImages
from flawmap.detectors.padim.embedding import (
    Hierarchy,
    build_hierarchy,
    draw_channels,
    embed,
    finest_grid,
    nearest_positions,
    project_hierarchy,
    shown_cells,
)
from flawmap.detectors.padim.gaussian.factor import Factor, factorise
from flawmap.detectors.padim.gaussian.leave_one_out import Probe, choose_regularization
from flawmap.detectors.padim.gaussian.moments import Moments, Regularization, principal_components, update
from flawmap.detectors.padim.leave_one_out import Calibrator, Likeness, is_large
from flawmap.detectors.padim.sharing import FEWEST_IMAGES, choose_sharing
from flawmap.errors import ParameterError, TrainingSetError
from flawmap.options import MIN_IMAGES, Calibration
from flawmap.prediction import Size

FIT_BATCH = 64
"""Embeddings that are gathered before the moments take them in; fewer make it slower."""
FIT_BYTES = 24 * 2**20
"""Memory of embeddings from which on fewer will do."""
CHUNK_BYTES = 64 * 2**20
"""How large a block of whole embeddings may be, of which principal components are learnt."""


@dataclass(frozen=True, eq=False)
class Learnt:
    """Gaussians, what regularised them, and held-out scores; None if not calibrated."""

    factor: Factor
    regularization: Regularization
    held_out: HeldOutScores | None


def learn(
    good: GoodImages,
    backbone: Backbone,
    hierarchy: Hierarchy,
    input_size: Size,
    *,
    regularization: Regularization | None,
    calibrate: Calibration | None,
    refit_below: int,
    top_share: float,
    trial_seed: int | None = None,
) -> Learnt:
    """Learn from good images, with an embedding that is on the backbone's device.

    `regularization` None: it is chosen by the leave-one-out likelihood, and with `trial_seed` its sharing by pasted
    defects, drawn by that seed, if there are enough images that can be read again. Of fewer than `refit_below` images
    each is left out by a refit. `top_share` is the part of a map whose mean is its score, if all of it is inspected.
    """
    size = _step(input_size, hierarchy)
    kept = KeptEmbeddings(good.replay.reserve if calibrate == "leave-one-out" else None)
    probe = Probe(hierarchy)
    likeness = Likeness(probe.positions, probe.n_members)
    moments = _learn_moments(good, backbone, hierarchy, size, probe=probe, likeness=likeness, kept=kept)
    likeness.learn(moments)
    likely = choose_regularization(moments, probe, good.grouping.groups)
    rule = regularization or likely
    if calibrate != "holdout" and (found := likeness.find(good.grouping.ungrouped, good.in_order, rule)):
        good.grouping.join(found)
        likely = choose_regularization(moments, probe, good.grouping.groups)
    if regularization is None and trial_seed is not None and len(good.readable) >= FEWEST_IMAGES:
        regularization = choose_sharing(
            moments, likely, good, backbone, input_size, kept=kept, top_share=top_share, seed=trial_seed
        )
    regularization = regularization or likely
    count, seen = moments.count, moments.seen
    groups = _groups_to_score(good, calibrate)
    refits = calibrate == "leave-one-out" and any(
        is_large(len(group), count, refit_below, n_together=probe.n_members) for group in groups
    )
    factor = factorise(moments, regularization=regularization, in_place=not refits)
    if not any(groups):
        return Learnt(factor, regularization, None)
    calibrator = Calibrator(
        backbone,
        factor,
        regularization,
        count,
        good,
        input_size,
        step=good.batch_size or size,
        kept=kept,
        seen=seen,
        take=lambda batch, seen: likeness.take(probe.at_positions(batch.embedding, seen), batch.indices),
        moments=moments if refits else None,
        refit_below=refit_below,
        top_share=top_share * factor.inspected,
    )
    del moments
    with good.progress("Calibrating", sum(map(len, groups))) as advance:
        score = calibrator.held_out if calibrate == "holdout" else calibrator.left_out
        held_out = score(groups, advance)
    held_out.duplicates = likeness.duplicates(good.grouping.groups)
    return Learnt(factor, regularization, held_out)


def _groups_to_score(good: GoodImages, calibrate: Calibration | None) -> list[list[int]]:
    """Indices of each group that is to be scored."""
    if calibrate is None or (calibrate == "leave-one-out" and len(good.names) < MIN_IMAGES):
        return []
    return good.groups(held_out=calibrate == "holdout")


def _step(input_size: Size, hierarchy: Hierarchy) -> int:
    """Images per step: fewer of large inputs, or of large embeddings."""
    n_bytes = 4 * sum(level.n_positions * level.n_channels for level in hierarchy.levels)
    return max(1, min(batch_size(input_size), FIT_BYTES // n_bytes))


def _learn_moments(
    good: GoodImages,
    backbone: Backbone,
    hierarchy: Hierarchy,
    size: int,
    *,
    probe: Probe,
    likeness: Likeness,
    kept: KeptEmbeddings,
) -> Moments:
    """Moments of all images; the probe, the likeness and what is kept get every batch too."""
    moments = Moments.empty(hierarchy, backbone.device, masked=good.aligned)
    pending: list[Sequence[Tensor]] = []
    masks: list[Tensor] = []
    for batch in good.first(size):
        columns = embed(backbone, hierarchy, batch.pixels)
        check_finite(columns, batch)
        seen = shown_cells(batch.pixels, hierarchy, backbone.device)
        picked = probe.at_positions(columns, seen)
        probe.take(picked, batch.indices)
        likeness.take(picked, batch.indices)
        kept.add(batch.indices, columns)
        pending.append(columns)
        masks += [] if seen is None else [seen]
        n_bytes = sum(part.nbytes for part in columns)
        if sum(part[0].shape[1] for part in pending) >= FIT_BATCH or (len(pending) + 1) * n_bytes > FIT_BYTES:
            update(moments, _join(pending), torch.cat(masks, dim=1) if masks else None)
            pending, masks = [], []
    if pending:
        update(moments, _join(pending), torch.cat(masks, dim=1) if masks else None)
    if moments.count < 2:
        raise TrainingSetError(
            f"PaDiM learns a spread and needs at least 2 good images, got {moments.count} usable; "
            f"a few dozen are a good start"
        )
    return moments


def _join(parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Batches of embeddings, per level, as one."""
    if len(parts) == 1:
        return list(parts[0])
    return [torch.cat(columns, dim=1) for columns in zip(*parts, strict=True)]


def choose_channels(
    n_total: int, reduction: str, n_features: int | None, channels: ArrayLike | None, seed: int
) -> NDArray[np.int64]:
    """Channels of `n_total` concatenated ones that are used, ascending: those given, a draw, or all.

    Principal components are of all. Raises ParameterError for parameters that contradict each other.
    """
    if reduction not in ("random", "pca"):
        raise ParameterError(f"reduction must be 'random' or 'pca', got {reduction!r}")
    if reduction == "pca":
        if n_features is None or channels is not None:
            raise ParameterError("reduction='pca' takes n_features, the number of components, and no channels")
        draw_channels(n_total, n_features, seed)  # as many components as channels can be drawn
        return np.arange(n_total)
    if channels is None:
        return draw_channels(n_total, n_features, seed)
    chosen = np.asarray(channels)
    if chosen.ndim != 1 or not np.issubdtype(chosen.dtype, np.integer):
        raise ParameterError(f"channels must be a list of integers, got shape {chosen.shape} of {chosen.dtype}")
    return np.sort(chosen.astype(np.int64))


def reduced_hierarchy(
    shapes: Sequence[tuple[int, Size]],
    channels: NDArray[np.int64],
    reduction: str,
    n_features: int | None,
    features: Iterable[Sequence[Tensor]],
) -> Hierarchy:
    """The embedding of layers of these channels and grids: of some channels, or of principal components of all.

    The latter are learnt from `features`, batches of the layers' maps, which are not looked at otherwise.
    """
    grids, n_channels = [grid for _, grid in shapes], [n for n, _ in shapes]
    if reduction == "random" or n_features is None:
        return build_hierarchy(grids, n_channels, channels)
    return project_hierarchy(grids, learn_components(features, n_features))


def learn_components(features: Iterable[Sequence[Tensor]], n_features: int) -> Tensor:
    """Principal components (C, n_features) of all patches of all images, from batches of their layers' maps, streaming.

    Patches of all positions count alike. Raises ParameterError for more components than channels.
    """
    moments: Moments | None = None
    for maps in features:
        n_channels = sum(part.shape[1] for part in maps)
        if moments is None:
            patches = build_hierarchy([(1, 1)], [n_channels], np.arange(n_channels))
            moments = Moments.empty(patches, maps[0].device)
        n_positions = max(part.shape[2] * part.shape[3] for part in maps)
        step = max(1, CHUNK_BYTES // (4 * n_channels * n_positions))
        for start in range(0, len(maps[0]), step):
            update(moments, [concatenate([part[start : start + step] for part in maps])[None]])
    if moments is None:
        raise TrainingSetError("PaDiM learns a spread and needs at least 2 good images, got 0 usable")
    return principal_components(moments, n_features)


def concatenate(features: Sequence[Tensor]) -> Tensor:
    """Whole embeddings (B * positions, C) of the finest grid from the layers' maps (B, C, h, w)."""
    grids = [(maps.shape[2], maps.shape[3]) for maps in features]
    finest = finest_grid(grids)
    repeated = [
        maps.flatten(2)[:, :, torch.from_numpy(nearest_positions(grid, finest)).to(maps.device)]
        for maps, grid in zip(features, grids, strict=True)
    ]
    return torch.cat(repeated, dim=1).transpose(1, 2).flatten(0, 1)
