"""`flawmap benchmark paper` and `compare`: the PaDiM paper's tables on your data, and two results side by side."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from flawmap.cli.console import (
    BadImages,
    JsonOption,
    QuietOption,
    SkipBadOption,
    StrideOption,
    check_writable_target,
    guarded,
    messages,
    print_json,
)
from flawmap.cli.fit import parse_regularization
from flawmap.errors import ParameterError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flawmap.benchmark.paper.tables import Table

__all__ = ["compare", "paper"]


@guarded
def paper(
    data: Annotated[Path, typer.Option("--data", metavar="ROOT", help="Folder of the data set, or of one class.")],
    dataset: Annotated[str, typer.Option(help="Data set: mvtec_ad or stc.")] = "mvtec_ad",
    tables: Annotated[
        str, typer.Option(metavar="I,II,...", help="Tables of the paper. [default: all of the data set]")
    ] = "",
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="Folder of the results.")] = Path(
        "benchmark-output/paper"
    ),
    backbone: Annotated[str, typer.Option(help="Backbone in place of the paper's ResNet-18.")] = "resnet18",
    weights: Annotated[str | None, typer.Option(metavar="PATH", help="Weights of the backbone.")] = None,
    random_weights: Annotated[bool, typer.Option("--random-weights", help="Random weights of all backbones.")] = False,
    regularization: Annotated[
        str, typer.Option(metavar="auto|paper|EPS|A,EPS", help="Regularization of every PaDiM.")
    ] = "paper",
    draws: Annotated[int, typer.Option(metavar="N", help="Number of draws of random channels.")] = 10,
    rd_seeds: Annotated[int, typer.Option(metavar="N", help="Number of rotations of Rd-MVTec AD.")] = 5,
    classes: Annotated[str | None, typer.Option(metavar="A,B", help="Classes or scenes. [default: all]")] = None,
    only: Annotated[
        str | None, typer.Option("--systems", metavar="A,B", help="Rows of the tables. [default: all]")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(metavar="MINUTES", help="Training time for each class and trained system.")
    ] = None,
    trained_size: Annotated[
        int | None, typer.Option(metavar="PX", min=1, help="Input size of trained systems. [default: their papers']")
    ] = None,
    stride: StrideOption = 1,
    cache_gb: Annotated[float, typer.Option(metavar="GB", help="Disk space for features, below OUT.")] = 4.0,
    skip_bad: SkipBadOption = False,
    no_plots: Annotated[bool, typer.Option("--no-plots", help="Write tables only.")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run the paper's evaluation on the data on disk, and set its numbers beside yours.

    You can stop it at any time: the same command resumes with the next run. Exit code 0 if all runs succeeded, 1 if
    something failed.
    """
    from flawmap.benchmark.paper.plan import Plan
    from flawmap.benchmark.paper.published import PAPER_TABLES
    from flawmap.benchmark.paper.report import write_report
    from flawmap.benchmark.paper.results import Results
    from flawmap.benchmark.paper.run import run_plan
    from flawmap.benchmark.paper.systems import Settings
    from flawmap.benchmark.paper.tables import absent_classes, build_tables

    names = _split(tables) or (["IV"] if dataset == "stc" else ["I", "II", "III", "V", "VI", "VII", "VIII"])
    settings = Settings(
        backbone, weights, not random_weights, parse_regularization(regularization), stride, budget, trained_size
    )
    plan = Plan(
        data.absolute(),
        dataset,
        names,
        output,
        settings,
        draws=draws,
        rd_seeds=rd_seeds,
        classes=_split(classes) or None,
        systems=_split(only) or None,
        limit_gb=cache_gb,
    )
    plan.check()
    if not no_plots:
        import matplotlib  # noqa: F401 (a missing package fails before hours of work)
    tell = (lambda _: None) if quiet else (lambda what: messages.print(escape(what)))
    bad = BadImages()
    with Results(output, {"dataset": dataset, **asdict(settings)}) as results:
        outcome = run_plan(plan, results, progress=not quiet, tell=tell, on_bad=bad if skip_bad else None)
        built = build_tables(names, outcome, settings)
        written = write_report(output, built, outcome.runs, plots=not no_plots)
    if as_json:
        absent = [absent_classes(PAPER_TABLES[name], outcome) for name in names]
        print_json(
            {
                "runs": str(results.path),
                "n_done": outcome.n_done,
                "n_runs": len(outcome.runs),
                "missing": _distinct(missing for missing, _ in absent),
                "not_asked_for": _distinct(unasked for _, unasked in absent),
                "failures": outcome.failures,
                "left_out": outcome.left_out,
                "skipped": bad.to_json(),
                "written": [str(path) for path in written],
            }
        )
    else:
        _show(built, quiet)
        if not quiet:
            messages.print(f"{outcome.n_done} runs done, {len(outcome.runs)} in all: {escape(str(output))}")
    if not outcome.runs:
        reasons = dict.fromkeys([*outcome.failures.values(), *outcome.left_out.values()])
        raise ParameterError("nothing could be run: " + "; ".join(reasons))
    if outcome.failures:
        for name, reason in sorted(outcome.failures.items()) if quiet and not as_json else ():
            messages.print(f"[bold red]error:[/] {escape(f'{name}: {reason}')}")
        raise typer.Exit(1)


