"""`flawmap threshold`: decide otherwise, without fitting again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flawmap.cli.console import JsonOption, QuietOption, WeightsOption, explain_promise, guarded, print_json
from flawmap.errors import ParameterError


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
    weights: WeightsOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show what a MODEL decides by, or change it, without fitting again."""
    from flawmap import load

    detector = load(model, weights=weights, device="cpu")
    changes = {"false_alarm_rate": false_alarm_rate, "value": value, "pixel_false_alarm_rate": pixel_false_alarm_rate}
    changes = {name: change for name, change in changes.items() if change is not None}
    if changes:
        detector.set_threshold(**changes)
        detector.save(model)
    decision = detector.decision_
    if decision is None:
        raise ParameterError(f"{model} was not calibrated: fit again, on at least 3 good images, with --calibrate")
    if as_json:
        print_json(
            {
                "threshold": decision.threshold,
                "false_alarm_rate": decision.false_alarm_rate,
                "pixel_threshold": decision.pixel_threshold if decision.localises else None,
                "pixel_false_alarm_rate": decision.pixel_false_alarm_rate if decision.localises else None,
                "lowest_false_alarm_rate": decision.lowest_rate,
                "n_good_images": len(decision.scores),
            }
        )
    elif not quiet:
        explain_promise(decision, false_alarm_rate or decision.false_alarm_rate or 1.0)
