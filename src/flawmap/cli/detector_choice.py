"""From the options of `flawmap fit` to a detector: which one is meant, and which options are not for it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from flawmap.errors import ParameterError

if TYPE_CHECKING:
    from flawmap.detectors import AnyDetector

__all__ = ["DetectorName", "make_detector"]

OPTIONS = {"pretrained": "random-weights"}
"""Options that are not named after the argument they set."""


class DetectorName(StrEnum):
    """The detectors."""

    padim = "padim"
    vae = "vae"
    patch_svdd = "patch-svdd"
    ganomaly = "ganomaly"
    itae = "itae"


def make_detector(name: str | None, preset: str | None, given: Mapping[str, object]) -> AnyDetector:
    """The detector of that name, or of the preset, with the arguments that were given.

    Raises ParameterError for an option that the detector has no use for, and for a preset of another detector.
    """
    from flawmap.detectors import DETECTORS, PaDiM

    chosen = name or "padim"
    kind = DETECTORS[chosen]
    known = inspect.signature(kind).parameters
    for option in given:
        if option not in known:
            flag = OPTIONS.get(option, option.replace("_", "-"))
            raise ParameterError(f"--{flag} is not for {chosen}; leave it out")
    arguments: dict[str, Any] = dict(given)
    if preset is None:
        return kind(**arguments)
    if not issubclass(kind, PaDiM):
        raise ParameterError(f"--preset {preset} is of padim, not of {chosen}, which is its paper's as it is")
    if "backbone" in given or "layers" in given:
        raise ParameterError("--preset names its own backbone and layers; give either it or --backbone and --layers")
    return kind.from_preset(preset, **arguments)