@guarded
def compare(
    first: Annotated[
        Path, typer.Argument(metavar="A", help="First results: a folder of `benchmark paper`, or its file.")
    ],
    second: Annotated[Path, typer.Argument(metavar="B", help="Second results.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="File for the table: .md, .tex or .html.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two results: B minus A, over runs of the same class, system and seed, on the same files."""
    from flawmap.benchmark.paper.compare import changed_classes, compare_runs, comparison_table
    from flawmap.benchmark.paper.report import check_format, write_table
    from flawmap.benchmark.paper.results import read_runs

    if output is not None:
        check_format(output)
        check_writable_target(output)
    (settings, runs), (other_settings, other_runs) = read_runs(first), read_runs(second)
    differences, changed_data = compare_runs(runs, other_runs), changed_classes(runs, other_runs)
    unlike = f"not paired, because their images, masks or types differ: {', '.join(changed_data)}"
    if not differences:
        reason = unlike if changed_data else "none of the same class, system and seed"
        raise ParameterError(f"{first} and {second} have no run in common: {reason}")
    changed = {
        name: [settings.get(name), other_settings.get(name)]
        for name in settings.keys() | other_settings.keys()
        if settings.get(name) != other_settings.get(name)
    }
    said = [f"{name}: {one} (A), {other} (B)" for name, (one, other) in sorted(changed.items())]
    said += [unlike] if changed_data else []
    table = replace(comparison_table(differences, "A", "B"), notes=tuple(said))
    if output is not None:
        write_table(output, table)
    if as_json:
        found = [asdict(one) for one in differences]
        print_json({"settings": changed, "changed_data": changed_data, "differences": found})
        return
    for line in said:
        messages.print(escape(line))
    _console().print(_rich(table))


def _split(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _distinct(lists: Iterable[list[str]]) -> list[str]:
    return list(dict.fromkeys(name for names in lists for name in names))


def _console() -> Console:
    """Standard output; outside a terminal as wide as the tables, so that no name is truncated in a file."""
    console = Console()
    return console if console.is_terminal else Console(width=1000)


def _show(tables: list[Table], quiet: bool) -> None:
    console = _console()
    for table in tables:
        here = [i for i, heading in enumerate(table.header) if heading.endswith(", here")]
        measured = tuple(row for row in table.rows if not here or any(row[i] for i in here))
        if measured:  # the files hold the other rows too
            console.print(_rich(replace(table, rows=measured)))
    for note in () if quiet else _distinct(list(table.notes) for table in tables):
        messages.print(f"[yellow]note:[/] {escape(note)}")


def _rich(table: Table) -> RichTable:
    shown = RichTable(title=escape(table.title))
    for i, heading in enumerate(table.header):
        shown.add_column(escape(heading), justify="left" if i < 2 else "right")
    for row in table.rows:
        shown.add_row(*map(escape, row))
    return shown
