"""flawmap learns what good parts look like from good images alone, then says whether and where a new one differs."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from flawmap.errors import FlawmapError, MissingDependencyError
from flawmap.records import Placement, Prediction

if TYPE_CHECKING:
    from flawmap.detectors import SPADE, MahalanobisAD, PaDiM, load

__all__ = ["SPADE", "FlawmapError", "MahalanobisAD", "PaDiM", "Placement", "Prediction", "load"]
__version__ = version("flawmap")


def __getattr__(name: str) -> object:
    """Import detectors on first use: torch takes seconds, and the base install has none."""
    if name not in {"SPADE", "MahalanobisAD", "PaDiM", "load"}:
        raise AttributeError(f"module 'flawmap' has no attribute '{name}'")
    try:
        from flawmap import detectors
    except ModuleNotFoundError as error:
        if error.name not in {"torch", "timm", "scipy", "sklearn", "torchvision"}:
            raise
        raise MissingDependencyError(
            f"{name} needs {error.name}, which the base installation leaves out: pip install 'flawmap[train]'"
        ) from error
    return getattr(detectors, name)
