"""Detectors: each learns from good images alone and scores new ones. The register, and `load`."""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from typing import Any

from flawmap.detectors.calibration import HeldOutScores
from flawmap.detectors.detector import Detector
from flawmap.detectors.document import Document, describe_document, read_decision, read_document
from flawmap.detectors.feature_detector import FeatureDetector
from flawmap.detectors.mahalanobis_ad import MahalanobisAD
from flawmap.detectors.padim import PaDiM
from flawmap.detectors.restoring import restore_detector
from flawmap.detectors.spade import SPADE
from flawmap.detectors.trained import ITAE, VAE, GANomaly, PatchSVDD, TrainedDetector
from flawmap.errors import ParameterError
from flawmap.model_file import ModelFile, damaged
from flawmap.options import COMMAND_OPTIONS, Runtime

__all__ = [
    "BUILT_IN",
    "DETECTORS",
    "ENTRY_POINTS",
    "ITAE",
    "SPADE",
    "VAE",
    "Detector",
    "FeatureDetector",
    "GANomaly",
    "HeldOutScores",
    "MahalanobisAD",
    "PaDiM",
    "PatchSVDD",
    "TrainedDetector",
    "all_detectors",
    "describe_file",
    "find_detector",
    "load",
    "register",
]

DETECTORS: dict[str, type[Detector]] = {
    kind.name: kind for kind in (PaDiM, SPADE, MahalanobisAD, VAE, PatchSVDD, GANomaly, ITAE)
}
"""Detectors by the name that model files and commands use."""
BUILT_IN = frozenset(DETECTORS)
ENTRY_POINTS = "flawmap.detectors"
"""Group of entry points by which an installed package adds detectors."""


def register(kind: type[Detector]) -> type[Detector]:
    """Make a detector known by its name: to model files, the command, presets, evaluation and export.

    Raises ParameterError for a name that another detector has.
    """
    if not (isinstance(kind, type) and issubclass(kind, Detector)):
        raise ParameterError(f"expected a class of detectors, got {kind!r}")
    if not isinstance(vars(kind).get("name"), str):
        raise ParameterError(f"{kind.__name__} needs a `name` of its own, by which model files and the command call it")
    if taken := sorted(kind.parameters_type.model_fields.keys() & COMMAND_OPTIONS):
        raise ParameterError(
            f"{kind.__name__}: `flawmap fit` has an option {taken[0]}; give the parameter another name"
        )
    known = DETECTORS.setdefault(kind.name, kind)
    if known is not kind and (known.__module__, known.__qualname__) != (kind.__module__, kind.__qualname__):
        raise ParameterError(f"there is a detector of the name {kind.name} already: {known.__qualname__}")
    DETECTORS[kind.name] = kind
    return kind


def all_detectors() -> list[type[Detector]]:
    """All detectors: built in, registered, and of installed packages."""
    for entry in entry_points(group=ENTRY_POINTS):
        if entry.name not in DETECTORS:
            register(entry.load())
    return list(DETECTORS.values())


def find_detector(name: str) -> type[Detector]:
    """The detector of a name: built in, registered, or of an installed package. Raises ParameterError."""
    if name not in DETECTORS:
        all_detectors()
    if name not in DETECTORS:
        raise ParameterError(f"unknown detector '{name}'; there are {', '.join(DETECTORS)}")
    return DETECTORS[name]


def load(
    path: str | os.PathLike[str],
    *,
    weights: str | os.PathLike[str] | None = None,
    device: str = "auto",
    runtime: Runtime = "auto",
    workers: int | None = None,
) -> Detector:
    """The model of a file that `save` or `flawmap fit` wrote, of the detector that it names.

    Args:
        path: the model file.
        weights: the backbone's weights file, if it was given to the fit and does not lie beside the model. A path that
            the model file names is never opened.
        device: "auto": a GPU where there is one, else the CPU.
        runtime: what runs the backbone: "torch", or "openvino" on the CPU; "auto" as in `PaDiM`. Torch runs a network
            that was trained.
        workers: threads that read images; None for one per processor, at most eight.

    Raises ModelFileError for a file that is damaged, hostile or too new, and WeightsError if the weights it was fitted
    with are not found.
    """
    file = ModelFile(path)
    document = read_document(file)
    kind = _kind_of(path, document)
    if weights is not None and "weights" not in kind.parameters_type.model_fields:
        raise ParameterError(f"{path}: holds the network that was trained, and needs no other weights")
    settings = {"weights": weights, "device": device, "runtime": runtime, "workers": workers}
    return restore_detector(kind, file, document, **settings)


def describe_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a model file says of itself, as plain JSON values, and whether it has checksums, which are checked.

    Raises ModelFileError.
    """
    file = ModelFile(path)
    document = read_document(file)
    localises = _kind_of(path, document).localises
    decision = read_decision(file, document, localises=localises)
    checksums = "right" if file.has_right_checksums() else "none: written by an older flawmap; fit again to get them"
    return {"localises": localises, "checksums": checksums, **describe_document(document, decision)}


def _kind_of(path: str | os.PathLike[str], document: Document) -> type[Detector]:
    try:
        return find_detector(document.detector)
    except ParameterError as error:
        raise damaged(path, f"{error}. If a package adds this detector, install it") from error
