"""`flawmap evaluate`: AUROC, PRO and error rates on labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from flawmap.cli import options
from flawmap.cli.console import BadImages, check_writable_target, guarded, note, print_json, table
from flawmap.errors import DatasetError


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
        Path | None, options.option("Plot realised against promised false-alarm rates.", "PNG")
    ] = None,
    weights: options.Weights = None,
    device: options.Device = "auto",
    runtime: options.RuntimeChoice = "auto",
    workers: options.Workers = None,
    stride: options.Stride = 1,
    skip_bad: options.SkipBad = False,
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
    bad = BadImages()
    detector = load(model, weights=weights, device=device, runtime=runtime, workers=workers)
    result = run(detector, data, progress=not quiet, on_bad=bad if skip_bad else None)
    if reliability is not None:
        if result.reliability is None:
            raise DatasetError(
                f"{dataset}: no good images, or a model without a promised rate; there is nothing to plot"
            )
        plot_reliability(result.reliability, reliability)
    promised = detector.decision_.false_alarm_rate if detector.decision_ else None
    if as_json:
        print_json({**result.to_json(), "promised_false_alarm_rate": promised, "skipped": bad.to_json()})
    else:
        has_spro = result.type_mean is not None
        headings = ("images", "image AUROC", "pixel AUROC", "PRO", *(("sPRO",) if has_spro else ()))
        shown = table(data.name, "type", *headings)
        rows: dict[str, Figures] = {**result.by_type, "all": result}
        if result.type_mean is not None:
            rows["mean of types"] = result.type_mean
        for name, row in rows.items():
            figures = (row.image_auroc, row.pixel_auroc, row.pro_score, *((row.spro_score,) if has_spro else ()))
            shown.add_row(escape(name), str(row.n_images), *("-" if x is None else f"{x:.4f}" for x in figures))
        console = Console()
        console.print(shown)
        if (alarms := result.false_alarm_rate) is not None:
            promise = "" if promised is None else f", promised {promised:.3g}"
            console.print(f"good parts flagged: {alarms}{promise}")
        if result.miss_rate is not None:
            console.print(f"anomalous parts missed: {result.miss_rate}")
    for warning in () if quiet else result.warnings:
        note(warning)
