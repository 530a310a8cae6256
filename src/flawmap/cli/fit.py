"""`flawmap fit`: learn from good images and write a model file."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from flawmap.cli import fit_options as options
from flawmap.cli.console import (
    BadImages,
    DeviceOption,
    JsonOption,
    QuietOption,
    SkipBadOption,
    StrideOption,
    WorkersOption,
    check_writable_target,
    explain_promise,
    fail,
    guarded,
    messages,
    parse_size,
    print_json,
)
from flawmap.cli.detector_choice import choose_detector, make_detector
from flawmap.datasets import open_dataset, training_images
from flawmap.errors import ParameterError
from flawmap.images import SUFFIXES, ImageInput, collect

if TYPE_CHECKING:
    from flawmap.detectors import Detector

__all__ = ["fit", "parse_regularization"]

SHOWN = 5
"""Outliers that are named one by one."""


@guarded
def fit(
    ctx: typer.Context,
    good: Annotated[str, typer.Argument(metavar="GOOD", help="Folder or glob of good images; a data set; elpv:mono.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="MODEL", help="Model file to write.")],
    detector: options.DetectorOption = "",
    preset: options.Preset = None,
    backbone: options.BackboneName = None,
    resize: options.Resize = None,
    crop: options.Crop = None,
    aspect: options.AspectOption = "squash",
    n_features: options.NFeatures = None,
    regularization: options.Regularization = None,
    false_alarm_rate: options.FalseAlarmRate = 0.01,
    calibrate: options.Calibrate = None,
    groups: options.Groups = None,
    seed: options.Seed = 0,
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
    stride: StrideOption = 1,
    skip_bad: SkipBadOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    layers: options.Layers = None,
    weights: options.Weights = None,
    random_weights: options.RandomWeights = False,
    runtime: options.RuntimeChoice = "auto",
    precision: options.Precision = None,
    reduction: options.Reduction = None,
    refit_below: options.RefitBelow = None,
    variant: options.Variant = None,
    n_neighbors: options.NNeighbors = None,
    image_layer: options.ImageLayer = None,
    coreset: options.Coreset = None,
    n_mapped: options.NMapped = None,
    budget: options.Budget = None,
    epochs: options.Epochs = None,
    steps: options.Steps = None,
    batch_size: options.BatchSize = None,
    learning_rate: options.LearningRate = None,
    patience: options.Patience = None,
    width: options.Width = None,
    checkpoint: options.Checkpoint = None,
    dtype: options.Dtype = None,
    cache_mb: options.CacheMb = None,
) -> None:
    """Learn what GOOD parts look like and write a MODEL."""
    given: dict[str, Any] = {
        "backbone": backbone,
        "layers": None if layers is None else tuple(name.strip() for name in layers.split(",")),
        "n_features": n_features,
        "regularization": None if regularization is None else parse_regularization(regularization),
        "weights": weights,
        "resize": parse_size(resize, "--resize"),
        "crop": parse_size(crop, "--crop"),
        "runtime": None if runtime == "auto" else runtime,
        "pretrained": False if random_weights else None,
        "precision": precision,
        "reduction": reduction,
        "refit_below": refit_below,
        "variant": variant,
        "n_neighbors": n_neighbors,
        "image_layer": image_layer,
        "coreset": coreset,
        "n_mapped": n_mapped,
        "cache_mb": cache_mb,
        "workers": workers,
        "budget": budget,
        "epochs": epochs,
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "patience": patience,
        "width": width,
        "checkpoint": checkpoint,
        "groups": groups,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if calibrate is not None:
        given["calibrate"] = None if calibrate == "none" else calibrate
    given |= {"seed": seed, "aspect": aspect, "device": device, "false_alarm_rate": false_alarm_rate}
    _check(output, given)
    kind = choose_detector(detector or None, preset)
    given |= options.further_parameters(ctx, kind)
    unfinished = _unfinished(kind, output, given)
    model = make_detector(kind, preset, given)
    if dtype is not None and dtype not in model.factor_dtypes:
        raise ParameterError(f"--dtype is not for {kind.name}; leave it out")
    if unfinished is not None and unfinished.exists() and not quiet:
        messages.print(f"The training goes on from {escape(str(unfinished))}, where an earlier run stopped.")
    bad, started = BadImages(), time.perf_counter()
    try:
        model.fit(_every(good, stride), progress=not quiet, on_bad=bad if skip_bad else None)
    except KeyboardInterrupt:
        kept = checkpoint or unfinished
        if kept is None or not kept.exists():
            raise
        fail(f"interrupted; the training is kept in {kept}, and the same command goes on from there", 130)
    model.save(output, dtype=dtype)
    if unfinished is not None:
        unfinished.unlink(missing_ok=True)
    seconds = time.perf_counter() - started
    if as_json:
        print_json(_summary(model, output, seconds, bad))
    elif not quiet:
        _report(model, output, seconds, asked=false_alarm_rate)


def _check(output: Path, given: dict[str, Any]) -> None:
    """Refuse what cannot be meant, before minutes of work."""
    check_writable_target(output)
    if output.suffix.lower() in SUFFIXES:
        raise ParameterError(f"{output}: has the name of an image; give the model another, such as part.flawmap")
    if given.get("pretrained") is False and "weights" in given:
        raise ParameterError("--random-weights leaves the backbone untrained; give either it or --weights")
    checkpoint = given.get("checkpoint")
    if checkpoint is not None and checkpoint.absolute() == output.absolute():
        raise ParameterError("--checkpoint and --output name one file; the model would replace the training")


def _unfinished(kind: type[Detector], output: Path, given: dict[str, Any]) -> Path | None:
    """The file that keeps a training until the model is written, where there is one and the user named none."""
    if "checkpoint" not in kind.parameters_type.model_fields or "checkpoint" in given:
        return None
    given["checkpoint"] = output.with_name(f"{output.name}.checkpoint")
    path: Path = given["checkpoint"]
    return path


def _every(good: str, stride: int) -> ImageInput:
    """Every so many of the good images; of a data set's clips, of each."""
    if stride == 1:
        return good
    found = training_images(good)
    if isinstance(found, (str, Path)):
        return list(collect(found).items)[::stride]
    return open_dataset(good).every(stride).train


