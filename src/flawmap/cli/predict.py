"""`flawmap predict`: score images and write tables, overlays and maps."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flawmap.cli import options
from flawmap.cli.console import BadImages, Remarks, guarded, note, print_json, say, tell_passed_over
from flawmap.cli.options import option
from flawmap.decision import Decision, fewest_discoveries
from flawmap.errors import DatasetError, ParameterError, counted
from flawmap.folders import recover_folder
from flawmap.images import ImagePage, VideoFrame, collect
from flawmap.options import Runtime
from flawmap.progress import report_progress
from flawmap.results import ResultsWriter, without_results, without_tables
from flawmap.results.writer import is_occupied

if TYPE_CHECKING:
    from flawmap.detectors import Detector
    from flawmap.runtime import Inspector


@guarded
def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model file of `flawmap fit`, or export folder.")],
    images: Annotated[list[str], typer.Argument(metavar="IMAGES...", help="Images, folders, globs, videos.")],
    output: Annotated[Path, option("Folder for the results.", "OUT", "--output", "-o")],
    maps: Annotated[bool, option("Write each raw map as .npy, float32 at the input size.", None, "--maps")] = False,
    masks: Annotated[
        bool, option("Write each mask as .png at the photo's size, anomalous pixels white.", None, "--masks")
    ] = False,
    overlays: Annotated[bool, option("Write a picture of each image.")] = True,
    excel: Annotated[
        bool, option("Write predictions.csv for spreadsheets: no text in it is computed as a formula.", None, "--excel")
    ] = False,
    fdr: Annotated[
        float | None,
        option(
            "False-discovery rate: share of good parts among those labelled anomalous in this run. It replaces the "
            "threshold.",
            "Q",
        ),
    ] = None,
    weights: options.Weights = None,
    device: options.Device = "auto",
    runtime: options.RuntimeChoice = "auto",
    workers: options.Workers = None,
    stride: Annotated[int, option("Judge every N-th frame of each video.", "N", min=1)] = 1,
    skip_bad: options.SkipBad = False,
    strict: options.Strict = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Score IMAGES; write OUT/predictions.csv and .jsonl, an overlay picture each, and raw maps on request.

    Each page of a file and each frame of a video is an image. An image that cannot be read is named and left out, the
    others are still scored; the exit code is then 1, or 0 with --skip-bad.
    """
    collection = collect(images, stride=stride, warn=False)
    everything = [item for item in collection.items if isinstance(item, (Path, ImagePage, VideoFrame))]
    if is_occupied(output):
        raise ParameterError(f"{output} is a file; -o takes a folder")
    paths = without_results(output, everything)
    passed_over = without_tables(output, collection.passed_over)
    others = without_results(output, collection.results)  # of other runs
    tell_passed_over(passed_over, results=others, strict=strict, quiet=quiet or as_json)
    if not paths:
        raise DatasetError(
            f"{output}: its results go where all that was given lies ({counted(len(everything), 'image')}); name "
            f"another folder"
        )
    detector = _open(model, weights, device, runtime, workers)
    if fdr is not None and detector.decision_ is None:
        raise ParameterError(f"{model} is not calibrated: it gives no p-values, which --fdr needs")
    files = {"overlays": overlays, "maps": maps, "masks": masks}
    writer = ResultsWriter(output, paths, map_scale=detector.map_scale, excel=excel, fdr=fdr, **files)
    bad, remarks = BadImages(), Remarks()
    n_lost = 0
    with writer as results, report_progress(not quiet, "Predicting", len(paths)) as advance:
        for prediction in detector.iter_predict(paths, on_bad=bad):
            results.write(prediction)
            remarks.add(prediction.path, prediction.remarks)
            n_lost += not prediction.found
            advance(1)
        if len(bad.errors) == len(paths):
            raise DatasetError(
                f"{counted(len(paths), 'image')} given, and none could be used; no predictions were written"
            )
    n_images, n_own = len(paths) - len(bad.errors), len(everything) - len(paths) + len(collection.results) - len(others)
    batch = None if fdr is None or detector.decision_ is None else Batch.of(n_images, detector.decision_, fdr)
    if as_json:
        counts = {
            "n_images": n_images,
            "n_anomalous": writer.n_anomalous,
            "n_not_found": n_lost,
            "n_results_left_out": n_own + len(others),
        }
        found = {"passed_over": [str(path) for path in passed_over], "remarks": remarks.names}
        discovery = {"false_discovery": None if batch is None else asdict(batch)}
        print_json({"output": str(output), **counts, **discovery, "skipped": bad.to_json(), **found})
    elif not quiet:
        remarks.show()
        _report(detector, writer, n_images, n_own, batch)
    if (bad.errors and not skip_bad) or (n_lost and strict):
        raise typer.Exit(1)


