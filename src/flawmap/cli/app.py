"""The command and its subcommands."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import flawmap
from flawmap.cli import benchmark, datasets, demo, evaluate, export, fit, info, predict, threshold
from flawmap.cli.detector_choice import FitCommand

EMPTY = re.compile(r"--[\w-]+=\s*")
"""An option without its value."""


class Root(TyperGroup):
    """The command, which refuses empty arguments: an empty path would be the current folder."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 (typer's own type)
        """Options and the subcommand. A usage error for an empty argument."""
        for before, argument in pairwise(["", *args]):
            option = argument.removesuffix("=") if EMPTY.fullmatch(argument) else before
            if not argument.strip() or EMPTY.fullmatch(argument):
                where = f" after {option}" if option else ""
                ctx.fail(f"An empty argument{where}. Is a variable of the shell not set?")
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=Root,
    name="flawmap",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("fit", cls=FitCommand)(fit.fit)
app.command("predict")(predict.predict)
app.command("evaluate")(evaluate.evaluate)
app.command("info")(info.info)
app.command("threshold")(threshold.threshold)
app.command("export")(export.export)
app.command("demo")(demo.demo)
app.add_typer(datasets.app, name="datasets")
app.add_typer(benchmark.app, name="benchmark")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(flawmap.__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Learns what good parts look like from good images alone, then finds what is wrong in new ones.

    Exit codes: 0 all went well; 1 an error, named on standard error; 2 a command line that cannot be understood; 130
    interrupted.
    """
