"""A PaDiM model as tensors, and what its file must hold to be trusted: consistent shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from flawmap.decision import Decision
from flawmap.detectors.decision_file import decision_record, decision_shapes, decision_tensors, restore_decision
from flawmap.detectors.model_backbone import backbone_record, library_versions, preprocessing_record
from flawmap.detectors.padim.embedding import Hierarchy, Level, build_hierarchy, project_hierarchy
from flawmap.detectors.padim.gaussian import Factor
from flawmap.errors import ParameterError
from flawmap.model_file import Document, FactorDtype, ModelFile, RegularizationRecord, is_finite
from flawmap.prediction import Size

if TYPE_CHECKING:
    from flawmap.detectors.padim.detector import PaDiM

__all__ = ["MAX_POSITIONS", "describe_model", "described_hierarchy", "pack", "unpack"]

MAX_POSITIONS = 2**22
"""Finest grid that a model file may ask for."""
COMPONENTS = "pca.components"
"""Tensor (channels, n_features) of a model reduced by principal components."""


def describe_model(model: PaDiM, factor_dtype: FactorDtype = "float32") -> Document:
    """The document of a fitted model's file."""
    backbone = model.backbone_
    return Document(
        detector="padim",
        backbone=backbone_record(backbone, pretrained=model.pretrained, seed=model.seed),
        preprocessing=preprocessing_record(model.preprocessing),
        grids=tuple(grid for _, grid in model.shapes_),
        n_channels=tuple(n for n, _ in model.shapes_),
        channels=tuple(model.channels_.tolist()),
        n_features=model.n_features,
        reduction=model.reduction,
        seed=model.seed,
        regularization=RegularizationRecord(
            ridge=model.regularization_.ridge,
            sharing=model.regularization_.sharing,
            chosen="auto" if model.regularization == "auto" else "given",
        ),
        n_images=model.n_images_,
        decision=decision_record(model.decision_, model.calibrate or "leave-one-out"),
        factor_dtype=factor_dtype,
        versions=library_versions(),
    )


def described_hierarchy(document: Document, input_size: Size) -> Hierarchy:
    """The hierarchy that a document describes; ParameterError if it contradicts itself."""
    if not len(document.grids) == len(document.n_channels) == len(document.backbone.layers):
        raise ParameterError("layers, grids and channel counts differ in number")
    if any(math.prod(grid) > min(MAX_POSITIONS, math.prod(input_size)) for grid in document.grids):
        raise ParameterError("a grid is finer than the images")
    channels = np.array(document.channels, np.int64)
    if np.any(np.diff(channels) <= 0):
        raise ParameterError("channels are not ascending")
    if document.reduction == "pca":
        n_total = sum(document.n_channels)
        if not 1 <= (document.n_features or 0) <= n_total or len(channels) != n_total:
            raise ParameterError(f"{document.n_features} principal components of {len(channels)} of {n_total} channels")
        return project_hierarchy(document.grids, torch.empty(n_total, document.n_features or 0))
    return build_hierarchy(document.grids, document.n_channels, channels)


def pack(
    factor: Factor, decision: Decision | None, layers: Sequence[str], dtype: FactorDtype = "float32"
) -> dict[str, Tensor]:
    """A model's tensors by their names in the file, the factors in `dtype`; ParameterError if they do not fit it."""
    tensors: dict[str, Tensor] = {}
    if factor.hierarchy.projection is not None:
        tensors[COMPONENTS] = factor.hierarchy.projection.components
    for i, level in enumerate(factor.hierarchy.levels):
        name = _level_name(factor.hierarchy, level, layers)
        tensors[f"{name}.mean"], tensors[f"{name}.own"] = factor.mean[i], _as_stored(factor.own[i], dtype)
        if level.n_coarser:
            tensors[f"{name}.cross"] = _as_stored(factor.cross[i], dtype)
    return tensors | decision_tensors(decision)


def _level_name(hierarchy: Hierarchy, level: Level, layers: Sequence[str]) -> str:
    return layers[level.layer] if hierarchy.projection is None else "pca"


def _as_stored(factor: Tensor, dtype: FactorDtype) -> Tensor:
    stored: Tensor = factor.to(getattr(torch, dtype))
    if not is_finite(stored):
        raise ParameterError("the factors hold numbers beyond float16; save with dtype='bfloat16'")
    return stored


def unpack(file: ModelFile, hierarchy: Hierarchy, device: torch.device) -> tuple[Factor, Decision | None]:
    """A file's Gaussians, on a device, and what it decides by."""
    layers, record = file.document.backbone.layers, file.document.decision
    tensors = file.read(_expected_shapes(hierarchy, layers) | decision_shapes(record), device)
    names = [_level_name(hierarchy, level, layers) for level in hierarchy.levels]
    if hierarchy.projection is not None:
        hierarchy = replace(hierarchy, projection=replace(hierarchy.projection, components=tensors[COMPONENTS]))
    coarsest = hierarchy.levels[0]
    no_cross = torch.empty(coarsest.n_cells, coarsest.n_channels, 0, device=device)
    factor = Factor(
        hierarchy.to(device),
        mean=[tensors[f"{name}.mean"] for name in names],
        cross=[no_cross, *(tensors[f"{name}.cross"] for name in names[1:])],
        own=[tensors[f"{name}.own"] for name in names],
    )
    return factor, restore_decision(file, tensors)


def _expected_shapes(hierarchy: Hierarchy, layers: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Shapes of a model file's tensors."""
    shapes: dict[str, tuple[int, ...]] = {}
    if hierarchy.projection is not None:
        shapes[COMPONENTS] = tuple(hierarchy.projection.components.shape)
    for level in hierarchy.levels:
        name = _level_name(hierarchy, level, layers)
        shapes[f"{name}.mean"] = (level.n_positions, level.n_channels)
        shapes[f"{name}.own"] = (level.n_cells, level.n_channels, level.n_channels)
        if level.n_coarser:
            shapes[f"{name}.cross"] = (level.n_cells, level.n_channels, level.n_coarser)
    return shapes
