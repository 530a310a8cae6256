"""flawmap learns what good parts look like from good images alone, then says whether and where a new one differs."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

from flawmap.errors import FlawmapError, MissingDependencyError
from flawmap.prediction import Placement, Prediction

if TYPE_CHECKING:
    from flawmap.detectors import ITAE, SPADE, VAE, GANomaly, MahalanobisAD, PaDiM, PatchSVDD, load
    from flawmap.export import export_model
    from flawmap.runtime import Inspector

__all__ = [
    "ITAE",
    "SPADE",
    "VAE",
    "FlawmapError",
    "GANomaly",
    "Inspector",
    "MahalanobisAD",
    "PaDiM",
    "PatchSVDD",
    "Placement",
    "Prediction",
    "export_model",
    "load",
]
__version__ = version("flawmap")


_HOME = {
    "PaDiM": "flawmap.detectors",
    "SPADE": "flawmap.detectors",
    "MahalanobisAD": "flawmap.detectors",
    "VAE": "flawmap.detectors",
    "PatchSVDD": "flawmap.detectors",
    "GANomaly": "flawmap.detectors",
    "ITAE": "flawmap.detectors",
    "load": "flawmap.detectors",
    "export_model": "flawmap.export",
    "Inspector": "flawmap.runtime",
}
"""Modules of what is imported on first use: torch takes seconds, and the base install has none."""


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'flawmap' has no attribute '{name}'")
    try:
        module = import_module(_HOME[name])
    except ModuleNotFoundError as error:
        if error.name not in {"torch", "timm", "scipy", "sklearn", "torchvision"}:
            raise
        raise MissingDependencyError(
            f"{name} needs {error.name}, which the base installation leaves out: pip install 'flawmap[train]'"
        ) from error
    value: object = getattr(module, name)
    return value
