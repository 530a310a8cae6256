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

__all__ = ["ABLATIONS", "OWN", "TRAINED", "Settings", "System", "own_name", "systems", "systems_without_data"]

ABLATIONS = ("layer1", "layer2", "layer3", "sum", "all", "Rd100", "PCA100", "Rd200", "PCA200")
"""Tables I and II, all of one backbone: its layers alone, the sum of their maps, all concatenated; fewer channels."""

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
        regularization: "paper", "auto", or any other value of `PaDiM`.
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
    shared: dict[str, Any] = {"pretrained": settings.pretrained, "calibrate": None}
    common = {"regularization": settings.regularization, **shared}
    backbone: dict[str, Any] = {"backbone": settings.backbone, "weights": settings.weights}

    def padim(seed: int, size: Mapping[str, Any], *, parts: Sequence[Sequence[str]], **options: Any) -> Sequence[PaDiM]:  # noqa: ANN401
        return [PaDiM(layers=part, seed=seed, **size, **backbone, **common, **options) for part in parts]

    def preset(seed: int, size: Mapping[str, Any], *, name: str) -> Sequence[PaDiM]:
        return [PaDiM.from_preset(name, **{"seed": seed, **size, **common})]

    def spade(seed: int, size: Mapping[str, Any]) -> Sequence[SPADE]:
        image_layer = None if settings.weights is None else layers[-1]
        options = {**size, **backbone, **shared, "n_neighbors": n_neighbors}
        return [SPADE(image_layer=image_layer, variant="paper", seed=seed, **options)]

    def spade_preset(seed: int, size: Mapping[str, Any]) -> Sequence[SPADE]:
        options = size if n_neighbors is None else {**size, "n_neighbors": n_neighbors}
        return [SPADE.from_preset("spade-wr50", seed=seed, **options, **shared)]

    def mahalanobis_ad(seed: int, size: Mapping[str, Any]) -> Sequence[MahalanobisAD]:
        levels = None if settings.weights is None else layers
        return [MahalanobisAD(layers=levels, seed=seed, **size, **backbone, **shared)]

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
        known.append(System("SPADE here", spade))
    if settings.backbone != "efficientnet_b5":
        known.append(System("PaDiM-EfficientNet-B5", partial(preset, name="padim-effnet-b5")))
    if settings.backbone != "efficientnet_b4":
        known.append(System("MahalanobisAD here", mahalanobis_ad))
    known.append(System("SPADE", spade_preset))
    known.append(System("MahalanobisAD", partial(_mahalanobis_ad_preset, **shared)))
    known += [System(name, partial(_trained, settings, name)) for name in TRAINED]
    return {system.name: system for system in known}


def systems_without_data() -> dict[str, System]:
    """Systems for measuring time and memory: backbones untrained, trained systems after one step."""
    settings = Settings(pretrained=False)
    known = systems(settings)
    known["PaDiM-R18-Rd100"] = known["Rd100"]
    for name in TRAINED:
        known[name] = System(name, partial(_trained, settings, name, steps=1))
    return known


def _layers(settings: Settings) -> Sequence[str]:
    return load_backbone(settings.backbone, pretrained=False).layers


def _mahalanobis_ad_preset(seed: int, _size: Mapping[str, Any], **options: Any) -> Sequence[MahalanobisAD]:  # noqa: ANN401
    """At the size of the network's own training, as in its paper."""
    return [MahalanobisAD.from_preset("mahalanobis-ad-effnet-b4", seed=seed, **options)]


def _trained(
    settings: Settings, name: str, seed: int, _size: Mapping[str, Any], *, steps: int | None = None
) -> Sequence[Detector]:
    """At the size of its own paper, unless the settings have another."""
    size = {} if settings.trained_size is None else {"resize": settings.trained_size}
    return [TRAINED[name](seed=seed, **size, budget=settings.budget, steps=steps, calibrate=None)]
