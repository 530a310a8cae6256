"""`flawmap benchmark paper` and `compare`: the PaDiM paper's tables from your data, and two results side by side."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from flawmap.cli.console import JsonOption, QuietOption, StrideOption, guarded, messages, print_json
from flawmap.cli.fit import parse_regularization
from flawmap.errors import ParameterError

if TYPE_CHECKING:
    from flawmap.benchmark.paper import Outcome
    from flawmap.benchmark.tables import Table

__all__ = ["compare", "paper"]


@guarded
def paper(
    data: Annotated[Path, typer.Option("--data", metavar="ROOT", help="The data set's folder, or a class of it.")],
    dataset: Annotated[str, typer.Option(help="mvtec_ad or stc.")] = "mvtec_ad",
    tables: Annotated[
        str, typer.Option(metavar="I,II,...", help="The paper's; all of the data set if not given.")
    ] = "",
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="Folder of the results.")] = Path(
        "benchmark-output/paper"
    ),
    backbone: Annotated[str, typer.Option(help="In the place of the paper's ResNet-18.")] = "resnet18",
    weights: Annotated[str | None, typer.Option(metavar="PATH", help="Its weights.")] = None,
    random_weights: Annotated[bool, typer.Option("--random-weights", help="Untrained backbones.")] = False,
    regularization: Annotated[str, typer.Option(metavar="auto|paper|EPS|A,EPS", help="Of every PaDiM.")] = "paper",
    draws: Annotated[int, typer.Option(metavar="N", help="Of random channels.")] = 10,
    rd_seeds: Annotated[int, typer.Option(metavar="N", help="Rotations of Rd-MVTec AD.")] = 5,
    classes: Annotated[str | None, typer.Option(metavar="A,B", help="Only these classes or scenes.")] = None,
    only: Annotated[str | None, typer.Option("--systems", metavar="A,B", help="Only these rows of the tables.")] = None,
    budget: Annotated[
        float | None, typer.Option(metavar="MINUTES", help="Of training, for each class and system that needs it.")
    ] = None,
    trained_size: Annotated[
        int | None, typer.Option(metavar="PX", min=1, help="Input of systems that are trained; else their papers'.")
    ] = None,
    stride: StrideOption = 1,
    cache_gb: Annotated[float, typer.Option(metavar="GB", help="Disk for features, below OUT.")] = 4.0,
    no_plots: Annotated[bool, typer.Option("--no-plots", help="Tables only.")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run the paper's evaluation as far as the data goes, and set its numbers beside yours.

    Stop it whenever you like, and start it again: it goes on with the run it was at.
    """
    from flawmap.benchmark.paper import run_plan
    from flawmap.benchmark.plan import Plan
    from flawmap.benchmark.report import build_tables, write_report
    from flawmap.benchmark.results import Results
    from flawmap.benchmark.systems import Settings

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
        import matplotlib  # noqa: F401 (say that it is missing before hours of work, not after)
    tell = (lambda _: None) if quiet else (lambda what: messages.print(escape(what)))
    with Results(output, {"dataset": dataset, **asdict(settings)}) as results:
        outcome = run_plan(plan, results, progress=not quiet, tell=tell)
        built = build_tables(names, outcome, settings)
        written = write_report(output, built, outcome, plots=not no_plots)
    if as_json:
        print_json(
            {
                "runs": str(results.path),
                "n_done": outcome.n_done,
                "n_runs": len(outcome.runs),
                "missing": list(outcome.missing),
                "failures": outcome.failures,
                "written": [str(path) for path in written],
            }
        )
    else:
        _show(built, quiet, outcome)
        if not quiet:
            messages.print(f"{outcome.n_done} runs done, {len(outcome.runs)} in all: {escape(str(output))}")
    if not outcome.runs:
        raise ParameterError("nothing could be run: " + "; ".join(outcome.failures.values()))


@guarded
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="Results: a folder of `benchmark paper`, or its file.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="The results to compare them with.")],
    as_json: JsonOption = False,
) -> None:
    """Set two results side by side: B less A, over runs of the same class, system and seed."""
    from flawmap.benchmark.compare import compare_runs, comparison_table
    from flawmap.benchmark.results import read_runs

    (settings, runs), (other_settings, other_runs) = read_runs(first), read_runs(second)
    differences = compare_runs(runs, other_runs)
    if not differences:
        raise ParameterError(f"{first} and {second} have no run in common: none of the same class, system and seed")
    changed = {
        name: [settings.get(name), other_settings.get(name)]
        for name in settings.keys() | other_settings.keys()
        if settings.get(name) != other_settings.get(name)
    }
    if as_json:
        print_json({"settings": changed, "differences": [asdict(one) for one in differences]})
        return
    for name, (one, other) in sorted(changed.items()):
        messages.print(escape(f"{name}: {one} (A), {other} (B)"))
    Console().print(_rich(comparison_table(differences, "A", "B")))


def _split(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _show(tables: list[Table], quiet: bool, outcome: Outcome) -> None:
    console = Console()
    for table in tables:
        here = [i for i, heading in enumerate(table.header) if heading.endswith(", here")]
        measured = tuple(row for row in table.rows if not here or any(row[i] for i in here))
        if measured:  # the files hold the other rows too
            console.print(_rich(replace(table, rows=measured)))
    if quiet:
        return
    if outcome.missing:
        messages.print(f"[yellow]note:[/] not on disk: {escape(', '.join(outcome.missing))}; their means stay blank")
    for name, reason in sorted(outcome.failures.items()):
        messages.print(f"[yellow]note:[/] {escape(f'{name}: {reason}')}")


def _rich(table: Table) -> RichTable:
    shown = RichTable(title=escape(table.title))
    for i, heading in enumerate(table.header):
        shown.add_column(escape(heading), justify="left" if i < 2 else "right")
    for row in table.rows:
        shown.add_row(*map(escape, row))
    return shown
