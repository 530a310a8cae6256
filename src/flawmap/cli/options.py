"""Options of the subcommands: how one is declared, those that several share, and what their texts mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from typer.models import OptionInfo

from flawmap.errors import ParameterError
from flawmap.options import Runtime
from flawmap.prediction import Size


def option(
    help: str,
    metavar: str | None = None,
    *names: str,
    default: str | None = None,
    panel: str | None = None,
    min: int | None = None,
    max: int | None = None,
) -> OptionInfo:
    """An option, named after its parameter unless `names` are given.

    `default` says in the help what happens without the option, where its default value does not.
    """
    shown = help if default is None else escape(f"{help} [default: {default}]")
    info: OptionInfo = typer.Option(*names, help=shown, metavar=metavar, rich_help_panel=panel, min=min, max=max)
    return info


Model = Annotated[Path, typer.Argument(metavar="MODEL", help="Model file of `flawmap fit`.")]
Json = Annotated[bool, option("Print one JSON object on standard output; none if the command fails.", None, "--json")]
Quiet = Annotated[bool, option("Print errors only.", None, "--quiet", "-q")]
SkipBad = Annotated[bool, option("Leave out unusable images and masks.", None, "--skip-bad")]
Strict = Annotated[bool, option("Stop before the work if files are passed over.", None, "--strict")]
Device = Annotated[str, option("Device: auto, cpu, cuda, ...")]
Stride = Annotated[int, option("Use every N-th image of each clip of a data set.", "N", min=1)]
Weights = Annotated[
    str | None, option("Backbone weights: a .safetensors or .pth file, or hf-hub:REPO to download them.", "PATH")
]
RuntimeChoice = Annotated[Runtime, option("Runtime of the backbone.")]
Workers = Annotated[int | None, option("Threads that read images.", "N", default="one per processor", min=1, max=1024)]


def parse_size(text: str, name: str) -> int | Size | str:
    """`256` or `256x384` (height x width) as a size; of the canvas also `long:768`, which the detector checks."""
    parts = text.lower().split("x")
    if name == "resize" and ":" in text:
        return text.lower()
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        rule = ", or long:N or short:N, such as long:768" if name == "resize" else ""
        raise ParameterError(f"--{name} takes a number or HEIGHTxWIDTH, such as 256 or 256x384{rule}; got '{text}'")
    return int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1]))


def parse_score(text: str) -> str | float:
    """`max`, `top` or a share as `PaDiM` expects it."""
    try:
        return float(text)
    except ValueError:
        return text


def parse_regularization(text: str) -> str | float | tuple[float, ...]:
    """`auto`, `likelihood`, `paper`, `0.1` or `0.1,0.5` as `PaDiM` expects it."""
    if text in ("auto", "likelihood", "paper"):
        return text
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ParameterError(
            f"--regularization must be auto, likelihood, paper, EPS or A,EPS such as 0.1,0.5; got '{text}'"
        ) from None
    return numbers[0] if len(numbers) == 1 else numbers
