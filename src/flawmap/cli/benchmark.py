"""`flawmap benchmark`: speed and accuracy on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from flawmap.cli.console import JsonOption, QuietOption, guarded, messages, print_json

if TYPE_CHECKING:
    from flawmap.benchmark.speed import SpeedCase, SpeedReport

__all__ = ["app"]

app = typer.Typer(help="Measure flawmap on this machine.", no_args_is_help=True)

IN_PAPER = {"resnet18-100": "PaDiM-R18-Rd100", "wide_resnet50_2-550": "PaDiM-WR50-Rd550"}


@app.callback()
def benchmark() -> None:
    """Measure flawmap on this machine."""


@app.command("speed")
@guarded
def speed(
    cases: Annotated[
        str, typer.Option(metavar="A,B", help="Cases: resnet18-100, efficientnet_lite0-176, ... [default: all]")
    ] = "",
    images: Annotated[int, typer.Option(metavar="N", help="Images to fit on.")] = 320,
    rounds: Annotated[int, typer.Option(metavar="N", help="Rounds of calls; more give steadier figures.")] = 10,
    peers: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Folder of virtual environments of anomalib and anomavision, to time them too."
        ),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Latency, fit time, memory and file size, beside the usual script with full matrices, all in one run."""
    from flawmap.benchmark.speed import CASES, measure_speed

    names = [name.strip() for name in cases.split(",") if name.strip()] or list(CASES)
    report = measure_speed(
        names,
        n_images=images,
        rounds=rounds,
        peers=peers,
        tell=(lambda _: None) if quiet else (lambda what: messages.print(what)),
    )
    if as_json:
        print_json(report.to_json())
    else:
        _show(report)


def _show(report: SpeedReport) -> None:
    console = Console()
    console.print(report.machine)
    for case in report.cases:
        table = Table("", title=f"{case.name}: ms a call, median (95th percentile)")
        for batch in case.latency:
            table.add_column(f"batch {batch}", justify="right")
        for name in dict.fromkeys(name for latency in case.latency.values() for name in latency):
            cells = [latency.get(name) for latency in case.latency.values()]
            table.add_row(name, *("-" if cell is None else f"{cell.p50:.2f} ({cell.p95:.2f})" for cell in cells))
        console.print(table)
        console.print(f"file {case.file_mb:.1f} MB, {case.file_mb_float16:.1f} MB with 16-bit factors")
        for name, fit in case.fits.items():
            figures = fit if isinstance(fit, str) else f"{fit.seconds:.1f} s, {fit.peak_mb:.0f} MB at most"
            console.print(f"fit on {case.n_images} images, {name}: {figures}")
        alone = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in case.alone.items())
        console.print(f"parts of a fit alone: {alone}")
        ratios = Table("within this run; of one image", "times")
        for name, ratio in case.ratios().items():
            ratios.add_row(name, f"{ratio:.2f}")
        console.print(ratios)
    console.print(_paper_table(report.cases))


def _paper_table(cases: tuple[SpeedCase, ...]) -> Table:
    """Tables VII and VIII of the paper with our columns."""
    from flawmap.benchmark.speed import PAPER_MEMORY, PAPER_SECONDS

    ours = {IN_PAPER[case.name]: case for case in cases if case.name in IN_PAPER}
    table = Table("", title="Tables VII and VIII of the paper (i7-4710HQ), and this machine")
    for heading in ("s/image, paper", "s/image, here", "GB, paper", "model file GB, here"):
        table.add_column(heading, justify="right")
    for name, seconds in PAPER_SECONDS.items():
        case = ours.get(name)
        here = ("-", "-")
        if case is not None:
            here = f"{case.latency['1']['graph, OpenVINO float32'].p50 / 1000:.4f}", f"{case.file_mb / 1000:.3f}"
        table.add_row(name, f"{seconds:.2f}", here[0], f"{PAPER_MEMORY[name]:.2f}", here[1])
    return table
