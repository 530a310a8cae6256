"""`flawmap datasets`: known data sets, a check of one on disk, Rd-MVTec AD, scores over time."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from flawmap.cli import options
from flawmap.cli.console import (
    BadImages,
    check_writable_target,
    guarded,
    literal,
    messages,
    print_json,
    say,
    table,
    tell_passed_over,
)
from flawmap.cli.options import option
from flawmap.datasets import (
    LAYOUTS,
    Counts,
    Problem,
    Report,
    check_dataset,
    find_classes,
    open_dataset,
    write_rd_mvtec_ad,
)
from flawmap.errors import DatasetError, counted
from flawmap.progress import report_progress

FIGURES = ("train", "good", "anomalous", "test")

app = typer.Typer(
    help="Data sets: list them, check one on disk, make Rd-MVTec AD, draw scores of clips over time.",
    no_args_is_help=True,
)


@app.command("list")
@guarded
def list_datasets(as_json: options.Json = False) -> None:
    """List the data sets that are read by name, with licence and origin. Nothing is downloaded."""
    facts = ("name", "title", "classes", "what", "licence", "origin", "paper")
    rows = [{fact: getattr(layout, fact) for fact in facts} for layout in LAYOUTS.values()]
    if as_json:
        print_json({"datasets": rows})
        return
    shown = Table("name", "classes", show_lines=True)
    shown.add_column("what, and where it comes from", overflow="fold")  # a truncated address is useless
    shown.add_column("licence", max_width=20)
    for layout in LAYOUTS.values():
        n_classes = str(len(layout.classes) or 1)
        shown.add_row(layout.name, n_classes, f"{layout.title}: {layout.what}\n{layout.origin}", layout.licence)
    Console().print(shown)


@app.command("check")
@guarded
def check(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Name, as `list` shows it.")],
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Its folder, or one of its classes ROOT/CLASS.")],
    names_only: Annotated[bool, option("Check file names alone; much faster.", None, "--names-only")] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Compare a data set on disk with its published numbers, and name every file that is wrong.

    Exit code 0 without problems, whatever is noted; 1 with problems; 2 for wrong usage.
    """
    if dataset not in LAYOUTS:
        raise DatasetError(f"unknown data set '{dataset}'; there are {', '.join(LAYOUTS)}")
    if not path.expanduser().exists() and not LAYOUTS[dataset].holds(path.expanduser()):
        raise DatasetError(f"{path}: no such file or folder; give the data set's folder, or a class ROOT/CLASS of it")
    with report_progress(not quiet and not names_only, "Reading", None) as advance:
        report = check_dataset(f"{dataset}:{path}", decode=not names_only, advance=advance)
    if as_json:
        print_json(report.to_json())
    else:
        _show(report, quiet)
    if not report.is_whole:
        raise typer.Exit(1)


@app.command("make-rd")
@guarded
def make_rd(
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="MVTec AD, or one of its classes.")],
    output: Annotated[Path, option("New folder to write.", "OUT", "--output", "-o")],
    seed: Annotated[int, option("Random seed of angles and windows; the paper averages five.")] = 0,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write Rd-MVTec AD: every image and mask rotated within +-10 degrees, cropped to 224 of 256 pixels at random."""
    with report_progress(not quiet, "Rotating", None) as advance:
        counts = write_rd_mvtec_ad(root, output, seed=seed, advance=advance)
    if as_json:
        print_json({"output": str(output), "seed": seed, "n_images": counts})
    elif not quiet:
        say(
            f"Wrote {counted(sum(counts.values()), 'image')} of {counted(len(counts), 'class', 'classes')}, "
            f"seed {seed}: {output}"
        )
        classes = [open_dataset(f"mvtec_ad:{path}") for path in find_classes(f"mvtec_ad:{root}")[1]]
        tell_passed_over([path for data in classes for path in data.passed_over], strict=False, quiet=False)


@app.command("timeline")
@guarded
def timeline(
    model: options.Model,
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Data set of videos, such as stc:ROOT/01.")],
    output: Annotated[Path, option("Picture: .png, .svg or .pdf.", "FILE", "--output", "-o")],
    weights: options.Weights = None,
    device: options.Device = "auto",
    runtime: options.RuntimeChoice = "auto",
    workers: options.Workers = None,
    stride: options.Stride = 1,
    skip_bad: options.SkipBad = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Draw the scores of each test clip over time, with the threshold and the ground truth."""
    from flawmap import load
    from flawmap.evaluation.plots import check_picture, save_timelines, score_timelines

    check_writable_target(output)
    check_picture(output, 0)
    detector = load(model, weights=weights, device=device, runtime=runtime, workers=workers)
    data = open_dataset(dataset)
    tell_passed_over(data.passed_over, strict=False, quiet=quiet or as_json)
    check_picture(output, len({sample.group for sample in data.test} - {None}))
    bad = BadImages()
    timelines = score_timelines(
        detector, data.test, stride=stride, progress=not quiet, on_bad=bad if skip_bad else None
    )
    threshold = detector.decision_.threshold if detector.decision_ else None
    save_timelines(timelines, output, threshold=threshold, title=data.name)
    if as_json:
        clips = {name: asdict(clip) for name, clip in timelines.items()}
        print_json({"output": str(output), "threshold": threshold, "clips": clips, "skipped": bad.to_json()})
    elif not quiet:
        say(f"Drew {len(timelines)} clips: {output}")


def _show(report: Report, quiet: bool) -> None:
    """Counts, found of published, as a table; then one line for each problem and note."""
    title = f"{LAYOUTS[report.layout].title}: {report.path}"
    shown = table(title, "class", "train", "good", "anomalous", "all test", "problems")
    for part in report.classes:
        cells = [_of(part.found, part.published, figure) for figure in FIGURES]
        shown.add_row(literal(part.name), *cells, str(len(part.problems)))
    Console().print(shown)
    problems = [*(problem for part in report.classes for problem in part.problems), *report.problems]
    for problem in problems:
        messages.print(f"[bold red]broken[/] {_line(problem)}")
    if quiet:
        return
    for note in [*(note for part in report.classes for note in part.notes), *report.notes]:
        messages.print(f"[yellow]note[/] {_line(note)}")
    say("Nothing is broken." if report.is_whole else f"{len(problems)} problems.")


def _of(found: Counts, published: Counts | None, figure: str) -> str:
    expected = None if published is None else getattr(published, figure)
    got = getattr(found, figure)
    return f"{got}" if expected is None or got == expected else f"{got} of {expected}"


def _line(problem: Problem) -> str:
    return literal(f"{problem.path}: {problem.reason}")
