"""What a model file says of the backbone and of the input, and that backbone with its very weights."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from flawmap.backbones import Backbone, Runtime, load_backbone
from flawmap.errors import WeightsError
from flawmap.images import Preprocessing
from flawmap.model_file import BackboneRecord, ModelFile, PreprocessingRecord

__all__ = ["backbone_record", "library_versions", "matching_backbone", "preprocessing_record"]


def backbone_record(backbone: Backbone, *, pretrained: bool, seed: int) -> BackboneRecord:
    """What a model file keeps of its backbone."""
    return BackboneRecord(
        name=backbone.name,
        layers=backbone.layers,
        pretrained=pretrained,
        seed=seed,
        weights=backbone.weights,
        weights_path=backbone.weights_path,
        sha256=backbone.sha256,
        precision=backbone.precision,
    )


def preprocessing_record(preprocessing: Preprocessing) -> PreprocessingRecord:
    """What a model file keeps of how images become its input."""
    return PreprocessingRecord(resize=preprocessing.resize, crop=preprocessing.crop, aspect=preprocessing.aspect)


def library_versions(*others: str) -> dict[str, str]:
    """Versions of the libraries that shape a model."""
    return {name: version(name) for name in ("flawmap", "numpy", "pillow", "timm", "torch", *others)}


def matching_backbone(
    file: ModelFile[Any], weights: str | os.PathLike[str] | None, device: torch.device | str, runtime: Runtime
) -> Backbone:
    """The backbone with the very weights the model was fitted with; others would give wrong scores in silence."""
    record = file.document.backbone
    candidates: list[str | os.PathLike[str] | None] = [weights]
    if weights is None and record.weights_path is not None:
        recorded = Path(record.weights_path)
        places = (recorded, file.path.parent / recorded.name)
        candidates = [*(path for path in places if os.path.isfile(path)), None]  # noqa: PTH113 (it may be too long)
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
                runtime=runtime,
                precision=record.precision,
                most_layers=len(record.layers),
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
