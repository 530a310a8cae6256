"""Options of the subcommands: how one is declared, and those that several share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from typer.models import OptionInfo

from flawmap.options import Runtime


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