def _open(model: Path, weights: str | None, device: str, runtime: Runtime, workers: int | None) -> Detector | Inspector:
    """A model file, which needs torch, or an export folder, which does not."""
    recover_folder(model)
    if model.is_dir():
        from flawmap import Inspector

        if weights is not None:
            raise ParameterError(f"{model} is an export and holds its weights; leave out --weights")
        if runtime != "auto":
            raise ParameterError(f"{model} is an export, which its own library runs; leave out --runtime")
        return Inspector(model, device=device, workers=workers)
    from flawmap import load

    return load(model, weights=weights, device=device, runtime=runtime, workers=workers)


@dataclass(frozen=True)
class Batch:
    """Whether p-values are fine enough to label a batch by its false-discovery rate.

    Attributes:
        rate: the false-discovery rate.
        n_images: images of the batch.
        n_good: good images, or groups of them, with held-out scores.
        smallest_p_value: 1 / (n_good + 1).
        fewest_discoveries: images that must have it before any is labelled anomalous; None if all would not do.
        n_good_needed: good images with which 1 would do.
    """

    rate: float
    n_images: int
    n_good: int
    smallest_p_value: float
    fewest_discoveries: int | None
    n_good_needed: int

    @classmethod
    def of(cls, n_images: int, decision: Decision, rate: float) -> Batch:
        """The batch of so many images, judged by a decision."""
        smallest = decision.lowest_rate
        fewest = fewest_discoveries(n_images, smallest, rate)
        return cls(rate, n_images, decision.n_groups, smallest, fewest, max(1, math.ceil(n_images / rate - 1e-9) - 1))

    def explain(self, decision: Decision) -> None:
        """Say what coarse p-values hide; nothing if they are fine enough."""
        if self.fewest_discoveries == 1:
            return
        hidden = (
            "no image of this batch can be labelled anomalous"
            if self.fewest_discoveries is None
            else f"fewer than {self.fewest_discoveries} anomalous images in this batch cannot be labelled anomalous"
        )
        what = "good images" if decision.group_sizes is None else "groups of good images"
        note(
            f"p-values are too coarse for --fdr {self.rate:g}: the smallest is 1/{self.n_good + 1} with {self.n_good} "
            f"{what}, and {hidden}. To find a single one among {self.n_images} images you need {self.n_good_needed} "
            f"{what}; or give a higher rate, or fewer images at a time."
        )


def _report(
    detector: Detector | Inspector, writer: ResultsWriter, n_images: int, n_left_out: int, batch: Batch | None
) -> None:
    """Say what was written, and why something that was asked for was not."""
    is_calibrated = detector.decision_ is not None
    if n_left_out:
        note(
            f"{counted(n_left_out, 'image')} left out: in the folders of results of {writer.output}, where an earlier "
            f"run leaves its pictures"
        )
    if writer.masks and not is_calibrated:
        note("the model was not calibrated: without a threshold there are no masks")
    if detector.map_scale is None and (writer.overlays or writer.maps or writer.masks):
        note("the model is image-level: there are no heat maps, overlays or regions")
    labelled = f", {writer.n_anomalous} of them anomalous" if is_calibrated else ""
    if batch is not None and detector.decision_ is not None:
        batch.explain(detector.decision_)
        labelled += f" at a false-discovery rate of {100 * batch.rate:g} %"
    say(f"Scored {counted(n_images, 'image')}{labelled}: {writer.output / 'predictions.csv'}")
