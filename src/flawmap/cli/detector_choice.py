"""From the options of `flawmap fit` to a detector: which one is meant, and which options are not for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from flawmap.errors import ParameterError

if TYPE_CHECKING:
    from flawmap.detectors import Detector

__all__ = ["choose_detector", "make_detector"]

OPTIONS = {"pretrained": "random-weights"}
"""Options that are not named after the parameter they set."""
DEFAULT = "padim"


def choose_detector(name: str | None, preset: str | None) -> type[Detector]:
    """The detector that is meant.

    ParameterError for an unknown preset, or one of another detector; a usage error for an unknown name.
    """
    from flawmap.detectors import all_detectors, find_detector

    if preset is None:
        try:
            return find_detector(name or DEFAULT)
        except ParameterError as error:
            raise typer.BadParameter(str(error), param_hint="--detector") from error
    owners = {preset_name: kind for kind in all_detectors() for preset_name in kind.presets}
    if preset not in owners:
        raise ParameterError(f"unknown preset '{preset}'; there are {', '.join(owners)}")
    if name not in (None, owners[preset].name):
        raise ParameterError(f"--preset {preset} is of {owners[preset].name}, not of {name}; leave --detector out")
    return owners[preset]


def make_detector(kind: type[Detector], preset: str | None, given: Mapping[str, Any]) -> Detector:
    """The detector, by a preset of it or without, with the parameters that were given.

    Raises ParameterError for an option that the detector does not have.
    """
    if preset is not None and ("backbone" in given or "layers" in given):
        raise ParameterError("--preset names its own backbone and layers; give either it or --backbone and --layers")
    for name in given:
        if name not in kind.parameters_type.model_fields:
            flag = OPTIONS.get(name, name.replace("_", "-"))
            raise ParameterError(f"--{flag} is not for {kind.name}; leave it out")
    return kind(**given) if preset is None else kind.from_preset(preset, **given)
