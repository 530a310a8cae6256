"""`flawmap threshold`: change the threshold of a model without refitting."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from flawmap.cli import options
from flawmap.cli.console import BadImages, explain_promise, guarded, note, print_json, say, tell_passed_over
from flawmap.cli.options import option
from flawmap.errors import ParameterError
from flawmap.options import Criterion


@guarded
def threshold(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model file of `flawmap fit`, changed in place.")],
    false_alarm_rate: Annotated[
        float | None, option("False-alarm rate: share of good parts that may be flagged.", "Q")
    ] = None,
    certify: Annotated[
        float | None,
        option("Confidence with which no more than the false-alarm rate are flagged, such as 0.95.", "CONFIDENCE"),
    ] = None,
    value: Annotated[float | None, option("Threshold, without a guaranteed false-alarm rate.", "SCORE")] = None,
    pixel_false_alarm_rate: Annotated[
        float | None, option("Pixel false-alarm rate: share of good parts' pixels that may be marked.", "Q")
    ] = None,
    labelled: Annotated[str | None, option("Labelled images, for their error rates and for --by.", "DATASET")] = None,
    by: Annotated[Criterion | None, option("Criterion of the best threshold for the labelled images.")] = None,
    miss_cost: Annotated[float | None, option("Cost of a missed defect, for --by cost.", "C", default="1")] = None,
    false_alarm_cost: Annotated[
        float | None, option("Cost of a flagged good part, for --by cost.", "C", default="1")
    ] = None,
    defect_rate: Annotated[
        float | None, option("Share of defects in production, for --by cost.", "Q", default="as labelled")
    ] = None,
    weights: options.Weights = None,
    device: options.Device = "auto",
    runtime: options.RuntimeChoice = "auto",
    workers: options.Workers = None,
    skip_bad: options.SkipBad = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show or change the threshold of a MODEL without refitting."""
    if by is not None and labelled is None:
        raise ParameterError("--by needs labelled images: give them with --labelled DATASET")
    if by is not None and (value is not None or false_alarm_rate is not None or certify is not None):
        raise ParameterError("give one of --false-alarm-rate or --certify, --value and --by")
    if certify is not None and value is not None:
        raise ParameterError("--certify chooses the threshold: give either it or --value")
    given = {"miss_cost": miss_cost, "false_alarm_cost": false_alarm_cost, "defect_rate": defect_rate}
    costs = {name: cost for name, cost in given.items() if cost is not None}
    if costs and by != "cost":
        option = next(iter(costs)).replace("_", "-")
        raise ParameterError(f"--{option} needs --by cost and --labelled DATASET; add them or leave it out")
    from flawmap import load
    from flawmap.datasets import open_dataset
    from flawmap.evaluation.evaluate import labelled_scores
    from flawmap.evaluation.metrics import Rate, best_threshold, error_rates

    if labelled is None:
        runtime = "torch"  # nothing is scored, so nothing need be compiled
    detector = load(model, weights=weights, device=device, runtime=runtime, workers=workers)
    if detector.decision_ is None:
        raise ParameterError(f"{model} is not calibrated: refit on at least 3 good images, without --calibrate none")
    bad = BadImages()
    labels: list[int] = []
    scores: list[float] = []
    warnings: tuple[str, ...] = ()
    if labelled is not None:
        data = open_dataset(labelled)
        tell_passed_over(data.passed_over, strict=False, quiet=quiet or as_json)
        labels, scores, warnings = labelled_scores(
            detector, data.test, progress=not quiet, on_bad=bad if skip_bad else None
        )
        error_rates(labels, scores, 0.0)  # both kinds of images are there
    if by is not None:
        value = best_threshold(labels, scores, by, **costs).threshold
    asked = {"false_alarm_rate": false_alarm_rate, "value": value, "certify": certify}
    asked["pixel_false_alarm_rate"] = pixel_false_alarm_rate
    changes = {name: change for name, change in asked.items() if change is not None}
    if changes:
        detector.set_threshold(**changes)
        detector.save(model)
    decision = detector.decision_
    errors = error_rates(labels, scores, decision.threshold) if labels else None
    if as_json:
        print_json(
            {
                "threshold": decision.threshold,
                "false_alarm_rate": decision.false_alarm_rate,
                "confidence": decision.confidence,
                "false_alarm_bound_95": decision.bound(),
                "pixel_threshold": decision.pixel_threshold if decision.localises else None,
                "pixel_false_alarm_rate": decision.pixel_false_alarm_rate if decision.localises else None,
                "lowest_false_alarm_rate": decision.lowest_rate,
                "n_good_images": len(decision.scores),
                "n_groups": decision.n_groups,
                "labelled": None if errors is None else asdict(errors),
                "warnings": warnings,
                "skipped": bad.to_json(),
            }
        )
    for warning in () if quiet else warnings:
        note(warning)
    if not as_json and not quiet:
        explain_promise(decision, false_alarm_rate or decision.false_alarm_rate or 1.0)
        if certify is not None and detector.calibrate != "holdout":
            remedy = " For an exact one fit with --calibrate holdout." if "holdout" in detector.calibrations else ""
            note(f"leave-one-out scores are nearly those of new good parts, so this confidence is not exact.{remedy}")
        flagged = Rate.of(int((decision.scores > decision.threshold).sum()), len(decision.scores))
        scored = "held-out" if detector.calibrate == "holdout" else "leave-one-out"
        say(f"Good parts, {scored} scores: {flagged} flagged.")
        if errors is not None:
            chosen = "" if by is None else "; the threshold was chosen on them, so expect more errors on new images"
            say(
                f"Labelled images: good parts flagged {errors.false_alarm_rate}; defects missed {errors.miss_rate}"
                f"{chosen}."
            )
