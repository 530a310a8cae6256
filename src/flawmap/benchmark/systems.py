"""The systems of the paper's tables: each a name and how to make its detectors.

A detector of any kind that keeps to `flawmap.detectors.Detector` is one entry in `systems`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from flawmap.backbones import load_backbone
from flawmap.detectors import PRESETS, Detector, PaDiM

__all__ = ["ABLATIONS", "Settings", "System", "main_name", "systems"]

ABLATIONS = ("layer1", "layer2", "layer3", "sum", "all", "Rd100", "PCA100", "Rd200", "PCA200")
"""Tables I and II, all of one backbone: its layers alone, the sum of their maps, all concatenated; fewer channels."""

IN_PAPER = {
    "resnet18": "PaDiM-R18",
    "wide_resnet50_2": "PaDiM-WR50",
    "efficientnet_b5": "PaDiM-EfficientNet-B5",
}


@dataclass(frozen=True)
class Settings:
    """What all runs of a results folder have in common.

    Attributes:
        backbone: of tables I and II, and of the systems that the paper builds on ResNet-18.
        weights: its weights file; None to look for it on this machine.
        pretrained: False for random weights, of every backbone.
        regularization: "paper", "auto", or as `PaDiM` takes it.
        stride: every so many images of each clip, or of the class, are used.
    """

    backbone: str = "resnet18"
    weights: str | None = None
    pretrained: bool = True
    regularization: Any = "paper"
    stride: int = 1


@dataclass(frozen=True)
class System:
    """A row of the tables.

    Attributes:
        name: as the tables have it.
        make: unfitted detectors, whose maps are summed, from a seed and the size of their input (`resize`, `crop`).
        is_random: whether seeds make a difference.
    """

    name: str
    make: Callable[[int, dict[str, Any]], Sequence[Detector]]
    is_random: bool = False


def main_name(settings: Settings, system: str) -> str:
    """The name in tables III to VI of an ablation of the backbone of the settings, such as PaDiM-R18-Rd100."""
    return f"{IN_PAPER.get(settings.backbone, f'PaDiM-{settings.backbone}')}-{system}"


def systems(settings: Settings) -> dict[str, System]:
    """All that can be run, by name."""
    layers = load_backbone(settings.backbone, pretrained=False).layers
    common = {
        "regularization": settings.regularization,
        "pretrained": settings.pretrained,
        "calibrate": None,
    }
    own = {"backbone": settings.backbone, "weights": settings.weights, **common}

    def padim(seed: int, size: dict[str, Any], *, parts: Sequence[Sequence[str]], **options: Any) -> Sequence[PaDiM]:  # noqa: ANN401
        return [PaDiM(layers=part, seed=seed, **size, **own, **options) for part in parts]

    def preset(seed: int, size: dict[str, Any], *, name: str) -> Sequence[PaDiM]:
        return [PaDiM(**{**PRESETS[name], "seed": seed, **size, **common})]

    known = [
        *(System(f"layer{i}", partial(padim, parts=[[layer]])) for i, layer in enumerate(layers, start=1)),
        System("sum", partial(padim, parts=[[layer] for layer in layers])),
        System("all", partial(padim, parts=[layers])),
    ]
    for n_features in (100, 200):
        drawn = partial(padim, parts=[layers], n_features=n_features)
        known.append(System(f"Rd{n_features}", drawn, is_random=True))
        known.append(System(f"PCA{n_features}", partial(drawn, reduction="pca")))
    if settings.backbone != "wide_resnet50_2":
        known.append(System("PaDiM-WR50-Rd550", partial(preset, name="padim-wr50-rd550"), is_random=True))
    if settings.backbone != "efficientnet_b5":
        known.append(System("PaDiM-EfficientNet-B5", partial(preset, name="padim-effnet-b5")))
    return {system.name: system for system in known}
