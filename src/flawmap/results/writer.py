"""Writes the predictions of many images into a folder: two tables, and files for each image."""

from __future__ import annotations

import csv
import io
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import chain, count
from pathlib import Path, PurePosixPath
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any, BinaryIO, Self, TextIO, TypeVar

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from flawmap.decision import discover
from flawmap.decision.discovery import check_rate, p_value_of
from flawmap.errors import ParameterError, counted
from flawmap.files import check_replaceable, expand_home, name_file
from flawmap.images import FrameReader, ImagePage, VideoFrame, named_source
from flawmap.images.formats import LINES, MAPS, MASKS, OVERLAYS, RUN_FOLDERS, TABLE
from flawmap.prediction import Prediction
from flawmap.results.pictures import overlay, read_picture
from flawmap.results.run_folder import stage_run

Source = Path | ImagePage | VideoFrame
"""An image that has a file: a path, a page of it, or a frame of it."""
AnySource = TypeVar("AnySource", bound=Source)

COLUMNS = (
    "path", "pred_score", "pred_label", "p_value", "pred_mask", "n_regions", "regions", "image_height", "image_width",
    "overlay", "anomaly_map", "remarks", "found", "angle", "scale", "shift_y", "shift_x", "match", "run",
)  # fmt: skip
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""How a text begins that spreadsheets compute."""


class ResultsWriter:
    """Writes predictions into a folder. A context manager: the results appear when its block ends without an error.

    The folder then holds predictions.csv and predictions.jsonl, a row for each prediction. Each image's files have its
    name and lie in overlays/, maps/ and masks/. A folder that holds nothing but an earlier run's results is replaced in
    one step. Into any other folder the files are moved one by one, tables last: they replace results of the same name,
    and nothing else. The tables, overlays and masks of a run carry its name. If the block ends by an error, nothing has
    changed.

    Args:
        output: the folder; it is made if it does not exist.
        paths: all images that will be written, from which each gets its distinct file name: paths, also of pages
            (`photo.tif#2`) and frames (`clip.mp4#17`).
        map_scale: the detector's `map_scale`; None writes no overlays.
        overlays: write overlays/NAME.png, each image with its anomaly map.
        maps: write maps/NAME.npy, each raw anomaly map, (H, W) float32 at the model's input size.
        masks: write masks/NAME.png, each mask at the image's size, anomalous pixels white.
        excel: write predictions.csv for spreadsheets: with a byte order mark, and with a ' before text that would be
            computed. A path that begins with one of = + - @ is then not the file's name.
        fdr: label the images by this false-discovery rate (`flawmap.decision.discover`) when the block ends, and not by
            the threshold. Both tables then have a column `fdr`, and rows that `write` returns have no label.

    Attributes:
        run: name of this run: time in UTC, and random digits.
        n_anomalous: images with label 1 so far; with `fdr` known when the block has ended.

    Raises ParameterError for images that lie in the folders of the results, which `without_results` leaves out, for two
    images of one name, and for an output that is a file.

    See Also:
        flawmap.results.overlay: the picture alone.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from PIL import Image
        >>> from flawmap import Placement, Prediction
        >>> from flawmap.results import ResultsWriter
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = Path(folder.name, "part.png")
        >>> Image.new("RGB", (64, 64)).save(path)
        >>> anomaly_map = np.ones((32, 32), np.float32)  # of `model.iter_predict(path)`
        >>> prediction = Prediction(str(path), 1.0, anomaly_map, Placement((64, 64), (32, 32), (0, 0), (32, 32)))
        >>> with ResultsWriter(Path(folder.name, "out"), [path], map_scale=(0.0, 2.0), maps=True) as results:
        ...     row = results.write(prediction)
        >>> row["overlay"], row["anomaly_map"]
        ('overlays/part.png', 'maps/part.npy')
        >>> sorted(file.name for file in Path(folder.name, "out").iterdir())
        ['maps', 'overlays', 'predictions.csv', 'predictions.jsonl']
        >>> folder.cleanup()
    """

    def __init__(
        self,
        output: str | os.PathLike[str],
        paths: Sequence[str | os.PathLike[str] | ImagePage | VideoFrame],
        *,
        map_scale: tuple[float, float] | None = None,
        overlays: bool = True,
        maps: bool = False,
        masks: bool = False,
        excel: bool = False,
        fdr: float | None = None,
    ) -> None:
        if fdr is not None:
            check_rate(fdr)
        self.output = expand_home(output)
        self.map_scale = map_scale
        self.overlays = overlays
        self.maps = maps
        self.masks = masks
        self.excel = excel
        self.fdr = fdr
        self.run = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}-{secrets.token_hex(3)}"
        self.n_anomalous = 0
        images = [_source(path) for path in paths]
        if len(kept := without_results(self.output, images)) < len(images):
            raise ParameterError(
                f"{self.output}: holds {counted(len(images) - len(kept), 'image')} in the folders of its results, "
                f"which would be replaced. Name another folder, or leave out what lies there"
            )
        self._names = _short_names(images)
        self._sources = {str(image): image for image in images}
        if twice := next((image for image in images if self._sources[str(image)] != image), None):
            raise ParameterError(
                f"{twice}: is the name of a file, and of a page or frame of {str(twice).rpartition('#')[0]}; one would "
                f"replace the results of the other. Rename the file"
            )
        if is_occupied(self.output):
            raise ParameterError(f"{self.output} is a file; name a folder for the results (-o)")
        self._frames = FrameReader()
        self._stack = ExitStack()
        self._staged = Path()  # where the block writes
        self._table: tuple[csv.DictWriter[str], TextIO] | None = None
        self._unlabelled: TextIO | None = None  # rows that wait for the p-values of all
        self._p_values: list[float] = []

    def __enter__(self) -> Self:
        encoding = "utf-8-sig" if self.excel else "utf-8"
        with ExitStack() as stack:
            self._staged = stack.enter_context(stage_run(self.output))
            for name in (TABLE, LINES):
                check_replaceable(self.output / name)
            csv_file = stack.enter_context(
                (self._staged / TABLE).open("w", encoding=encoding, errors="backslashreplace", newline="")
            )  # names may be no UTF-8
            lines = stack.enter_context((self._staged / LINES).open("w", encoding="utf-8"))
            columns = COLUMNS if self.fdr is None else (*COLUMNS, "fdr")
            table = csv.DictWriter(csv_file, columns, restval="", extrasaction="ignore")
            table.writeheader()
            if self.fdr is not None:
                self._unlabelled = stack.enter_context(TemporaryFile("w+", encoding="utf-8", dir=self._staged))
                stack.push(self._label_rows)
            self._table, self._stack = (table, lines), stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._frames.close()
        try:
            self._stack.__exit__(kind, error, trace)
        finally:
            self._table = None

    def write(self, prediction: Prediction) -> dict[str, object]:
        """Write an image's files and its row, which is returned.

        Raises ParameterError outside the block of the context manager, for an image that is not one of `paths`, and,
        with `fdr`, for a prediction without a p-value.
        """
        if self._table is None:
            raise ParameterError("ResultsWriter writes inside its block: with ResultsWriter(...) as results: ...")
        path, (height, width) = str(prediction.path), prediction.image_size
        if path not in self._names:
            raise ParameterError(f"{path}: expected one of `paths`, which are {counted(len(self._names), 'image')}")
        row: dict[str, object] = {
            "path": path,
            "pred_score": float(f"{prediction.pred_score:.9g}"),
            "pred_label": prediction.pred_label if self.fdr is None else None,
            "p_value": prediction.p_value,
            "n_regions": None if prediction.pred_mask is None else len(prediction.regions),
            "image_height": height,
            "image_width": width,
            "regions": [asdict(region) for region in prediction.regions],
            "remarks": list(prediction.remarks),
            "run": self.run,
            **_pose(prediction),
        }
        self._write_files(prediction, path, row)
        if self._unlabelled is None:
            self._write_row(row, *self._table)
        else:
            self._p_values.append(p_value_of(prediction))
            self._unlabelled.write(json.dumps(row, allow_nan=False) + "\n")
        return row

    def _write_row(self, row: dict[str, Any], table: csv.DictWriter[str], lines: TextIO) -> None:
        """Write a row into both tables."""
        self.n_anomalous += row["pred_label"] or 0
        cells = {**row, "regions": json.dumps(row["regions"]), "remarks": "; ".join(row["remarks"])}
        table.writerow({name: _quoted(cell) for name, cell in cells.items()} if self.excel else cells)
        lines.write(json.dumps(row, allow_nan=False) + "\n")

    def _label_rows(self, kind: type[BaseException] | None, *_: object) -> None:
        """Write the rows that wait, with the labels of the whole batch, unless the block ends by an error."""
        if kind is not None or self._unlabelled is None or self._table is None or self.fdr is None:
            return
        self._unlabelled.seek(0)
        for line, label in zip(self._unlabelled, discover(self._p_values, self.fdr).tolist(), strict=True):
            row = json.loads(line)
            is_anomalous = bool(label) or row["found"] is False
            self._write_row({**row, "pred_label": int(is_anomalous), "fdr": self.fdr}, *self._table)

    def _write_files(self, prediction: Prediction, path: str, row: dict[str, object]) -> None:
        """Write the files asked for; their paths, relative to the output folder, go into the row."""
        anomaly_map, mask = prediction.anomaly_map, prediction.pred_mask
        if self.overlays and self.map_scale is not None and anomaly_map is not None:
            source = self._sources[path]
            # frames come in order, and are decoded one after the other
            photo = self._frames.read(source) if isinstance(source, VideoFrame) else read_picture(source)
            picture = Image.fromarray(overlay(photo, prediction, self.map_scale))
            with self._file(OVERLAYS, path, ".png", row, "overlay") as file:
                picture.save(file, format="PNG", compress_level=1, pnginfo=self._label())
        if self.maps and anomaly_map is not None:
            with self._file(MAPS, path, ".npy", row, "anomaly_map") as file:
                content = io.BytesIO()
                np.save(content, anomaly_map, allow_pickle=False)
                file.write(content.getbuffer())  # np.save into a file would not say that the disk is full
        if self.masks and mask is not None:
            full = prediction.placement.to_original(mask.astype(np.float32)) > 0.5
            with self._file(MASKS, path, ".png", row, "pred_mask") as file:
                Image.fromarray(full).save(file, format="PNG", pnginfo=self._label())

    @contextmanager
    def _file(self, folder: str, path: str, suffix: str, row: dict[str, object], column: str) -> Iterator[BinaryIO]:
        """An image's file in a subfolder; its relative path goes into the row."""
        relative = PurePosixPath(folder, self._names[path] + suffix)
        check_replaceable(self.output / relative)
        target = self._staged / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with target.open("wb") as file:
                yield file
        except OSError as error:
            name_file(error, self.output / relative)
            raise
        row[column] = str(relative)

    def _label(self) -> PngInfo:
        """What tells a picture's run."""
        label = PngInfo()
        label.add_text("run", self.run)
        return label


