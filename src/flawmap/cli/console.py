"""Shared by the subcommands: output on the right stream, and errors as one line with an exit code."""

from __future__ import annotations

import errno
import functools
import json
import math
import os
import sys
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, NoReturn, ParamSpec, cast

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flawmap.decision import CONFIDENCE, Decision
from flawmap.errors import DatasetError, FlawmapError, ImageError, ParameterError
from flawmap.files import check_replaceable
from flawmap.images import describe_passed_over, describe_results
from flawmap.progress import StandardError

EXTRAS = dict.fromkeys(("torch", "torchvision", "timm", "scipy", "sklearn"), "train") | {"matplotlib": "plots"}
"""Modules that only an extra installs."""

messages = Console(file=cast(IO[str], StandardError()), highlight=False, soft_wrap=True)


def literal(text: str) -> str:
    """Markup that shows a text as it is, in one line; control characters, which a terminal would obey, as \\x1b."""
    shown = (
        letter
        if letter.isprintable() or unicodedata.category(letter) == "Zs"
        else letter.encode("unicode_escape").decode()
        for letter in text
    )
    return escape("".join(shown))


class BadImages:
    """Collects unusable images and prints each on standard error."""

    def __init__(self) -> None:
        self.errors: list[ImageError] = []

    def __call__(self, error: ImageError) -> None:
        """Add an image."""
        self.errors.append(error)
        messages.print(f"[yellow]skipped[/] {literal(str(error))}")

    def to_json(self) -> list[dict[str, str]]:
        """Path and reason of each."""
        return [{"path": error.name, "error": error.reason} for error in self.errors]


class Remarks:
    """Collects what is unusual about images, in words, and prints each remark once, with the number of its images."""

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {}

    def add(self, name: str | None, remarks: Iterable[str]) -> None:
        """Add an image."""
        for remark in remarks:
            self.names.setdefault(remark, []).append(name or "an image")

    def add_all(self, names: Mapping[str, Iterable[str]]) -> None:
        """Add remarks with the names of their images."""
        for remark, of_remark in names.items():
            self.names.setdefault(remark, []).extend(of_remark)

    def show(self) -> None:
        """Print all remarks."""
        for remark, names in self.names.items():
            others = "" if len(names) == 1 else f" and {len(names) - 1} more"
            note(f"{names[0]}{others}: {remark}")


def tell_passed_over(
    paths: Sequence[Path], *, results: Sequence[Path] = (), strict: bool = False, quiet: bool = False
) -> None:
    """Print how many files were passed over, and how many pictures of earlier runs; DatasetError if no file may be."""
    if results and not quiet:
        note(describe_results(results))
    if paths and strict:
        raise DatasetError(
            f"{describe_passed_over(paths)}; the first is {paths[0]}. Move them away, or leave out --strict"
        )
    if paths and not quiet:
        note(describe_passed_over(paths))


P = ParamSpec("P")


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Turn every expected failure into one line on standard error and an exit code, never a traceback."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except FlawmapError as error:
            fail(str(error))
        except ModuleNotFoundError as error:
            if error.name not in EXTRAS:
                raise
            extra = EXTRAS[error.name]
            fail(f"this needs {error.name}, which the base installation leaves out: pip install 'flawmap[{extra}]'")
        except KeyboardInterrupt:
            fail("interrupted; no file is incomplete", 130)
        except BrokenPipeError:
            if sys.stderr is not None:
                sys.stderr.close()  # the reader of standard output has gone
            raise typer.Exit(1) from None
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            fail(f"{where}{error.strerror or error}; check that the folder exists, is writable and has free space")
        except MemoryError:
            fail("out of memory; use fewer --n-features, a smaller --resize or a smaller backbone")

    return run


def fail(message: str, code: int = 1) -> NoReturn:
    """Print one line of error and exit."""
    messages.print(f"[bold red]error:[/] {literal(message)}")
    raise typer.Exit(code)


def say(text: str) -> None:
    """Print a line on standard error."""
    messages.print(literal(text))


def note(text: str) -> None:
    """Print a note."""
    messages.print(f"[yellow]note:[/] {literal(text)}")


def print_json(content: Mapping[str, object]) -> None:
    """One JSON object on standard output."""
    if sys.stdout is None:
        raise OSError(errno.EBADF, "is closed", "standard output")
    sys.stdout.write(json.dumps(content, indent=2, allow_nan=False) + "\n")


def table(title: str, first: str, *figures: str) -> Table:
    """A table whose first column is text, and whose others are numbers."""
    made = Table(first, title=literal(title))
    for heading in figures:
        made.add_column(heading, justify="right")
    return made


def explain_promise(decision: Decision, asked: float) -> None:
    """Print the guaranteed false-alarm rate, its upper bound, and the number of images for the requested one."""
    rate = decision.false_alarm_rate
    if rate is None:
        say(f"Threshold {decision.threshold:.4g}, set by hand, without a guaranteed false-alarm rate.")
        return
    what = "good images" if decision.group_sizes is None else "groups of good images"
    how_sure = "on average" if decision.confidence is None else f"with {100 * decision.confidence:g} % confidence"
    say(f"Threshold {decision.threshold:.4g}: {how_sure} at most {100 * rate:.3g} % of good parts are flagged.")
    bound = decision.bound(CONFIDENCE)
    if bound is not None and decision.confidence != CONFIDENCE:
        say(
            f"With {100 * CONFIDENCE:g} % confidence it is at most {100 * bound:.3g} %: of {decision.n_groups} {what} "
            f"with held-out scores {decision.n_above} are above the threshold."
        )
    if rate > asked and decision.confidence is None:
        needed = math.ceil(1 / asked) - 1
        note(
            f"To guarantee {100 * asked:g} % you need at least {needed} {what}; there are {decision.n_groups}. Until "
            f"then the threshold is the highest score of a good image."
            if needed > decision.n_groups
            else f"To guarantee {100 * asked:g} % the part must be found in more of the good images. Until then the "
            f"threshold is the highest score of those in which it was."
        )


def describe_promise(decision: Decision | None) -> str:
    """The guaranteed false-alarm rate, as the end of a sentence; nothing without one."""
    if decision is None or decision.false_alarm_rate is None:
        return ""
    if decision.confidence is not None:
        return f", guaranteed {decision.false_alarm_rate:.3g} with {100 * decision.confidence:g} % confidence"
    bound = decision.bound(CONFIDENCE)
    return (
        f", guaranteed {decision.false_alarm_rate:.3g} on average, {bound:.3g} with {100 * CONFIDENCE:g} % confidence"
    )


def check_writable_target(path: Path) -> None:
    """ParameterError, before minutes of work, for a path that cannot be written."""
    if path.is_dir():
        raise ParameterError(f"{path} is a folder; give the name of a file to write")
    try:
        check_replaceable(path)
    except OSError as error:
        raise ParameterError(f"{path}: {error.strerror}; give the name of another file") from error
    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        raise ParameterError(f"{folder}: no such folder; make it first")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ParameterError(f"{folder}: cannot be written to ({error.strerror}); name another folder") from error
