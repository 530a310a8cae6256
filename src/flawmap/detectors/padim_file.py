"""What a PaDiM model file must hold to be trusted: consistent shapes, and the very weights it was fitted with."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from flawmap.backbones import Backbone, load_backbone
from flawmap.decision import PIXEL_RATES
from flawmap.embedding import Hierarchy, build_hierarchy
from flawmap.errors import ParameterError, WeightsError
from flawmap.model_file import Document, ModelFile
from flawmap.records import Size

__all__ = ["MAX_POSITIONS", "described_hierarchy", "expected_shapes", "matching_backbone"]

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


def expected_shapes(hierarchy: Hierarchy, layers: Sequence[str], n_scores: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a model file's tensors."""
    shapes: dict[str, tuple[int, ...]] = {}
    for level in hierarchy.levels:
        name = layers[level.layer]
        shapes[f"{name}.mean"] = (level.n_positions, level.n_channels)
        shapes[f"{name}.own"] = (level.n_cells, level.n_channels, level.n_channels)
        if level.n_coarser:
            shapes[f"{name}.cross"] = (level.n_cells, level.n_channels, level.n_coarser)
    if n_scores:
        shapes["calibration.scores"] = (n_scores,)
        shapes["calibration.pixel_quantiles"] = (len(PIXEL_RATES),)
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
