"""`flawmap fit`: learn from good images and write a model file."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sized
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from flawmap.cli import options
from flawmap.cli.console import (
    BadImages,
    Remarks,
    check_writable_target,
    explain_promise,
    fail,
    guarded,
    note,
    print_json,
    say,
    tell_passed_over,
)
from flawmap.cli.detector_choice import choose_detector, further_parameters, make_detector
from flawmap.cli.options import option
from flawmap.datasets import Dataset, training_data
from flawmap.errors import ParameterError, counted
from flawmap.images import SUFFIXES, ImageInput, collect
from flawmap.options import (
    COMMAND_OPTIONS,
    MIN_IMAGES,
    Alignment,
    Aspect,
    Calibration,
    FactorDtype,
    PrecisionChoice,
    Reading,
    Runtime,
)

if TYPE_CHECKING:
    from flawmap.detectors import Detector

SHOWN = 5
"""Outliers that are named one by one."""
DETECTORS = "Method: padim, spade, mahalanobis-ad, vae, patch-svdd, ganomaly, itae, or an installed one."
PRESETS = (
    "Settings of a paper: padim-r18-rd100, padim-wr50-rd550, padim-effnet-b5, spade-wr50, mahalanobis-ad-effnet-b4, "
    "vae-paper, patch-svdd-paper, ganomaly-paper, itae-paper; or padim-dinov2-s, a vision transformer."
)
of_backbone = partial(option, panel="Backbone")
of_padim = partial(option, panel="PaDiM")
of_spade = partial(option, panel="SPADE")
of_training = partial(option, panel="Training (vae, patch-svdd, ganomaly, itae)")
of_file = partial(option, panel="Memory and model file")


@guarded
def fit(
    ctx: typer.Context,
    good: Annotated[
        str, typer.Argument(metavar="GOOD", help="Folder or glob of good images; a video; a data set; elpv:mono.")
    ],
    output: Annotated[Path, option("Model file to write.", "MODEL", "--output", "-o")],
    detector: Annotated[str | None, option(DETECTORS, "NAME", default="padim, or the preset's")] = None,
    preset: Annotated[str | None, option(PRESETS, "NAME", default="none")] = None,
    backbone: Annotated[str | None, option("Frozen network.", "NAME", default="efficientnet_lite0")] = None,
    resize: Annotated[
        str | None, option("Size of the whole image; long:N, short:N: in proportion.", "N|HxW|long:N", default="256")
    ] = None,
    crop: Annotated[str | None, option("Centre crop after that.", "N|HxW|none", default="none")] = None,
    aspect: Annotated[Aspect, option("Photos of other proportions: stretch or pad them.")] = "squash",
    reading: Annotated[Reading, option("Read large photos no finer than needed, or all of their pixels.")] = "reduced",
    roi: Annotated[
        str | None,
        option(
            "Region of interest: a mask (0 is not inspected), or polygons (.json) in pixels of a photo.",
            "FILE",
            default="everything",
        ),
    ] = None,
    roi_photo: Annotated[
        str | None, option("Photo that the region was drawn on.", "PHOTO", default="the first of GOOD")
    ] = None,
    bits: Annotated[
        int | None,
        option(
            "Bits of each sample that 16-bit images use, such as 12.", "N", default="as the file says", min=8, max=16
        ),
    ] = None,
    n_features: Annotated[int | None, option("Number of channels, drawn at random.", "N", default="all")] = None,
    regularization: Annotated[
        str | None, option("Covariance regularization: auto, likelihood, paper, EPS or A,EPS.", "RULE", default="auto")
    ] = None,
    false_alarm_rate: Annotated[float, option("Share of good parts that may be flagged.", "Q")] = 0.01,
    calibrate: Annotated[
        Literal[Calibration, "none"] | None,
        option("Source of held-out scores.", default="leave-one-out; holdout where a network is trained"),
    ] = None,
    groups: Annotated[
        str | None,
        option(
            "Photos that belong together: found; those with the same match in their path; or none.",
            "auto|REGEX|folder|none",
            default="auto",
        ),
    ] = None,
    seed: Annotated[int, option("Random seed.", "N")] = 0,
    device: options.Device = "auto",
    workers: options.Workers = None,
    stride: options.Stride = 1,
    skip_bad: options.SkipBad = False,
    strict: options.Strict = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    layers: Annotated[
        str | None, of_backbone("Layers, one to five; of mahalanobis-ad any.", "A,B,C", default="usual")
    ] = None,
    weights: Annotated[
        str | None,
        of_backbone(
            "Weights file (.safetensors, .pth), or hf-hub:REPO to fetch it.", "PATH", default="found on this machine"
        ),
    ] = None,
    random_weights: Annotated[bool, of_backbone("Random weights instead.", None, "--random-weights")] = False,
    runtime: Annotated[Runtime, of_backbone("Library that runs the backbone.")] = "auto",
    precision: Annotated[
        PrecisionChoice | None,
        of_backbone(
            "Numbers it computes in, also of a training; auto: 16 bits if the CPU has them.", default="float32"
        ),
    ] = None,
    score: Annotated[
        str | None,
        of_padim("Image score: the map's maximum, or mean of its top 0.2 % or SHARE.", "max|top|SHARE", default="top"),
    ] = None,
    align: Annotated[
        Alignment | None, of_padim("Turn and shift parts to lie alike; auto: if that helps.", default="auto")
    ] = None,
    blocks: Annotated[int | None, of_padim("Cells a side that share a covariance: 1, 2, 4.", "B", default="1")] = None,
    reduction: Annotated[
        Literal["random", "pca"] | None, of_padim("Reduction to --n-features.", default="random")
    ] = None,
    refit_below: Annotated[
        int | None, of_padim("Number of good images below which each is left out by a refit.", "N", default="50", min=0)
    ] = None,
    variant: Annotated[
        Literal["paper", "port"] | None, of_spade("The paper's equations, or its public port.", default="paper")
    ] = None,
    n_neighbors: Annotated[int | None, of_spade("Number of nearest images.", "K", default="50; port: 5")] = None,
    image_layer: Annotated[str | None, of_spade("Layer that finds neighbours.", "NAME", default="last level")] = None,
    coreset: Annotated[float | None, of_spade("Share of patches to keep.", "SHARE", default="all")] = None,
    n_mapped: Annotated[
        int | None, of_spade("Number of good images that set the pixel threshold.", "N", default="50")
    ] = None,
    budget: Annotated[float | None, of_training("Time limit.", "MINUTES", default="none")] = None,
    epochs: Annotated[int | None, of_training("Epochs.", default="the paper's")] = None,
    steps: Annotated[int | None, of_training("Step limit, to repeat a budget's result.", default="none")] = None,
    batch_size: Annotated[int | None, of_training("Images a step.", default="the paper's")] = None,
    learning_rate: Annotated[float | None, of_training("Learning rate.", default="the paper's")] = None,
    patience: Annotated[int | None, of_training("Epochs without a lower loss that end it.", default="none")] = None,
    width: Annotated[int | None, of_training("Network size.", default="the paper's")] = None,
    checkpoint: Annotated[
        Path | None, of_training("File that keeps an unfinished training.", "FILE", default="MODEL.checkpoint")
    ] = None,
    dtype: Annotated[
        FactorDtype | None, of_file("Numbers in which the file stores factors; 16 bits halve it.", default="float32")
    ] = None,
    cache_mb: Annotated[
        float | None,
        of_file("Memory for images; of spade for its gallery.", "MB", default="448; spade, trainings: 1024"),
    ] = None,
) -> None:
    """Learn what GOOD parts look like and write a MODEL."""
    given = _parameters({name: value for name, value in locals().items() if name not in {"ctx", *COMMAND_OPTIONS}})
    _check(output, given)
    kind = choose_detector(detector or None, preset)
    given |= further_parameters(ctx, kind)
    unfinished = _unfinished(kind, output, given)
    model = make_detector(kind, preset, given)
    if dtype is not None and dtype not in model.factor_dtypes:
        raise ParameterError(f"--dtype is not for {kind.name}; leave it out")
    if unfinished is not None and unfinished.exists() and not quiet:
        say(f"The training goes on from {unfinished}, where an earlier run stopped.")
    bad, started = BadImages(), time.perf_counter()
    images, passed_over, results = _find(good, stride)
    tell_passed_over(passed_over, results=results, strict=strict, quiet=quiet or as_json)
    if not (quiet or as_json):
        _tell_of_refits(model, images)
    try:
        model.fit(images, progress=not quiet, on_bad=bad if skip_bad else None)
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
        found = {"passed_over": [str(path) for path in passed_over], "n_results_left_out": len(results)}
        print_json({**_summary(model, output, seconds, bad), **found})
    elif not quiet:
        _report(model, output, seconds, asked=false_alarm_rate)


def _tell_of_refits(model: Detector, found: ImageInput | Dataset) -> None:
    """Say what few images take longer for."""
    images = found.train if isinstance(found, Dataset) else found
    limit = getattr(model, "refit_below", 0)
    if model.calibrate == "leave-one-out" and isinstance(images, Sized) and MIN_IMAGES <= len(images) < limit:
        note(
            f"fewer than {limit} good images: flawmap fits again without each of the {len(images)}, for half a second "
            f"to ten each. --refit-below 0 takes a quicker way, with scores that are too low"
        )


def _parameters(given: dict[str, Any]) -> dict[str, Any]:
    """A detector's parameters from the options, without those that were not given."""
    found = {name: value for name, value in given.items() if value is not None}
    for name in ("resize", "crop"):
        if name in found:
            is_none = name == "crop" and found[name] == "none"  # takes a preset's crop away
            found[name] = None if is_none else options.parse_size(found[name], name)
    if "layers" in found:
        found["layers"] = tuple(name.strip() for name in found["layers"].split(","))
    if "score" in found:
        found["score"] = options.parse_score(found["score"])
    if "regularization" in found:
        found["regularization"] = options.parse_regularization(found["regularization"])
    found |= {name: None for name in ("calibrate", "groups") if found.get(name) == "none"}
    if found["runtime"] == "auto":
        del found["runtime"]
    if found.pop("random_weights"):
        found["pretrained"] = False
    return found


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
    given["checkpoint"] = path = output.with_name(f"{output.name}.checkpoint")
    return path


