"""`flawmap fit`: learn from good images and write a model file."""

from __future__ import annotations

import inspect
import shlex
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from flawmap.cli.console import (
    BadImages,
    DeviceOption,
    JsonOption,
    QuietOption,
    RuntimeOption,
    SkipBadOption,
    StrideOption,
    WeightsOption,
    WorkersOption,
    check_writable_target,
    explain_promise,
    fail,
    guarded,
    messages,
    parse_size,
    print_json,
)
from flawmap.cli.detector_choice import TRAINED, DetectorName, Variant, choose_detector, make_detector
from flawmap.datasets import open_dataset, training_images
from flawmap.errors import ParameterError
from flawmap.images import SUFFIXES, ImageInput, collect
from flawmap.options import Aspect

if TYPE_CHECKING:
    from flawmap.detectors import AnyDetector

SHOWN = 5
"""Outliers that are named one by one."""


class Reduction(StrEnum):
    """How an embedding gets fewer channels: a random draw, or principal components."""

    random = "random"
    pca = "pca"


class Calibrate(StrEnum):
    """How good parts get honest scores."""

    leave_one_out = "leave-one-out"
    holdout = "holdout"
    none = "none"


class Precision(StrEnum):
    """Of the backbone's computations."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class Dtype(StrEnum):
    """How a model file stores its factors."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@guarded
def fit(
    good: Annotated[str, typer.Argument(metavar="GOOD", help="Folder or glob of good images; a data set; elpv:mono.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="MODEL", help="Model file to write.")],
    detector: Annotated[DetectorName | None, typer.Option(help="Method; padim, or the preset's.")] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="padim-r18-rd100, padim-wr50-rd550, padim-effnet-b5, spade-wr50, mahalanobis-ad-effnet-b4, or vae-, "
            "patch-svdd-, ganomaly- or itae-paper."
        ),
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="Backbone; efficientnet_lite0 if none is given.")] = None,
    layers: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="One to five layers; of mahalanobis-ad any number.")
    ] = None,
    n_features: Annotated[int | None, typer.Option(help="Channels to draw at random; all if not given.")] = None,
    reduction: Annotated[Reduction | None, typer.Option(help="How --n-features are got; random.")] = None,
    seed: Annotated[int, typer.Option(help="Fixes the draw.")] = 0,
    regularization: Annotated[
        str | None, typer.Option(metavar="auto|paper|EPS|A,EPS", help="What few images' covariances lean on; auto.")
    ] = None,
    variant: Annotated[Variant | None, typer.Option(help="spade: as in the paper, or as its known port.")] = None,
    n_neighbors: Annotated[int | None, typer.Option(metavar="K", help="spade: images compared with; 50 or 5.")] = None,
    image_layer: Annotated[str | None, typer.Option(help="spade: layer that finds them; the last level.")] = None,
    coreset: Annotated[float | None, typer.Option(metavar="SHARE", help="spade: share of patches to keep.")] = None,
    weights: WeightsOption = None,
    random_weights: Annotated[bool, typer.Option("--random-weights", help="An untrained backbone.")] = False,
    resize: Annotated[str | None, typer.Option(metavar="N|HxW", help="Size of the whole image; 256.")] = None,
    crop: Annotated[str | None, typer.Option(metavar="N|HxW", help="Centre crop after that; none.")] = None,
    aspect: Annotated[Aspect, typer.Option(help="Images of other proportions.")] = "squash",
    device: DeviceOption = "auto",
    runtime: RuntimeOption = "auto",
    workers: WorkersOption = None,
    precision: Annotated[
        Precision | None,
        typer.Option(
            help="Of the backbone, or of a training; float32. auto, of a backbone: bfloat16 where the CPU has it."
        ),
    ] = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="How the file stores its factors; float32, 16 bits halve it.")
    ] = None,
    false_alarm_rate: Annotated[
        float, typer.Option(metavar="Q", help="Share of good parts that may be flagged.")
    ] = 0.01,
    calibrate: Annotated[
        Calibrate | None,
        typer.Option(help="How good parts get honest scores: leave-one-out; holdout where a network is trained."),
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(metavar="REGEX|folder", help="Near-duplicates: images whose path matches alike are one group."),
    ] = None,
    cache_mb: Annotated[
        float | None,
        typer.Option(metavar="MB", help="Memory for images, 448; for a training, or the gallery of spade, 1024."),
    ] = None,
    budget: Annotated[float | None, typer.Option(metavar="MINUTES", help="Time for a training; none.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of a training; the paper's.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of a training, to repeat what a budget came to.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step of a training; the paper's.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of a training; the paper's.")] = None,
    patience: Annotated[int | None, typer.Option(help="Epochs without a lower loss that end a training.")] = None,
    width: Annotated[int | None, typer.Option(help="Size of a trained network; the paper's.")] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keeps a training, and goes on from it; MODEL.checkpoint until it is done."),
    ] = None,
    stride: StrideOption = 1,
    skip_bad: SkipBadOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Learn what GOOD parts look like and write a MODEL."""
    check_writable_target(output)
    if output.suffix.lower() in SUFFIXES:
        raise ParameterError(f"{output}: has the name of an image; give the model another, such as part.flawmap")
    if random_weights and weights is not None:
        raise ParameterError("--random-weights leaves the backbone untrained; give either it or --weights")
    given: dict[str, Any] = {
        "backbone": backbone,
        "layers": None if layers is None else tuple(name.strip() for name in layers.split(",")),
        "n_features": n_features,
        "regularization": None if regularization is None else parse_regularization(regularization),
        "weights": weights,
        "resize": parse_size(resize, "--resize"),
        "crop": parse_size(crop, "--crop"),
    }
    given |= {
        "runtime": None if runtime == "auto" else runtime,
        "precision": precision and precision.value,
        "pretrained": False if random_weights else None,
        "reduction": reduction and reduction.value,
        "variant": variant and variant.value,
        "n_neighbors": n_neighbors,
        "image_layer": image_layer,
        "coreset": coreset,
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
        given["calibrate"] = None if calibrate is Calibrate.none else calibrate.value
    if checkpoint is not None and checkpoint.absolute() == output.absolute():
        raise ParameterError("--checkpoint and --output name one file; the model would replace the training")
    chosen = choose_detector(detector and detector.value, preset)
    keeps = chosen in TRAINED and checkpoint is None
    unfinished = output.with_name(f"{output.name}.checkpoint") if keeps else None
    if unfinished is not None:
        given["checkpoint"] = unfinished
    fixed: dict[str, Any] = {
        "seed": seed,
        "aspect": aspect,
        "device": device,
        "false_alarm_rate": false_alarm_rate,
    }
    model = make_detector(chosen, preset, {**fixed, **given})
    saving: dict[str, Any] = {} if dtype is None else {"dtype": dtype.value}
    if saving and "dtype" not in inspect.signature(model.save).parameters:
        raise ParameterError(f"--dtype is not for {chosen}; leave it out")
    if unfinished is not None and unfinished.exists() and not quiet:
        messages.print(f"Going on from {escape(str(unfinished))}, where an earlier run has stopped.")
    bad = BadImages()
    started = time.perf_counter()
    images = good if stride == 1 else _every(good, stride)
    try:
        model.fit(images, progress=not quiet, on_bad=bad if skip_bad else None)
    except KeyboardInterrupt:
        kept = checkpoint or unfinished
        if kept is None or not kept.exists():
            raise
        fail(f"interrupted; the training is kept in {kept}, and the same command goes on from there", 130)
    model.save(output, **saving)
    if unfinished is not None:
        unfinished.unlink(missing_ok=True)
    seconds = time.perf_counter() - started
    size = output.stat().st_size
    if as_json:
        print_json(
            {
                "model": str(output),
                "n_images": model.n_images_,
                "threshold": model.decision_.threshold if model.decision_ else None,
                "false_alarm_rate": model.decision_.false_alarm_rate if model.decision_ else None,
                "bytes": size,
                "seconds": round(seconds, 3),
                "outliers": list(model.outliers_),
                "copies": list(model.copies_),
                "skipped": bad.to_json(),
                **_specific(model),
            }
        )
    elif not quiet:
        messages.print(
            f"Learnt from {model.n_images_} good images in {seconds:.1f} s: {escape(str(output))} "
            f"({size / 1e6:.1f} MB).\nNext: flawmap predict {escape(shlex.quote(str(output)))} IMAGES -o OUT"
        )
        if isinstance(summary := model.describe().get("training"), dict):
            messages.print(
                f"Trained {summary['steps']} steps in {summary['minutes']:.1f} minutes, ended by its "
                f"{summary['stopped']}; mean loss {summary['final_loss']:.4g}. --steps {summary['steps']} repeats it."
            )
        if model.decision_ is not None:
            explain_promise(model.decision_, false_alarm_rate)
        elif calibrate is not Calibrate.none:
            messages.print(
                "[yellow]note:[/] too few good images, or groups of them, for a threshold: predictions will have "
                "scores but no labels; at least 3 are needed, 99 for a promise of 1 %"
            )
        _warn(model)


def _every(good: str, stride: int) -> ImageInput:
    """Every so many of the good images; of a data set's clips, of each."""
    found = training_images(good)
    if isinstance(found, (str, Path)):
        return list(collect(found).items)[::stride]
    return open_dataset(good).every(stride).train


