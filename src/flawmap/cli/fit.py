"""`flawmap fit`: learn from good images and write a model file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from flawmap.cli.console import (
    Aspect,
    BadImages,
    DeviceOption,
    JsonOption,
    QuietOption,
    SkipBadOption,
    WeightsOption,
    check_writable_target,
    explain_promise,
    guarded,
    messages,
    parse_size,
    print_json,
)
from flawmap.cli.detector_choice import DetectorName, Variant, make_detector

SHOWN = 5
"""Outliers that are named one by one."""


@guarded
def fit(
    good: Annotated[str, typer.Argument(metavar="GOOD", help="Folder or glob of good images; or elpv:mono.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="MODEL", help="Model file to write.")],
    detector: Annotated[DetectorName | None, typer.Option(help="Method; padim, or the preset's.")] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="padim-r18-rd100, padim-wr50-rd550, padim-effnet-b5, spade-wr50 or mahalanobis-ad-effnet-b4."
        ),
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="Backbone; efficientnet_lite0 if none is given.")] = None,
    layers: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="One to five layers; of mahalanobis-ad any number.")
    ] = None,
    n_features: Annotated[int | None, typer.Option(help="Channels to draw at random; all if not given.")] = None,
    seed: Annotated[int, typer.Option(help="Fixes the draw.")] = 0,
    regularization: Annotated[float | None, typer.Option(help="Added to each variance; 0.01 is the paper's.")] = None,
    variant: Annotated[Variant | None, typer.Option(help="spade: as in the paper, or as its known port.")] = None,
    n_neighbors: Annotated[int | None, typer.Option(metavar="K", help="spade: images compared with; 50 or 5.")] = None,
    image_layer: Annotated[str | None, typer.Option(help="spade: layer that finds them; the last level.")] = None,
    coreset: Annotated[float | None, typer.Option(metavar="SHARE", help="spade: share of patches to keep.")] = None,
    weights: WeightsOption = None,
    random_weights: Annotated[bool, typer.Option("--random-weights", help="An untrained backbone.")] = False,
    resize: Annotated[str | None, typer.Option(metavar="N|HxW", help="Size of the whole image; 256.")] = None,
    crop: Annotated[str | None, typer.Option(metavar="N|HxW", help="Centre crop after that; none.")] = None,
    aspect: Annotated[Aspect, typer.Option(help="Images of other proportions.")] = Aspect.squash,
    device: DeviceOption = "auto",
    false_alarm_rate: Annotated[
        float, typer.Option(metavar="Q", help="Share of good parts that may be flagged.")
    ] = 0.01,
    calibrate: Annotated[bool, typer.Option(help="Second pass for an honest threshold, leave-one-out.")] = True,
    cache_mb: Annotated[
        float | None,
        typer.Option(metavar="MB", help="Memory for images between two passes, 64; of spade for its gallery, 1024."),
    ] = None,
    skip_bad: SkipBadOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Learn what GOOD parts look like and write a MODEL."""
    check_writable_target(output)
    given: dict[str, Any] = {
        "backbone": backbone,
        "layers": None if layers is None else tuple(name.strip() for name in layers.split(",")),
        "n_features": n_features,
        "regularization": regularization,
        "variant": variant and variant.value,
        "n_neighbors": n_neighbors,
        "image_layer": image_layer,
        "coreset": coreset,
        "cache_mb": cache_mb,
        "weights": weights,
        "resize": parse_size(resize, "--resize"),
        "crop": parse_size(crop, "--crop"),
    }
    given = {name: value for name, value in given.items() if value is not None}
    fixed: dict[str, Any] = {
        "seed": seed,
        "pretrained": not random_weights,
        "aspect": aspect.value,
        "device": device,
        "calibrate": "leave-one-out" if calibrate else None,
        "false_alarm_rate": false_alarm_rate,
    }
    model = make_detector(detector and detector.value, preset, {**fixed, **given})
    bad = BadImages()
    started = time.perf_counter()
    model.fit(good, progress=not quiet, on_bad=bad if skip_bad else None)
    model.save(output)
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
            }
        )
    elif not quiet:
        messages.print(
            f"Learnt from {model.n_images_} good images in {seconds:.1f} s: {output} ({size / 1e6:.1f} MB).\n"
            f"Next: flawmap predict {output} IMAGES -o OUT"
        )
        if model.decision_ is not None:
            explain_promise(model.decision_, false_alarm_rate)
        for name in model.outliers_[:SHOWN]:
            messages.print(f"[yellow]note:[/] {escape(name)} looks unlike the other good images: is it good?")
        if len(model.outliers_) > SHOWN:
            messages.print(f"[yellow]note:[/] and {len(model.outliers_) - SHOWN} more; --json names them all")
        if model.copies_:
            messages.print(
                f"[yellow]note:[/] {len(model.copies_)} images equal others, such as {escape(model.copies_[0])}: "
                f"a copy vouches for itself, so more good parts will be flagged than promised; remove the copies"
            )
