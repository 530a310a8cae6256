"""`flawmap benchmark`: speed on this machine, the PaDiM paper's tables on your data, and two results side by side."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table as RichTable

from flawmap.cli import options
from flawmap.cli.console import (
    BadImages,
    check_writable_target,
    guarded,
    literal,
    messages,
    note,
    print_json,
    say,
    table,
)
from flawmap.cli.options import option, parse_regularization
from flawmap.errors import ParameterError, counted

if TYPE_CHECKING:
    from flawmap.benchmark.paper.tables import Table
    from flawmap.benchmark.speed import SpeedCase, SpeedReport

app = typer.Typer(help="Measure flawmap on this machine.", no_args_is_help=True)

IN_PAPER = {"resnet18-100": "PaDiM-R18-Rd100", "wide_resnet50_2-550": "PaDiM-WR50-Rd550"}
DEFAULT_OUTPUT = Path("benchmark-output/paper")


@app.command("speed")
@guarded
def speed(
    cases: Annotated[str, option("Cases: resnet18-100, efficientnet_lite0-176, ...", "A,B", default="all")] = "",
    images: Annotated[int, option("Images to fit on.", "N")] = 320,
    rounds: Annotated[int, option("Rounds of calls; more give steadier figures.", "N")] = 10,
    peers: Annotated[
        Path | None, option("Folder of virtual environments of anomalib and anomavision, to time them too.", "FOLDER")
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Latency, fit time, memory and file size, beside the usual script with full matrices, all in one run."""
    from flawmap.benchmark.speed import CASES, measure_speed

    tell = (lambda _: None) if quiet else say
    report = measure_speed(_split(cases) or list(CASES), n_images=images, rounds=rounds, peers=peers, tell=tell)
    if as_json:
        print_json(report.to_json())
    else:
        _show_speed(report)


@app.command("paper")
@guarded
def paper(
    data: Annotated[Path, option("Folder of the data set, or of one class.", "ROOT")],
    dataset: Annotated[str, option("Data set: mvtec_ad or stc.")] = "mvtec_ad",
    tables: Annotated[str, option("Tables of the paper.", "I,II,...", default="all of the data set")] = "",
    output: Annotated[Path, option("Folder of the results.", "OUT", "--output", "-o")] = DEFAULT_OUTPUT,
    backbone: Annotated[str, option("Backbone in place of the paper's ResNet-18.")] = "resnet18",
    weights: Annotated[str | None, option("Weights of the backbone.", "PATH")] = None,
    random_weights: Annotated[bool, option("Random weights of all backbones.", None, "--random-weights")] = False,
    regularization: Annotated[str, option("Regularization of every PaDiM.", "likelihood|paper|EPS|A,EPS")] = "paper",
    draws: Annotated[int, option("Number of draws of random channels.", "N")] = 10,
    rd_seeds: Annotated[int, option("Number of rotations of Rd-MVTec AD.", "N")] = 5,
    classes: Annotated[str, option("Classes or scenes.", "A,B", default="all")] = "",
    systems: Annotated[str, option("Rows of the tables.", "A,B", default="all")] = "",
    budget: Annotated[float | None, option("Training time for each class and trained system.", "MINUTES")] = None,
    trained_size: Annotated[
        int | None, option("Input size of trained systems.", "PX", default="their papers'", min=1)
    ] = None,
    stride: options.Stride = 1,
    cache_gb: Annotated[float, option("Disk space for features, below OUT.", "GB")] = 4.0,
    skip_bad: options.SkipBad = False,
    no_plots: Annotated[bool, option("Write tables only.", None, "--no-plots")] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
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
        systems=_split(systems) or None,
        limit_gb=cache_gb,
    )
    plan.check()
    if not no_plots:
        import matplotlib  # noqa: F401 (a missing package fails before hours of work)
    tell = (lambda _: None) if quiet else say
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
        _show_tables(built, quiet)
        if not quiet:
            say(f"{outcome.n_done} runs done, {len(outcome.runs)} in all: {output}")
    if not outcome.runs:
        reasons = dict.fromkeys([*outcome.failures.values(), *outcome.left_out.values()])
        raise ParameterError("nothing could be run: " + "; ".join(reasons))
    if outcome.failures:
        for name, reason in sorted(outcome.failures.items()) if quiet and not as_json else ():
            messages.print(f"[bold red]error:[/] {literal(f'{name}: {reason}')}")
        raise typer.Exit(1)


