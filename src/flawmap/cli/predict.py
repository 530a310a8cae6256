"""`flawmap predict`: score images and write tables, overlays and maps."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import Annotated, BinaryIO

import numpy as np
import typer
from PIL import Image
from rich.markup import escape

from flawmap.cli.console import (
    BadImages,
    DeviceOption,
    JsonOption,
    QuietOption,
    RuntimeOption,
    SkipBadOption,
    WeightsOption,
    WorkersOption,
    guarded,
    messages,
    print_json,
)
from flawmap.errors import DatasetError, ParameterError
from flawmap.files import replace_atomically
from flawmap.images import collect, read_image
from flawmap.options import Runtime
from flawmap.prediction import Prediction
from flawmap.progress import report_progress
from flawmap.results.pictures import overlay

COLUMNS = (
    "path",
    "pred_score",
    "pred_label",
    "p_value",
    "pred_mask",
    "n_regions",
    "regions",
    "image_height",
    "image_width",
    "overlay",
    "anomaly_map",
)

OVERLAYS, MAPS, MASKS = FOLDERS = ("overlays", "maps", "masks")
"""Folders of the results of each image."""


@guarded
def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model file of `flawmap fit`, or export folder.")],
    images: Annotated[list[str], typer.Argument(metavar="IMAGES...", help="Images, folders, globs.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="Folder for the results.")],
    maps: Annotated[
        bool, typer.Option("--maps", help="Write each raw map as .npy, float32 at the input size.")
    ] = False,
    masks: Annotated[
        bool, typer.Option("--masks", help="Write each mask as .png at the photo's size, marked pixels white.")
    ] = False,
    overlays: Annotated[bool, typer.Option("--overlays/--no-overlays", help="Write a picture of each image.")] = True,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    runtime: RuntimeOption = "auto",
    workers: WorkersOption = None,
    skip_bad: SkipBadOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Score IMAGES; write OUT/predictions.csv and .jsonl, an overlay picture each, and raw maps on request.

    An image that cannot be read is named and left out, the others are still scored; the exit code is then 1, or 0 with
    --skip-bad.
    """
    everything = [Path(str(item)) for item in collect(images).items]
    paths = _without_results(output, everything)
    if not paths:
        raise DatasetError(f"{output}: all {len(everything)} images lie where its results go; name another folder")
    scorer = _open(model, weights, device, runtime, workers)
    results = Results(output, paths, scorer.map_scale if overlays else None, maps, masks)
    bad = BadImages()
    with results.tables() as add_row, report_progress(not quiet, "Predicting", len(paths)) as advance:
        for prediction in scorer.score(paths, on_bad=bad):
            add_row(results.write(prediction))
            advance(1)
        if len(bad.errors) == len(paths):
            raise DatasetError(f"none of the {len(paths)} images could be used; no predictions were written")
    n_images = len(paths) - len(bad.errors)
    if as_json:
        summary = {
            "output": str(output),
            "n_images": n_images,
            "n_anomalous": results.n_anomalous,
            "n_results_left_out": len(everything) - len(paths),
        }
        print_json({**summary, "skipped": bad.to_json()})
    elif not quiet:
        if len(everything) > len(paths):
            messages.print(
                f"[yellow]note:[/] {len(everything) - len(paths)} images were left out: they lie in the folders of "
                f"results of {escape(str(output))}, where an earlier run leaves its pictures"
            )
        if masks and not scorer.decides:
            messages.print("[yellow]note:[/] the model was not calibrated: without a threshold there are no masks")
        if scorer.map_scale is None and (overlays or maps or masks):
            messages.print(
                "[yellow]note:[/] the model judges whole images: there are no heat maps, overlays or regions"
            )
        judged = "" if not scorer.decides else f", {results.n_anomalous} of them anomalous"
        messages.print(f"Scored {n_images} images{judged}: {escape(str(output / 'predictions.csv'))}")
    if bad.errors and not skip_bad:
        raise typer.Exit(1)


@dataclass(frozen=True)
class Scorer:
    """A model file or an export, ready to score."""

    score: Callable[..., Iterator[Prediction]]
    map_scale: tuple[float, float] | None
    decides: bool