def _pose(prediction: Prediction) -> dict[str, object]:
    """How the part lies; None where nothing was aligned."""
    pose = prediction.placement.pose
    if pose is None:
        return dict.fromkeys(("found", "angle", "scale", "shift_y", "shift_x", "match"))
    shift_y, shift_x = pose.shift
    found = {"angle": pose.angle, "scale": pose.scale, "shift_y": shift_y, "shift_x": shift_x, "match": pose.match}
    return {"found": pose.found, **{name: round(value, 4) for name, value in found.items()}}


def _quoted(cell: object) -> object:
    """The cell, as text if a spreadsheet would compute it."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell


def _source(path: str | os.PathLike[str] | ImagePage | VideoFrame) -> Source:
    return path if isinstance(path, (ImagePage, VideoFrame)) else named_source(expand_home(path))


def _file(source: Source) -> Path:
    return source if isinstance(source, Path) else source.path


def is_occupied(output: Path) -> bool:
    """Whether something is there that is no folder."""
    return os.path.exists(output) and not os.path.isdir(output)  # noqa: PTH110, PTH112 (a name may be too long)


def without_results(output: str | os.PathLike[str], images: Sequence[AnySource]) -> list[AnySource]:
    """The images that do not lie in the folders of results below `output`, where an earlier run left its pictures."""
    root = os.path.realpath(expand_home(output))
    results = tuple(os.path.join(root, folder, "") for folder in RUN_FOLDERS)  # noqa: PTH118
    return [image for image in images if not os.path.realpath(_file(image)).startswith(results)]


def without_tables(output: str | os.PathLike[str], files: Sequence[Path]) -> list[Path]:
    """The files that are no results below `output`: not in their folders, and no tables of an earlier run."""
    root = os.path.realpath(expand_home(output))
    tables = tuple(os.path.join(root, table) for table in (TABLE, LINES))  # noqa: PTH118
    return [file for file in without_results(output, files) if os.path.realpath(file) not in tables]


def _short_names(images: Sequence[Source]) -> dict[str, str]:
    """A distinct relative name for each image: its path below the folder that all share, without the suffix.

    Pages and frames have their number after it.
    """
    absolute = [Path(os.path.abspath(_file(image))) for image in images]  # noqa: PTH100 (no ".." may lead out of it)
    shared = Path(os.path.commonpath([path.parent for path in absolute])) if absolute else Path()
    names: dict[str, str] = {}
    used: set[str] = set()
    for image, full in zip(images, absolute, strict=True):
        relative = full.relative_to(shared)
        part = "" if isinstance(image, Path) else str(image).removeprefix(str(_file(image))).replace("#", "-")
        stem, whole = relative.with_suffix("").as_posix() + part, relative.as_posix() + part
        name = next(name for name in chain([stem, whole], (f"{whole}-{n}" for n in count(2))) if name not in used)
        used.add(name)
        names[str(image)] = name
    return names