def _specific(model: AnyDetector) -> dict[str, object]:
    """What the summary says of one kind of detector alone."""
    from flawmap import PaDiM

    if isinstance(model, PaDiM):
        return {
            "near_duplicates": [list(pair) for pair in model.duplicates_],
            "regularization": {"ridge": model.regularization_.ridge, "sharing": model.regularization_.sharing},
        }
    return {name: value for name, value in model.describe().items() if name == "training"}


def parse_regularization(text: str) -> str | float | tuple[float, ...]:
    """`auto`, `paper`, `0.1` or `0.1,0.5` as `PaDiM` takes it."""
    if text in ("auto", "paper"):
        return text
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ParameterError(
            f"--regularization takes auto, paper, EPS or A,EPS such as 0.1,0.5; got '{text}'"
        ) from None
    return numbers[0] if len(numbers) == 1 else numbers


def _warn(model: AnyDetector) -> None:
    """Say what looks wrong with the good images, and what to do."""
    for name in model.outliers_[:SHOWN]:
        messages.print(f"[yellow]note:[/] {escape(name)} looks unlike the other good images: is it good?")
    if len(model.outliers_) > SHOWN:
        messages.print(f"[yellow]note:[/] and {len(model.outliers_) - SHOWN} more; --json names them all")
    if model.copies_:
        messages.print(
            f"[yellow]note:[/] {len(model.copies_)} images equal others, such as {escape(model.copies_[0])}: "
            f"a copy vouches for itself, so more good parts will be flagged than promised; remove the copies"
        )
    pairs: tuple[tuple[str, str], ...] = getattr(model, "duplicates_", ())  # of PaDiM alone
    near = [pair for pair in pairs if pair[1] not in model.copies_]
    if near:
        earlier, later = near[0]
        messages.print(
            f"[yellow]note:[/] {len(near)} images nearly equal others, such as {escape(later)} and {escape(earlier)}: "
            f"they vouch for each other, so more good parts may be flagged than promised; keep one of each, or name "
            f"what belongs together with --groups"
        )
