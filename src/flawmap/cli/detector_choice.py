"""From the options of `flawmap fit` to a detector: which one is meant, and which options are not for it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from flawmap.errors import ParameterError

if TYPE_CHECKING:
    from flawmap.detectors import AnyDetector

__all__ = ["TRAINED", "DetectorName", "Variant", "choose_detector", "make_detector"]

OPTIONS = {"pretrained": "random-weights"}
"""Options that are not named after the argument they set."""


class DetectorName(StrEnum):
    """The detectors."""

    padim = "padim"
    spade = "spade"
    mahalanobis_ad = "mahalanobis-ad"
    vae = "vae"
    patch_svdd = "patch-svdd"
    ganomaly = "ganomaly"
    itae = "itae"


TRAINED = (DetectorName.vae, DetectorName.patch_svdd, DetectorName.ganomaly, DetectorName.itae)
"""Detectors that train a network of their own."""


class Variant(StrEnum):
    """SPADE as in its paper, or as the public re-implementation has it."""

    paper = "paper"
    port = "port"


def choose_detector(name: str | None, preset: str | None) -> str:
    """The name of the detector that is meant; ParameterError for an unknown preset, or one of another detector."""
    if preset is None:
        return name or DetectorName.padim.value
    from flawmap.detectors import PRESETS

    owners = {preset_name: owner for owner, names in PRESETS.items() for preset_name in names}
    if preset not in owners:
        raise ParameterError(f"unknown preset '{preset}'; there are {', '.join(owners)}")
    if name not in (None, owners[preset]):
        raise ParameterError(f"--preset {preset} is of {owners[preset]}, not of {name}; leave --detector out")
    return owners[preset]


def make_detector(name: str, preset: str | None, given: Mapping[str, object]) -> AnyDetector:
    """The detector of that name, by a preset of it or without, with the arguments that were given.

    Raises ParameterError for an option that the detector has no use for.
    """
    from flawmap.detectors import DETECTORS

    if preset is not None and ("backbone" in given or "layers" in given):
        raise ParameterError("--preset names its own backbone and layers; give either it or --backbone and --layers")
    kind = DETECTORS[name]
    known = inspect.signature(kind).parameters
    for option in given:
        if option not in known:
            flag = OPTIONS.get(option, option.replace("_", "-"))
            raise ParameterError(f"--{flag} is not for {name}; leave it out")
    arguments: dict[str, Any] = dict(given)
    return kind(**arguments) if preset is None else kind.from_preset(preset, **arguments)