def _find(good: str, stride: int) -> tuple[ImageInput | Dataset, tuple[Path, ...], tuple[Path, ...]]:
    """Every so many of the good images, of a data set's clips of each; files passed over; pictures of earlier runs."""
    found = training_data(good)
    if isinstance(found, Dataset):
        return found.every(stride), found.passed_over, ()
    collection = collect(found, warn=False)
    return list(collection.items)[::stride], collection.passed_over, collection.results


def _summary(model: Detector, output: Path, seconds: float, bad: BadImages) -> dict[str, object]:
    decision, described = model.decision_, model.describe()
    return {
        "model": str(output),
        "n_images": model.n_images_,
        "threshold": decision.threshold if decision else None,
        "false_alarm_rate": decision.false_alarm_rate if decision else None,
        "false_alarm_bound_95": decision.bound() if decision else None,
        "resize": list(model.preprocessing.resize),
        "inspected": None if model.roi_ is None else round(float(model.roi_.mean()), 4),
        "bytes": output.stat().st_size,
        "seconds": round(seconds, 3),
        "outliers": list(model.outliers_),
        "copies": list(model.copies_),
        "near_duplicates": [list(pair) for pair in model.duplicates_],
        "n_groups": decision.n_groups if decision else None,
        "lowest_false_alarm_rate": decision.lowest_rate if decision else None,
        "found_groups": [list(group) for group in model.groups_],
        "remarks": {remark: list(names) for remark, names in model.remarks_.items()},
        "skipped": bad.to_json(),
        **{name: described[name] for name in ("regularization", "training") if name in described},
    }


