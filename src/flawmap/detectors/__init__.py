"""Detectors: each learns from good images alone and scores new ones."""

from __future__ import annotations

import os

from flawmap.detectors.detector import Detector, OnBad
from flawmap.detectors.padim import PaDiM
from flawmap.detectors.presets import PRESETS
from flawmap.model_file import ModelFile

__all__ = ["PRESETS", "Detector", "OnBad", "PaDiM", "load"]


def load(path: str | os.PathLike[str], *, weights: str | os.PathLike[str] | None = None, device: str = "auto") -> PaDiM:
    """The model of a file that `save` or `flawmap fit` wrote.

    Args:
        path: the model file.
        weights: the backbone's weights file, if it is no longer where it was when the model was fitted.
        device: "auto" takes a GPU where there is one.

    Raises ModelFileError for a file that is damaged, hostile or too new, and WeightsError if the weights it was fitted
    with are not to be found.
    """
    return PaDiM.from_file(ModelFile(path), weights=weights, device=device)
