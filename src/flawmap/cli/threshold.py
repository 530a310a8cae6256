"""`flawmap threshold`: decide otherwise, without fitting again."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flawmap.cli.console import (
    BadImages,
    DeviceOption,
    JsonOption,
    QuietOption,
    Runtime,
    RuntimeOption,
    SkipBadOption,
    WeightsOption,
    WorkersOption,
    explain_promise,
    guarded,
    messages,
    print_json,
)
from flawmap.errors import ParameterError


class Criterion(StrEnum):
    """What the best threshold for labelled images is best at."""

    f1 = "f1"
    youden = "youden"
    cost = "cost"


@guarded
def threshold(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model file of `flawmap fit`; it is changed.")],
    false_alarm_rate: Annotated[
        float | None, typer.Option(metavar="Q", help="Share of good parts that may be flagged.")
    ] = None,
    value: Annotated[float | None, typer.Option(metavar="SCORE", help="Flag scores above this; no promise.")] = None,
    pixel_false_alarm_rate: Annotated[
        float | None, typer.Option(metavar="Q", help="Share of good parts' pixels that may be marked.")
    ] = None,
    labelled: Annotated[
        str | None,
        typer.Option(metavar="DATASET", help="Labelled images: shows the errors on them, and serves --by."),
    ] = None,
    by: Annotated[Criterion | None, typer.Option(help="Take the best threshold for the labelled images.")] = None,
    miss_cost: Annotated[float | None, typer.Option(metavar="C", help="For --by cost: of a missed defect; 1.")] = None,
    false_alarm_cost: Annotated[
        float | None, typer.Option(metavar="C", help="For --by cost: of a flagged good part; 1.")
    ] = None,
    defect_rate: Annotated[
        float | None,
        typer.Option(metavar="Q", help="For --by cost: share of defects to come; as labelled if not given."),
    ] = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    runtime: RuntimeOption = Runtime.auto,
    workers: WorkersOption = None,
    skip_bad: SkipBadOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show what a MODEL decides by, or change it, without fitting again."""
    if by is not None and labelled is None:
        raise ParameterError("--by needs labelled images: give them with --labelled DATASET")
    if by is not None and (value is not None or false_alarm_rate is not None):
        raise ParameterError("give one of --false-alarm-rate, --value and --by")
    given = {"miss_cost": miss_cost, "false_alarm_cost": false_alarm_cost, "defect_rate": defect_rate}
    costs = {name: cost for name, cost in given.items() if cost is not None}
    if costs and by is not Criterion.cost:
        option = next(iter(costs)).replace("_", "-")
        raise ParameterError(f"--{option} serves --by cost; give that too, with --labelled DATASET, or leave it out")
    from flawmap import load
    from flawmap.datasets import open_dataset
    from flawmap.evaluation.evaluate import labelled_scores
    from flawmap.evaluation.metrics import OperatingPoint, Rate, best_threshold, error_rates

    detector = load(model, weights=weights, device=device, runtime=runtime.value, workers=workers)
    if detector.decision_ is None:
        raise ParameterError(
            f"{model} was not calibrated: fit again, on at least 3 good images, without --calibrate none"
        )
    bad = BadImages()
    labels: list[int] = []
    scores: list[float] = []
    if labelled is not None:
        samples = open_dataset(labelled).test
        labels, scores = labelled_scores(detector, samples, progress=not quiet, on_bad=bad if skip_bad else None)
        error_rates(labels, scores, 0.0)  # both kinds of images are there
    if by is not None:
        value = best_threshold(labels, scores, by.value, **costs).threshold
    changes = {"false_alarm_rate": false_alarm_rate, "value": value, "pixel_false_alarm_rate": pixel_false_alarm_rate}
    changes = {name: change for name, change in changes.items() if change is not None}
    if changes:
        detector.set_threshold(**changes)
        detector.save(model)
    decision = detector.decision_
    errors: OperatingPoint | None = error_rates(labels, scores, decision.threshold) if labels else None
    if as_json:
        print_json(
            {
                "threshold": decision.threshold,
                "false_alarm_rate": decision.false_alarm_rate,
                "pixel_threshold": decision.pixel_threshold if decision.localises else None,
                "pixel_false_alarm_rate": decision.pixel_false_alarm_rate if decision.localises else None,
                "lowest_false_alarm_rate": decision.lowest_rate,
                "n_good_images": len(decision.scores),
                "labelled": None if errors is None else asdict(errors),
                "skipped": bad.to_json(),
            }
        )
    elif not quiet:
        explain_promise(decision, false_alarm_rate or decision.false_alarm_rate or 1.0)
        flagged = Rate.of(int((decision.scores > decision.threshold).sum()), len(decision.scores))
        scored = "held out when it learnt" if detector.calibrate == "holdout" else "each left out in turn"
        messages.print(f"Good parts that it was given, {scored}: {flagged} flagged.")
        if errors is not None:
            messages.print(
                f"Labelled images: good parts flagged {errors.false_alarm_rate}; defects missed {errors.miss_rate}"
                + ("; the threshold was chosen on them, so expect somewhat more." if by is not None else ".")
            )