def _report(model: Detector, output: Path, seconds: float, *, asked: float) -> None:
    megabytes = output.stat().st_size / 1e6
    say(f"Learnt from {counted(model.n_images_, 'good image')} in {seconds:.1f} s: {output} ({megabytes:.1f} MB).")
    if model.resize_ is not None:
        height, width = model.resize_
        say(f"Photos are resized to {height} x {width} (height x width), by --resize {model.resize}.")
    if model.roi_ is not None:
        share = f"{model.roi_.mean():.0%} of the model's input"
        say(f"Inspected: {share}, by {model.roi}, as it lies on {model.roi_photo_}.")
    say(f"Next: flawmap predict {shlex.quote(str(output))} IMAGES -o OUT")
    if isinstance(summary := model.describe().get("training"), dict):
        say(
            f"Trained {summary['steps']} steps in {summary['minutes']:.1f} minutes, ended by its "
            f"{summary['stopped']}; mean loss {summary['final_loss']:.4g}. --steps {summary['steps']} repeats it."
        )
    if model.aligner_ is not None:
        reference = model.aligner_.reference
        first, last = reference.angles
        turned = "" if reference.kind == "shift" else f", turned by {first:.0f} to {last:.0f} degrees"
        say(
            f"Parts are aligned ({reference.kind}{turned}); matches below {model.aligner_.least_match:.2f} are no part."
        )
    elif getattr(model, "align", "none") == "auto":
        say("Parts are not aligned: they lie alike, or do not match each other well enough.")
    if model.decision_ is not None:
        explain_promise(model.decision_, asked)
    elif model.calibrate is not None:
        note(
            "too few good images, or groups of them, for a threshold: predictions will have scores but no labels. A "
            "threshold needs at least 3 images; to guarantee 1 % false alarms you need at least 99."
        )
    _tell_groups(model)
    _warn(model)


