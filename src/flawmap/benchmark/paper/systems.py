"""The systems of the paper's tables: each a name and how to make its detectors.

A detector of any kind (`flawmap.detectors.Detector`) is one entry in `systems`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from flawmap.backbones import load_backbone, pick_device
from flawmap.detectors import ITAE, SPADE, VAE, Detector, GANomaly, MahalanobisAD, PaDiM, PatchSVDD
from flawmap.detectors.trained.detector import TrainedDetector
from flawmap.options import Calibration

OWN = {
    "Rd100": "PaDiM-{}-Rd100",
    "all": "PaDiM-{}-all",
    "SPADE here": "SPADE-{}",
    "MahalanobisAD here": "MahalanobisAD-{}",
}
"""Systems of the settings' backbone, and their names in tables that compare whole systems."""

TRAINED: dict[str, type[TrainedDetector[Any]]] = {
    "VAE": VAE,
    "Patch SVDD": PatchSVDD,
    "GANomaly": GANomaly,
    "ITAE": ITAE,
}
"""Systems that train a network, once for each class."""

SHORT = {"resnet18": "R18", "wide_resnet50_2": "WR50", "efficientnet_b5": "EfficientNet-B5"}
"""Backbones as the paper abbreviates them."""


@dataclass(frozen=True)
class Settings:
    """Settings of all runs of a results folder.

    Attributes:
        backbone: backbone of tables I and II, and of the systems that the paper builds on ResNet-18.
        weights: its weights file; None to look for it on this machine. Such a file may end with the last layer that
            PaDiM uses: SPADE and MahalanobisAD then use PaDiM's layers.
        pretrained: False for random weights, of every backbone.
        regularization: "paper", "likelihood", or any other value of `PaDiM` but "auto".
        stride: use every `stride`-th image of each clip, or of the class.
        budget: minutes for which each trained system may train on a class; None for its paper's schedule, which needs
            a GPU: without either they are left out.
        trained_size: side of the input of trained systems; None for that of their papers.
    """

    backbone: str = "resnet18"
    weights: str | None = None
    pretrained: bool = True
    regularization: Any = "paper"
    stride: int = 1
    budget: float | None = None
    trained_size: int | None = None

    @property
    def can_train(self) -> bool:
        """Whether trained systems are run."""
        return self.budget is not None or pick_device("auto").type != "cpu"


@dataclass(frozen=True)
class System:
    """A row of the tables.

    Attributes:
        name: as the tables have it.
        make: unfitted detectors, whose maps are summed, from a seed and the size of their input (`resize`, `crop`).
        is_random: whether the result depends on the seed.
    """

    name: str
    make: Callable[[int, Mapping[str, Any]], Sequence[Detector]]
    is_random: bool = False


def own_name(settings: Settings, system: str) -> str:
    """The name of a system of the settings' backbone where whole systems are compared, such as PaDiM-R18-Rd100."""
    name = OWN[system].format(SHORT.get(settings.backbone, settings.backbone))
    if settings.weights is not None and not system.startswith(("Rd", "all")):
        name += f" ({_layers(settings)[-1]} pooled)" if system == "SPADE here" else " (PaDiM's layers)"
    return name


def systems(settings: Settings, *, n_neighbors: int | None = None) -> dict[str, System]:
    """All systems, by name; `n_neighbors` is SPADE's K, None for that of MVTec AD."""
    layers = _layers(settings)
    plain: dict[str, Any] = {"pretrained": settings.pretrained, "reading": "whole"}
    regularized = {**plain, "regularization": settings.regularization, "score": "max", "align": "none"}
    own = {"backbone": settings.backbone, "weights": settings.weights}
    padim = {**own, **regularized}
    # a weights file may end with PaDiM's last layer
    levels, image_layer = (None, None) if settings.weights is None else (layers, layers[-1])
    known = [_system(f"layer{i}", PaDiM, {**padim, "layers": [layer]}) for i, layer in enumerate(layers, start=1)]
    known.append(_system("sum", PaDiM, *({**padim, "layers": [layer]} for layer in layers)))
    known.append(_system("all", PaDiM, {**padim, "layers": layers}))
    for n_features in (100, 200):
        drawn = {**padim, "layers": layers, "n_features": n_features}
        known.append(_system(f"Rd{n_features}", PaDiM, drawn, is_random=True))
        known.append(_system(f"PCA{n_features}", PaDiM, {**drawn, "reduction": "pca"}))
    if settings.backbone != "wide_resnet50_2":
        known.append(_system("PaDiM-WR50-Rd550", PaDiM, regularized, preset="padim-wr50-rd550", is_random=True))
        pooled = {"image_layer": image_layer, "variant": "paper", "n_neighbors": n_neighbors}
        known.append(_system("SPADE here", SPADE, {**own, **plain, **pooled}, calibrate="leave-one-out"))
    if settings.backbone != "efficientnet_b5":
        known.append(_system("PaDiM-EfficientNet-B5", PaDiM, regularized, preset="padim-effnet-b5"))
    if settings.backbone != "efficientnet_b4":
        parameters = {**own, **plain, "layers": levels}
        known.append(_system("MahalanobisAD here", MahalanobisAD, parameters, calibrate="leave-one-out"))
    neighbors = {} if n_neighbors is None else {"n_neighbors": n_neighbors}
    left_out: dict[str, Any] = {"calibrate": "leave-one-out"}
    known.append(_system("SPADE", SPADE, {**plain, **neighbors}, preset="spade-wr50", **left_out))
    effnet: dict[str, Any] = {"preset": "mahalanobis-ad-effnet-b4", "own_size": True}
    known.append(_system("MahalanobisAD", MahalanobisAD, plain, **effnet, **left_out))
    return {system.name: system for system in [*known, *_trained_systems(settings)]}


def systems_without_data() -> dict[str, System]:
    """Systems for measuring time and memory: backbones untrained, trained systems after one step."""
    settings = Settings(pretrained=False)
    known = systems(settings) | {system.name: system for system in _trained_systems(settings, steps=1)}
    return {**known, "PaDiM-R18-Rd100": known["Rd100"]}


def _trained_systems(settings: Settings, *, steps: int | None = None) -> list[System]:
    size = {} if settings.trained_size is None else {"resize": settings.trained_size}
    parameters = {**size, "budget": settings.budget, "steps": steps}
    return [_system(name, kind, parameters, own_size=True) for name, kind in TRAINED.items()]


def _system(
    name: str,
    kind: type[Detector],
    *parts: Mapping[str, Any],
    preset: str | None = None,
    own_size: bool = False,
    is_random: bool = False,
    calibrate: Calibration | None = None,
) -> System:
    """A system of one detector for each of `parts`, which are parameters; `own_size`: at the size of its own paper.

    PaDiMs share their features, and get held-out scores there. A network learns from all good images, as in its paper.
    """
    new = kind if preset is None else partial(kind.from_preset, preset)

    def make(seed: int, size: Mapping[str, Any]) -> Sequence[Detector]:
        given = {"seed": seed, "calibrate": calibrate, **({} if own_size else size)}
        return [new(**given, **part) for part in parts]

    return System(name, make, is_random)


def _layers(settings: Settings) -> Sequence[str]:
    return load_backbone(settings.backbone, pretrained=False).layers
