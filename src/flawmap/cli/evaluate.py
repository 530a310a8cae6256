"""`flawmap evaluate`: AUROC, PRO and error rates on labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from flawmap.cli import options
from flawmap.cli.console import (
    BadImages,
    Remarks,
    check_writable_target,
    describe_promise,
    guarded,
    literal,
    note,
    print_json,
    table,
    tell_passed_over,
)
from flawmap.errors import DatasetError
from flawmap.images import LEARNT

if TYPE_CHECKING:
    from flawmap.evaluation import Evaluation


@guarded
def evaluate(
    model: options.Model,
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="DATASET",
            help="Folder in a known layout (`flawmap datasets list`), or of good/ and other types; NAME:PATH; a "
            "manifest (.csv); elpv:mono.",
        ),
    ],
    reliability: Annotated[
        Path | None, options.option("Plot realised against guaranteed false-alarm rates.", "PNG")
    ] = None,
    weights: options.Weights = None,
    device: options.Device = "auto",
    runtime: options.RuntimeChoice = "auto",
    workers: options.Workers = None,
    stride: options.Stride = 1,
    skip_bad: options.SkipBad = False,
    strict: options.Strict = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Score the labelled images of a DATASET and compare with their labels and masks."""
    from flawmap import load
    from flawmap.datasets import open_dataset
    from flawmap.evaluation import Figures
    from flawmap.evaluation import evaluate as run

    if reliability is not None:
        check_writable_target(reliability)
        import matplotlib.figure  # noqa: F401 (a missing package fails before minutes of work)

        from flawmap.evaluation.plots import plot_reliability
    data = open_dataset(dataset).every(stride)
    tell_passed_over(data.passed_over, strict=strict, quiet=quiet or as_json)
    bad = BadImages()
    detector = load(model, weights=weights, device=device, runtime=runtime, workers=workers)
    result = run(detector, data, progress=not quiet, on_bad=bad if skip_bad else None)
    if reliability is not None:
        if result.reliability is None:
            raise DatasetError(
                f"{dataset}: no good images, or a model without a guaranteed rate; there is nothing to plot"
            )
        plot_reliability(result.reliability, reliability)
    decision = detector.decision_
    if as_json:
        found = {"skipped": bad.to_json(), "passed_over": [str(path) for path in data.passed_over]}
        guaranteed = {
            "promised_false_alarm_rate": decision.false_alarm_rate if decision else None,
            "promised_confidence": decision.confidence if decision else None,
            "promised_false_alarm_bound_95": decision.bound() if decision else None,
        }
        print_json({**result.to_json(), **guaranteed, **found})
    else:
        has_spro = result.spro_score is not None
        headings = ("images", "image AUROC", "pixel AUROC", "PRO", *(("sPRO",) if has_spro else ()), "found at 5 %")
        shown = table(data.name, "type", *headings)
        rows: dict[str, Figures] = {**result.by_type, "all": result}
        if result.type_mean is not None:
            rows["mean of types"] = result.type_mean
        for name, row in rows.items():
            spro = (row.spro_score,) if has_spro else ()
            figures = (row.image_auroc, row.pixel_auroc, row.pro_score, *spro, row.found_at_5)
            shown.add_row(literal(name), str(row.n_images), *("-" if x is None else f"{x:.4f}" for x in figures))
        console = Console()
        console.print(shown)
        if (alarms := result.false_alarm_rate) is not None:
            console.print(f"good parts flagged: {alarms}{describe_promise(decision)}")
        if result.miss_rate is not None:
            console.print(f"anomalous parts missed: {result.miss_rate}")
        if at_5 := _describe_at_5(result):
            console.print(f"at the threshold for 5 % false alarms: {at_5}")
    remarks = Remarks()
    # a warning counts those that were learnt from
    unusual = {remark: paths for remark, paths in result.remarks.items() if remark != LEARNT}
    remarks.add_all({} if quiet or as_json else unusual)
    remarks.show()
    for warning in () if quiet else result.warnings:
        note(warning)


def _describe_at_5(result: Evaluation) -> str:
    """Shares above the threshold that promises 5 % false alarms, with their intervals; empty if it cannot be had."""
    from flawmap.evaluation.metrics import Rate

    shares = {"good parts flagged": (result.flagged_at_5, result.false_alarm_rate)}
    shares["anomalous parts found"] = (result.found_at_5, result.miss_rate)
    known = {what: (share, of.n) for what, (share, of) in shares.items() if share is not None and of is not None}
    return "; ".join(f"{what} {Rate.of(round(share * n), n)}" for what, (share, n) in known.items())