def _tell_groups(model: Detector) -> None:
    """Say which groups were found, and what all groups cost."""
    if model.groups_:
        n_images, largest = sum(map(len, model.groups_)), max(model.groups_, key=len)
        note(
            f"{n_images} images are alike, in {counted(len(model.groups_), 'group')} of up to {len(largest)}, such as "
            f"{largest[0]} and {largest[1]}. Each group is left out as a whole and counts once. --groups none counts "
            f"every image."
        )
    decision = model.decision_
    if decision is not None and decision.group_sizes is not None:
        n_images = len(decision.scores)
        lowest, possible = (f"{100 * rate:.2g}" for rate in (decision.lowest_rate, 1 / (n_images + 1)))
        if lowest != possible:
            note(
                f"{decision.n_groups} groups can guarantee {lowest} % false alarms at the lowest; "
                f"{n_images} independent images could guarantee {possible} %."
            )


def _warn(model: Detector) -> None:
    """Say what looks wrong with the good images, and what to do."""
    remarks = Remarks()
    remarks.add_all(model.remarks_)
    remarks.show()
    for name in model.outliers_[:SHOWN]:
        note(f"{name} looks unlike the other good images: is it good?")
    if len(model.outliers_) > SHOWN:
        note(f"and {len(model.outliers_) - SHOWN} more; --json names them all")
    if model.copies_:
        note(
            f"copies of other images: {len(model.copies_)}, such as {model.copies_[0]}. Duplicates make the "
            f"calibration too optimistic: expect more false alarms. Remove them."
        )
    near = [pair for pair in model.duplicates_ if pair[1] not in model.copies_]
    if near:
        earlier, later = near[0]
        note(
            f"images that nearly equal others: {len(near)}, such as {later} and {earlier}. Near-duplicates make the "
            f"calibration too optimistic: expect more false alarms. Keep one of each, or name what belongs together "
            f"with --groups."
        )
