"""From the options of `flawmap fit` to a detector: which one is meant, and which options are for it."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import entry_points
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from typer.core import TyperCommand

from flawmap.errors import ParameterError

if TYPE_CHECKING:
    from flawmap.detectors import Detector

FURTHER = "flawmap.further"
"""Where the context of the command keeps the options of detectors that are not built in."""

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
    """`flawmap fit`, which also takes the options of detectors that are not built in."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 (typer's own types)
        """Take the options of further detectors out, wherever they stand; the command reads the others."""
        declared = {option for one in self.params for option in one.opts}
        further = {
            _flag(name): (kind, name, field)
            for kind in _further_detectors()
            for name, field in kind.parameters_type.model_fields.items()
            if _flag(name) not in declared
        }
        own: dict[str, tuple[str, object]] = {}
        rest: list[str] = []
        arguments = iter(args)
        for argument in arguments:
            flag, equals, value = argument.partition("=")
            positive = flag.replace("--no-", "--", 1)
            if argument == "--":
                rest += [argument, *arguments]
            elif flag in further and not _is_switch(further[flag][2]):
                given = value if equals else next(arguments, None)
                if given is not None:
                    own[further[flag][1]] = (flag, _value(given, further[flag][2]))
                else:
                    ctx.fail(f"Option '{flag}' requires an argument.")
            elif positive in further and _is_switch(further[positive][2]) and not equals:
                own[further[positive][1]] = (flag, flag == positive)
            else:
                rest.append(argument)
        ctx.meta[FURTHER] = own
        try:
            return super().parse_args(ctx, rest)
        except Exception as error:
            if hasattr(error, "possibilities") and hasattr(error, "option_name"):  # of an option that does not exist
                error.possibilities = difflib.get_close_matches(error.option_name, [*declared, *further], 3)
            raise

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 (typer's own types)
        """The declared options, then a panel for each further detector."""
        super().format_help(ctx, formatter)
        declared = {option for one in self.params for option in one.opts}
        for kind in _further_detectors():
            rows = Table.grid(padding=(0, 2))
            for name, field in kind.parameters_type.model_fields.items():
                if _flag(name) not in declared:
                    shown = f"{field.description or name} [default: {field.default}]"
                    rows.add_row(_flag(name), escape(_shape(name, field)), escape(shown))
            Console().print(Panel(rows, title=f"Detector {kind.name}", title_align="left", border_style="dim"))


def further_parameters(ctx: typer.Context, kind: type[Detector]) -> dict[str, object]:
    """Parameters of the chosen detector that the command does not declare; a usage error for those of another."""
    found: dict[str, object] = {}
    for name, (flag, value) in ctx.meta[FURTHER].items():
        if name not in kind.parameters_type.model_fields:
            owners = [other.name for other in _further_detectors() if name in other.parameters_type.model_fields]
            ctx.fail(f"No such option: {flag} of {kind.name}; it is of {', '.join(owners)}")
        found[name] = value
    return found


def _types(field: FieldInfo) -> tuple[object, ...]:
    """The types that a parameter may have."""
    annotation: object = field.annotation
    is_union = get_origin(annotation) in (Union, UnionType)
    return get_args(annotation) if is_union else (annotation,)


def _is_switch(field: FieldInfo) -> bool:
    return bool in _types(field)


def _value(text: str, field: FieldInfo) -> object:
    """The text of an option as the parameter's type; as it is where it cannot be, and pydantic says so."""
    types = _types(field)
    if any(get_origin(one) in (tuple, list, Sequence) for one in types):
        return tuple(part.strip() for part in text.split(","))
    for number in (int, float):
        if number in types:
            with suppress(ValueError):
                return number(text)
    return text


def _shape(name: str, field: FieldInfo) -> str:
    """What an option takes, for the help."""
    if _is_switch(field):
        return f"--no-{_flag(name)[2:]}"
    choices = [str(choice) for one in _types(field) if get_origin(one) is Literal for choice in get_args(one)]
    return "|".join(choices) or ("N" if int in _types(field) or float in _types(field) else "VALUE")


def _further_detectors() -> list[type[Detector]]:
    """Detectors that are not built in."""
    if not entry_points(group="flawmap.detectors") and "flawmap.detectors" not in sys.modules:
        return []  # importing the detectors needs seconds
    from flawmap.detectors import BUILT_IN, all_detectors

    return [kind for kind in all_detectors() if kind.name not in BUILT_IN]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