@app.command("compare")
@guarded
def compare(
    first: Annotated[
        Path, typer.Argument(metavar="A", help="First results: a folder of `benchmark paper`, or its file.")
    ],
    second: Annotated[Path, typer.Argument(metavar="B", help="Second results.")],
    output: Annotated[Path | None, option("File for the table: .md, .tex or .html.", "FILE", "--output", "-o")] = None,
    as_json: options.Json = False,
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
    compared = replace(comparison_table(differences, "A", "B"), notes=tuple(said))
    if output is not None:
        write_table(output, compared)
    if as_json:
        found = [asdict(one) for one in differences]
        print_json({"settings": changed, "changed_data": changed_data, "differences": found})
        return
    for line in said:
        say(line)
    _console().print(_rich(compared))


def _show_speed(report: SpeedReport) -> None:
    console = Console()
    console.print(report.machine)
    for case in report.cases:
        batches = [f"batch {batch}" for batch in case.latency]
        shown = table(f"{case.name}: ms a call, median (95th percentile)", "", *batches)
        for name in dict.fromkeys(name for latency in case.latency.values() for name in latency):
            cells = [latency.get(name) for latency in case.latency.values()]
            shown.add_row(name, *("-" if cell is None else f"{cell.p50:.2f} ({cell.p95:.2f})" for cell in cells))
        console.print(shown)
        console.print(f"file {case.file_mb:.1f} MB, {case.file_mb_float16:.1f} MB with 16-bit factors")
        for name, fit in case.fits.items():
            figures = fit if isinstance(fit, str) else f"{fit.seconds:.1f} s, {fit.peak_mb:.0f} MB at most"
            console.print(f"fit on {counted(case.n_images, 'image')}, {name}: {figures}")
        alone = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in case.alone.items())
        console.print(f"parts of a fit alone: {alone}")
        ratios = RichTable("within this run; of one image", "times")
        for name, ratio in case.ratios().items():
            ratios.add_row(name, f"{ratio:.2f}")
        console.print(ratios)
    console.print(_paper_table(report.cases))


def _paper_table(cases: tuple[SpeedCase, ...]) -> RichTable:
    """Tables VII and VIII of the paper with our columns."""
    from flawmap.benchmark.speed import PAPER_MEMORY, PAPER_SECONDS

    ours = {IN_PAPER[case.name]: case for case in cases if case.name in IN_PAPER}
    title = "Tables VII and VIII of the paper (i7-4710HQ), and this machine"
    shown = table(title, "", "s/image, paper", "s/image, here", "GB, paper", "model file GB, here")
    for name, seconds in PAPER_SECONDS.items():
        here = ("-", "-")
        if (case := ours.get(name)) is not None:
            here = f"{case.latency['1']['graph, OpenVINO float32'].p50 / 1000:.4f}", f"{case.file_mb / 1000:.3f}"
        shown.add_row(name, f"{seconds:.2f}", here[0], f"{PAPER_MEMORY[name]:.2f}", here[1])
    return shown


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _distinct(lists: Iterable[list[str]]) -> list[str]:
    return list(dict.fromkeys(name for names in lists for name in names))


def _console() -> Console:
    """Standard output; outside a terminal as wide as the tables, so that no name is truncated in a file."""
    console = Console()
    return console if console.is_terminal else Console(width=1000)


def _show_tables(tables: list[Table], quiet: bool) -> None:
    console = _console()
    for one in tables:
        here = [i for i, heading in enumerate(one.header) if heading.endswith(", here")]
        measured = tuple(row for row in one.rows if not here or any(row[i] for i in here))
        if measured:  # the files hold the other rows too
            console.print(_rich(replace(one, rows=measured)))
    for remark in () if quiet else _distinct(list(one.notes) for one in tables):
        note(remark)


def _rich(content: Table) -> RichTable:
    shown = RichTable(title=literal(content.title))
    for i, heading in enumerate(content.header):
        shown.add_column(literal(heading), justify="left" if i < 2 else "right")
    for row in content.rows:
        shown.add_row(*map(literal, row))
    return shown
