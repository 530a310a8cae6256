"""Runs subcommands in this process, for tests of the command."""

from __future__ import annotations

from typer.testing import CliRunner

from flawmap.cli.app import app

FIT = [
    "--backbone",
    "resnet10t",
    "--random-weights",
    "--resize",
    "64",
    "--refit-below",
    "0",
    "--align",
    "none",
    "--regularization",
    "paper",
]
"""Options of a fit that is over soon."""


def run(*arguments, code=0):
    """The result of a subcommand, which must end with this exit code, and without a traceback."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result