def _summary(model: Detector, output: Path, seconds: float, bad: BadImages) -> dict[str, object]:
    decision, described = model.decision_, model.describe()
    return {
        "model": str(output),
        "n_images": model.n_images_,
        "threshold": decision.threshold if decision else None,
        "false_alarm_rate": decision.false_alarm_rate if decision else None,
        "bytes": output.stat().st_size,
        "seconds": round(seconds, 3),
        "outliers": list(model.outliers_),
        "copies": list(model.copies_),
        "near_duplicates": [list(pair) for pair in model.duplicates_],
        "skipped": bad.to_json(),
        **{name: described[name] for name in ("regularization", "training") if name in described},
    }


def _report(model: Detector, output: Path, seconds: float, *, asked: float) -> None:
    messages.print(
        f"Learnt from {model.n_images_} good images in {seconds:.1f} s: {escape(str(output))} "
        f"({output.stat().st_size / 1e6:.1f} MB).\n"
        f"Next: flawmap predict {escape(shlex.quote(str(output)))} IMAGES -o OUT"
    )
    if isinstance(summary := model.describe().get("training"), dict):
        messages.print(
            f"Trained {summary['steps']} steps in {summary['minutes']:.1f} minutes, ended by its "
            f"{summary['stopped']}; mean loss {summary['final_loss']:.4g}. --steps {summary['steps']} repeats it."
        )
    if model.decision_ is not None:
        explain_promise(model.decision_, asked)
    elif model.calibrate is not None:
        messages.print(
            "[yellow]note:[/] too few good images, or groups of them, for a threshold: predictions will have scores "
            "but no labels. A threshold needs at least 3 images; to guarantee 1 % false alarms you need at least 99."
        )
    _warn(model)


def parse_regularization(text: str) -> str | float | tuple[float, ...]:
    """`auto`, `paper`, `0.1` or `0.1,0.5` as `PaDiM` expects it."""
    if text in ("auto", "paper"):
        return text
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ParameterError(
            f"--regularization must be auto, paper, EPS or A,EPS such as 0.1,0.5; got '{text}'"
        ) from None
    return numbers[0] if len(numbers) == 1 else numbers


def _warn(model: Detector) -> None:
    """Say what looks wrong with the good images, and what to do."""
    for name in model.outliers_[:SHOWN]:
        messages.print(f"[yellow]note:[/] {escape(name)} looks unlike the other good images: is it good?")
    if len(model.outliers_) > SHOWN:
        messages.print(f"[yellow]note:[/] and {len(model.outliers_) - SHOWN} more; --json names them all")
    if model.copies_:
        messages.print(
            f"[yellow]note:[/] {len(model.copies_)} images equal others, such as {escape(model.copies_[0])}. "
            f"Duplicates make the calibration too optimistic: expect more false alarms. Remove them."
        )
    near = [pair for pair in model.duplicates_ if pair[1] not in model.copies_]
    if near:
        earlier, later = near[0]
        messages.print(
            f"[yellow]note:[/] {len(near)} images nearly equal others, such as {escape(later)} and {escape(earlier)}. "
            f"Near-duplicates make the calibration too optimistic: expect more false alarms. Keep one of each, or name "
            f"what belongs together with --groups."
        )
