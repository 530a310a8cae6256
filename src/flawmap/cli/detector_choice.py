"""From the options of `flawmap fit` to a detector: which one is meant, and which options are for it."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from typer.core import TyperCommand

from flawmap.errors import ParameterError

if TYPE_CHECKING:
    from flawmap.detectors import Detector

FURTHER = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Settings by which the command also gets options that it does not declare."""

OPTIONS = {"pretrained": "--random-weights"}
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
            raise ParameterError(f"{OPTIONS.get(name) or _flag(name)} is not for {kind.name}; leave it out")
    return kind(**given) if preset is None else kind.from_preset(preset, **given)


class FitCommand(TyperCommand):
    """`flawmap fit`, whose help also has the options of registered detectors that are not built in."""

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 (typer's own types)
        """The declared options, then a panel for each further detector."""
        super().format_help(ctx, formatter)
        declared = {option for one in self.params for option in one.opts}
        for kind in _further_detectors():
            rows = Table.grid(padding=(0, 2))
            for name, field in kind.parameters_type.model_fields.items():
                if _flag(name) not in declared:
                    rows.add_row(_flag(name), escape(f"{field.description or name} [default: {field.default}]"))
            Console().print(Panel(rows, title=f"Detector {kind.name}", title_align="left", border_style="dim"))


def further_parameters(ctx: typer.Context, kind: type[Detector]) -> dict[str, str]:
    """Parameters of the chosen detector among the arguments that no declared option took; a usage error for others."""
    found: dict[str, str] = {}
    arguments = iter(ctx.args)
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--") or name not in kind.parameters_type.model_fields:
            near = difflib.get_close_matches(flag, [option for one in ctx.command.params for option in one.opts], 1)
            ctx.fail(f"No such option: {flag}" + (f" Did you mean {near[0]}?" if near else ""))
        found[name] = value if equals else next(arguments, "")
    return found


def _further_detectors() -> list[type[Detector]]:
    """Detectors that are not built in."""
    if not entry_points(group="flawmap.detectors") and "flawmap.detectors" not in sys.modules:
        return []  # importing the detectors needs seconds
    from flawmap.detectors import BUILT_IN, all_detectors

    return [kind for kind in all_detectors() if kind.name not in BUILT_IN]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
