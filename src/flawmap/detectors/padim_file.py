"""A PaDiM model as tensors, and what its file must hold to be trusted: consistent shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from flawmap.decision import Decision
from flawmap.detectors.calibration import decision_shapes, decision_tensors, restore_decision
from flawmap.embedding import Hierarchy, build_hierarchy
from flawmap.errors import ParameterError
from flawmap.gaussian import Factor
from flawmap.model_file import Document, ModelFile
from flawmap.records import Size

__all__ = ["MAX_POSITIONS", "described_hierarchy", "pack", "unpack"]

MAX_POSITIONS = 2**22
"""Finest grid that a model file may ask for."""


def described_hierarchy(document: Document, input_size: Size) -> Hierarchy:
    """The hierarchy that a document describes; ParameterError if it contradicts itself."""
    if not len(document.grids) == len(document.n_channels) == len(document.backbone.layers):
        raise ParameterError("layers, grids and channel counts differ in number")
    if any(math.prod(grid) > min(MAX_POSITIONS, math.prod(input_size)) for grid in document.grids):
        raise ParameterError("a grid is finer than the images")
    channels = np.array(document.channels, np.int64)
    if np.any(np.diff(channels) <= 0):
        raise ParameterError("channels are not ascending")
    return build_hierarchy(document.grids, document.n_channels, channels)


def pack(factor: Factor, decision: Decision | None, layers: Sequence[str]) -> dict[str, Tensor]:
    """A model's tensors by their names in the file."""
    tensors: dict[str, Tensor] = {}
    for i, level in enumerate(factor.hierarchy.levels):
        name = layers[level.layer]
        tensors[f"{name}.mean"], tensors[f"{name}.own"] = factor.mean[i], factor.own[i]
        if level.n_coarser:
            tensors[f"{name}.cross"] = factor.cross[i]
    return tensors | decision_tensors(decision)


def unpack(file: ModelFile, hierarchy: Hierarchy, device: torch.device) -> tuple[Factor, Decision | None]:
    """A file's Gaussians, on a device, and what it decides by."""
    layers, record = file.document.backbone.layers, file.document.decision
    tensors = file.read(_expected_shapes(hierarchy, layers) | decision_shapes(record), device)
    names = [layers[level.layer] for level in hierarchy.levels]
    coarsest = hierarchy.levels[0]
    no_cross = torch.empty(coarsest.n_cells, coarsest.n_channels, 0, device=device)
    factor = Factor(
        hierarchy.to(device),
        mean=[tensors[f"{name}.mean"] for name in names],
        cross=[no_cross, *(tensors[f"{name}.cross"] for name in names[1:])],
        own=[tensors[f"{name}.own"] for name in names],
    )
    return factor, restore_decision(record, tensors)


def _expected_shapes(hierarchy: Hierarchy, layers: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Shapes of a model file's tensors."""
    shapes: dict[str, tuple[int, ...]] = {}
    for level in hierarchy.levels:
        name = layers[level.layer]
        shapes[f"{name}.mean"] = (level.n_positions, level.n_channels)
        shapes[f"{name}.own"] = (level.n_cells, level.n_channels, level.n_channels)
        if level.n_coarser:
            shapes[f"{name}.cross"] = (level.n_cells, level.n_channels, level.n_coarser)
    return shapes
