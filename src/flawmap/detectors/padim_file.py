"""A PaDiM model as tensors, and what its file must hold to be trusted: consistent shapes, the very weights it knew."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from flawmap.backbones import Backbone, load_backbone
from flawmap.decision import PIXEL_RATES, Decision
from flawmap.embedding import Hierarchy, Level, build_hierarchy, project_hierarchy
from flawmap.errors import ModelFileError, ParameterError, WeightsError
from flawmap.gaussian import Factor
from flawmap.model_file import (
    BackboneRecord,
    DecisionRecord,
    Document,
    FactorDtype,
    ModelFile,
    PreprocessingRecord,
    RegularizationRecord,
)
from flawmap.records import Size

if TYPE_CHECKING:
    from flawmap.detectors.padim import PaDiM

__all__ = ["MAX_POSITIONS", "describe_model", "described_hierarchy", "matching_backbone", "pack", "unpack"]

MAX_POSITIONS = 2**22
"""Finest grid that a model file may ask for."""
COMPONENTS = "pca.components"
"""Tensor (channels, n_features) of a model reduced by principal components."""


def describe_model(model: PaDiM, factor_dtype: FactorDtype = "float32") -> Document:
    """The document of a fitted model's file."""
    backbone, preprocessing = model.backbone_, model.preprocessing
    return Document(
        detector="padim",
        backbone=BackboneRecord(
            name=backbone.name,
            layers=backbone.layers,
            pretrained=model.pretrained,
            seed=model.seed,
            weights=backbone.weights,
            weights_path=backbone.weights_path,
            sha256=backbone.sha256,
            precision=backbone.precision,
        ),
        preprocessing=PreprocessingRecord(
            resize=preprocessing.resize, crop=preprocessing.crop, aspect=preprocessing.aspect
        ),
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
        decision=None
        if model.decision_ is None
        else DecisionRecord(
            method=model.calibrate or "leave-one-out",
            grouped=model.decision_.group_sizes is not None,
            n_scores=len(model.decision_.scores),
            threshold=model.decision_.threshold,
            false_alarm_rate=model.decision_.false_alarm_rate,
            pixel_false_alarm_rate=model.decision_.pixel_false_alarm_rate,
        ),
        factor_dtype=factor_dtype,
        versions={name: version(name) for name in ("flawmap", "numpy", "pillow", "timm", "torch")},
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
    if decision is not None:
        tensors["calibration.scores"] = torch.from_numpy(decision.scores)
        tensors["calibration.pixel_quantiles"] = torch.from_numpy(decision.pixel_quantiles)
        if decision.group_sizes is not None:
            tensors["calibration.group_sizes"] = torch.from_numpy(decision.group_sizes)
    return tensors


def _level_name(hierarchy: Hierarchy, level: Level, layers: Sequence[str]) -> str:
    return layers[level.layer] if hierarchy.projection is None else "pca"


def _as_stored(factor: Tensor, dtype: FactorDtype) -> Tensor:
    stored: Tensor = factor.to(getattr(torch, dtype))
    if not bool(torch.isfinite(stored.sum(dtype=torch.float64))):
        raise ParameterError("the factors hold numbers beyond float16; save with dtype='bfloat16'")
    return stored


def unpack(file: ModelFile, hierarchy: Hierarchy, device: torch.device) -> tuple[Factor, Decision | None]:
    """A file's Gaussians, on a device, and what it decides by."""
    layers, record = file.document.backbone.layers, file.document.decision
    tensors = file.read(_expected_shapes(hierarchy, layers, record), device)
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
    if record is None:
        return factor, None
    if record.grouped and bool((tensors["calibration.group_sizes"] < 1).any()):
        raise ModelFileError(f"{file.path}: no whole flawmap model file: empty groups; fit again or take a backup")
    decision = Decision(
        tensors["calibration.scores"].cpu().numpy(),
        tensors["calibration.pixel_quantiles"].cpu().numpy(),
        record.threshold,
        record.false_alarm_rate,
        record.pixel_false_alarm_rate,
        tensors["calibration.group_sizes"].cpu().numpy() if record.grouped else None,
    )
    return factor, decision


def _expected_shapes(
    hierarchy: Hierarchy, layers: Sequence[str], decision: DecisionRecord | None
) -> dict[str, tuple[int, ...]]:
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
    if decision is not None:
        shapes["calibration.scores"] = (decision.n_scores,)
        shapes["calibration.pixel_quantiles"] = (len(PIXEL_RATES),)
        if decision.grouped:
            shapes["calibration.group_sizes"] = (decision.n_scores,)
    return shapes


def matching_backbone(file: ModelFile, weights: str | os.PathLike[str] | None, device: torch.device | str) -> Backbone:
    """The backbone with the very weights the model was fitted with; others would give wrong scores in silence."""
    record = file.document.backbone
    candidates: list[str | os.PathLike[str] | None] = [weights]
    if weights is None and record.weights_path is not None:
        recorded = Path(record.weights_path)
        candidates = [path for path in (recorded, file.path.parent / recorded.name) if path.is_file()] + [None]
    problem = ""
    for candidate in candidates:
        try:
            backbone = load_backbone(
                record.name,
                layers=record.layers,
                pretrained=record.pretrained,
                weights=candidate,
                seed=record.seed,
                device=device,
                precision=record.precision,
            )
        except WeightsError as error:
            problem = str(error)
            continue
        if backbone.sha256 == record.sha256:
            return backbone
        problem = f"those found ({backbone.weights or 'random, of another torch version'}) are others"
    raise WeightsError(
        f"{file.path}: was fitted with the {record.name} weights of '{record.weights or 'a random draw'}' (SHA-256 of "
        f"its layers {record.sha256[:12]}...), which are needed again: {problem}. Give that file with --weights PATH, "
        f"put it beside the model, or fit again"
    )
