"""Detectors: each learns from good images alone and scores new ones."""

from __future__ import annotations

import os
from typing import Any

from flawmap.backbones import Runtime
from flawmap.detectors.detector import Detector, OnBad
from flawmap.detectors.mahalanobis_ad import MahalanobisAD
from flawmap.detectors.padim.detector import PaDiM
from flawmap.detectors.presets import PRESETS
from flawmap.detectors.spade.detector import SPADE
from flawmap.detectors.trained.detector import TrainedDetector
from flawmap.detectors.trained.ganomaly_detector import GANomaly
from flawmap.detectors.trained.itae_detector import ITAE
from flawmap.detectors.trained.patch_svdd_detector import PatchSVDD
from flawmap.detectors.trained.vae_detector import VAE
from flawmap.model_file import ModelFile

__all__ = [
    "DETECTORS",
    "ITAE",
    "PRESETS",
    "SPADE",
    "VAE",
    "AnyDetector",
    "Detector",
    "GANomaly",
    "MahalanobisAD",
    "OnBad",
    "PaDiM",
    "PatchSVDD",
    "TrainedDetector",
    "load",
]

AnyDetector = PaDiM | SPADE | MahalanobisAD | VAE | PatchSVDD | GANomaly | ITAE
"""What `load` gives."""

DETECTORS: dict[str, type[AnyDetector]] = {
    "padim": PaDiM,
    "spade": SPADE,
    "mahalanobis-ad": MahalanobisAD,
    "vae": VAE,
    "patch-svdd": PatchSVDD,
    "ganomaly": GANomaly,
    "itae": ITAE,
}
"""Detectors by the name that model files and commands use."""


def load(
    path: str | os.PathLike[str],
    *,
    weights: str | os.PathLike[str] | None = None,
    device: str = "auto",
    runtime: Runtime = "auto",
    workers: int | None = None,
) -> AnyDetector:
    """The model of a file that `save` or `flawmap fit` wrote, of the detector that it names.

    Args:
        path: the model file.
        weights: the backbone's weights file, if it is no longer where it was when the model was fitted.
        device: "auto" takes a GPU where there is one.
        runtime: what runs the backbone: "torch", or "openvino" on the CPU; "auto" as in `PaDiM`. A network that was
            trained is run by torch.
        workers: threads that read images; None for one per processor, at most eight.

    Raises ModelFileError for a file that is damaged, hostile or too new, and WeightsError if the weights it was fitted
    with are not to be found.
    """
    file: ModelFile[Any] = ModelFile(path)
    model = DETECTORS[file.document.detector].from_file(file, weights=weights, device=device, runtime=runtime)
    model.workers = workers
    return model