def _open(model: Path, weights: str | None, device: str, runtime: Runtime, workers: int | None) -> Scorer:
    """A model file, which needs torch, or a folder of `flawmap export`, which does not."""
    if model.is_dir():
        from flawmap import Inspector

        if weights is not None:
            raise ParameterError(f"{model} is an export and holds its weights; leave out --weights")
        if runtime != "auto":
            raise ParameterError(f"{model} is an export, which its own library runs; leave out --runtime")
        inspector = Inspector(model, device=device, workers=workers)
        return Scorer(inspector.iter_inspect, inspector.metadata.map_scale, inspector.threshold is not None)
    from flawmap import load

    detector = load(model, weights=weights, device=device, runtime=runtime, workers=workers)
    return Scorer(detector.iter_predict, detector.map_scale, detector.decision_ is not None)


def _without_results(output: Path, paths: list[Path]) -> list[Path]:
    """The images that are not pictures which an earlier run has left below the output folder."""
    results = [os.path.join(os.path.realpath(output), folder, "") for folder in FOLDERS]  # noqa: PTH118
    return [path for path in paths if not os.path.realpath(path).startswith(tuple(results))]


class Results:
    """What one run writes below its output folder."""

    def __init__(
        self, output: Path, paths: Sequence[Path], scale: tuple[float, float] | None, maps: bool, masks: bool
    ) -> None:
        self.output = output
        self.scale = scale
        self.maps = maps
        self.masks = masks
        self.names = _short_names(paths)
        self.n_anomalous = 0

    def write(self, prediction: Prediction) -> dict[str, object]:
        """Write an image's overlay and map; gives its row."""
        path = str(prediction.path)
        height, width = prediction.image_size
        self.n_anomalous += prediction.pred_label or 0
        row: dict[str, object] = {
            "path": path,
            "pred_score": float(f"{prediction.pred_score:.9g}"),
            "pred_label": prediction.pred_label,
            "p_value": prediction.p_value,
            "n_regions": None if prediction.pred_mask is None else len(prediction.regions),
            "image_height": height,
            "image_width": width,
            "regions": [asdict(region) for region in prediction.regions],
        }
        if self.scale is not None and prediction.anomaly_map is not None:
            picture = Image.fromarray(overlay(read_image(path), prediction, self.scale))
            with self._file(OVERLAYS, path, ".png", row, "overlay") as file:
                picture.save(file, format="PNG", compress_level=1)
        if self.maps and prediction.anomaly_map is not None:
            with self._file(MAPS, path, ".npy", row, "anomaly_map") as file:
                np.save(file, prediction.anomaly_map, allow_pickle=False)
        if self.masks and prediction.pred_mask is not None:
            marked = prediction.placement.to_original(prediction.pred_mask.astype(np.float32)) > 0.5
            with self._file(MASKS, path, ".png", row, "pred_mask") as file:
                Image.fromarray(marked).save(file, format="PNG")
        return row

    @contextmanager
    def tables(self) -> Iterator[Callable[[dict[str, object]], None]]:
        """Yields a function that adds a row to both tables; they appear when the block ends well."""
        self.output.mkdir(parents=True, exist_ok=True)
        with (
            replace_atomically(self.output / "predictions.csv") as csv_path,
            replace_atomically(self.output / "predictions.jsonl") as lines_path,
            csv_path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as csv_file,
            lines_path.open("w", encoding="utf-8") as lines,
        ):
            table = csv.DictWriter(csv_file, COLUMNS, restval="", extrasaction="ignore")
            table.writeheader()

            def add_row(row: dict[str, object]) -> None:
                table.writerow({**row, "regions": json.dumps(row["regions"])})
                lines.write(json.dumps(row) + "\n")

            yield add_row

    @contextmanager
    def _file(self, folder: str, path: str, suffix: str, row: dict[str, object], column: str) -> Iterator[BinaryIO]:
        """A file for one image in a subfolder; its place, relative to the output folder, goes into the row."""
        place = PurePosixPath(folder, self.names[path] + suffix)
        target = self.output / place
        target.parent.mkdir(parents=True, exist_ok=True)
        with replace_atomically(target) as temporary, temporary.open("wb") as file:
            yield file
        row[column] = str(place)


def _short_names(paths: Sequence[Path]) -> dict[str, str]:
    """A distinct relative name for each image: its path below the folder that all share, without the suffix."""
    absolute = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100 (no ".." may lead out of the folder)
    shared = Path(os.path.commonpath([path.parent for path in absolute])) if absolute else Path()
    names: dict[str, str] = {}
    taken: set[str] = set()
    for path, full in zip(paths, absolute, strict=True):
        relative = full.relative_to(shared)
        name = relative.with_suffix("").as_posix()
        candidates = chain([name, relative.as_posix()], (f"{relative.as_posix()}-{n}" for n in count(2)))
        name = next(candidate for candidate in candidates if candidate not in taken)
        taken.add(name)
        names[str(path)] = name
    return names
