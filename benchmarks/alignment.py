"""Alignment on real data: what it does to detection, whether its poses are right, and what it costs.

Fits with each combination of the settings that are given, evaluates it on the test images, and prints one JSON line for
each, then a table of all: figures in the photo's frame, the defects found and good images flagged by thresholds that
promise 5 % and 1 %, what `align` took, good images lost, the matches of the good images, seconds. With `--rd-seeds N`
the data set is replaced by N of its Rd variants (turned by up to 10 degrees, cropped to 224 of 256 pixels).

    python benchmarks/alignment.py DATASET|elpv:mono ... [--resize 256 512] [--align none auto]
        [--regularization auto 0.8,0.3] [-p NAME=VALUE ...] [--rd-seeds N] [--output FILE.jsonl]

`--poses` fits nothing: it learns the reference from the good images, and compares the pose of every image with another
estimate, OpenCV's ECC (Evangelidis and Psarakis 2008), from flawmap's pose and from five poses within 3 degrees and 3 %
of the side of it, these at half the canvas first; that of the best correlation counts. The photo is turned by flawmap's
pose first, since OpenCV's Euclidean motion fails beyond 90 degrees. It prints how the two differ, names the images that
differ by more than 1 degree or 1 %, and writes those as pictures into `--pictures`: above the reference, the photo
aligned by flawmap and by ECC; below the photo, and what the two differ in from the reference.

    python benchmarks/alignment.py DATASET --poses [--resize 512] [--align rigid] [--pictures FOLDER]

`--cost` times the parts of aligning one image, in this thread.

    OMP_NUM_THREADS=1 python benchmarks/alignment.py DATASET --cost [--resize 256 512]
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flawmap import PaDiM
from flawmap.datasets import Dataset, open_dataset, write_rd_mvtec_ad
from flawmap.decision.decision import LOST
from flawmap.evaluation.evaluate import evaluate
from flawmap.images import ImageSource, Preprocessing, read_image, stream
from flawmap.images.alignment import AlignedPreprocessing, Aligner, Sample, learn_aligner, spread
from flawmap.images.alignment.aligner import grey_picture
from flawmap.images.alignment.pose import Frame, inside, pose_matrix, resample
from flawmap.images.alignment.search import STEPS, Grey, Picture
from flawmap.options import Alignment
from flawmap.prediction import Placement

ANGLES = (-3.0, -1.5, 1.0, 2.0, 3.0)
SHIFTS = ((0.03, 0.0), (-0.02, 0.03), (0.0, -0.03), (-0.03, -0.01), (0.015, 0.02))
"""Degrees, and parts (y, x) of the side, by which ECC's further starts lie away from flawmap's pose."""
COARSE = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 30, 1e-4)
FINE = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 20, 1e-5)
"""When ECC ends, at half the canvas from a start that is off, and at the canvas."""
HALVED, DOUBLED = np.diag([0.5, 0.5, 1.0]), np.diag([2.0, 2.0, 1.0])
LOST_MATCH = -1.0
FAR = 1.0
"""Degrees, or per cent of the side, from which a difference is looked at."""
PERCENTILES = (50, 90, 95, 99, 100)
SHOWN = 24
"""Pictures that are written, at most."""
REPEATS = 20
COLUMNS = (
    "data", "resize", "align", "taken", "regularization", "image_auroc", "pixel_auroc", "pro", "found_5", "flagged_5",
    "found_1", "flagged_1", "lost", "test_lost", "match_min", "match_5", "match_median", "fit_s",
)  # fmt: skip


def measure(data: Dataset, name: str, parameters: dict[str, Any]) -> dict[str, object]:
    """Fit one detector, and its figures on the test images."""
    started = time.perf_counter()
    model = PaDiM(**{"false_alarm_rate": 0.01, **parameters}).fit(data.train)
    fit_s = time.perf_counter() - started
    result = evaluate(model, data)
    matches = [place.pose.match for _, place in placed(data.train, model.preprocessing) if place.pose is not None]
    chosen = model.regularization_
    at_1 = None if model.decision_ is None or model.decision_.lowest_rate > 0.01 else model.decision_
    return {
        "data": name,
        "n_good": len(data.train),
        "n_test": len(data.test),
        "parameters": {key: str(value) for key, value in parameters.items()},
        "resize": str(parameters["resize"]),
        "align": str(parameters["align"]),
        "taken": "none" if model.aligner_ is None else model.aligner_.reference.kind,
        "regularization": f"{chosen.sharing:g},{chosen.ridge:.3g}",
        "image_auroc": rounded(result.image_auroc),
        "pixel_auroc": rounded(result.pixel_auroc),
        "pro": rounded(result.pro_score),
        "found_5": rounded(result.found_at_5),
        "flagged_5": rounded(result.flagged_at_5),
        "found_1": None if at_1 is None or result.miss_rate is None else rounded(1 - result.miss_rate.value),
        "flagged_1": None
        if at_1 is None or result.false_alarm_rate is None
        else rounded(result.false_alarm_rate.value),
        "lost": len(data.train) - model.n_images_ if model.calibrate != "holdout" else None,
        "test_lost": len(result.remarks.get(LOST, ())),
        "match_min": rounded(min(matches, default=None)),
        "match_5": rounded(float(np.quantile(matches, 0.05)) if matches else None),
        "match_median": rounded(float(np.median(matches)) if matches else None),
        "least_match": rounded(None if model.aligner_ is None else model.aligner_.least_match),
        "angles": None if model.aligner_ is None else model.aligner_.reference.angles,
        "fit_s": round(fit_s, 1),
    }


def placed(items: Sequence[ImageSource], preprocessing: Preprocessing) -> Iterator[tuple[NDArray[np.uint8], Placement]]:
    """The canvas of each image and how its part lies on it; nothing of a preprocessing that does not align."""
    if isinstance(preprocessing, AlignedPreprocessing):
        for image in stream(items, preprocessing, whole=True):
            yield image.pixels, image.placement


def rounded(value: float | None) -> float | None:
    """To four digits."""
    return None if value is None else round(value, 4)


def combinations(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Parameters of each fit."""
    given = dict(setting.split("=", 1) for setting in options.parameter)
    further = {name: literal(value) for name, value in given.items()}
    for resize, align, regularization in product(options.resize, options.align, options.regularization):
        own = {"resize": literal(resize), "align": align, "regularization": literal(regularization)}
        yield {**own, **further}


def literal(text: str) -> object:
    """A number, a tuple, None, True or False; any other text is itself."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def data_sets(options: argparse.Namespace) -> Iterator[tuple[str, Dataset]]:
    """Each data set that is given, or its Rd variants, with a name for the table."""
    for where in options.dataset:
        if not options.rd_seeds:
            yield where, open_dataset(where)
            continue
        for seed in range(options.rd_seeds):
            with tempfile.TemporaryDirectory() as folder:
                root = Path(folder, "rd")
                write_rd_mvtec_ad(where, root, seed=seed)
                yield f"{where} Rd {seed}", open_dataset(next(root.iterdir()))


def print_table(rows: Sequence[dict[str, object]], columns: Sequence[str]) -> None:
    """Rows of equal columns, as people read them."""
    cells = [list(columns), *([str(row.get(name)) for name in columns] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    for row in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def figures(options: argparse.Namespace) -> None:
    """Fit and evaluate each combination on each data set."""
    rows = []
    for name, data in data_sets(options):
        for parameters in combinations(options):
            row = measure(data, name, parameters)
            rows.append(row)
            print(json.dumps(row), flush=True)
            if options.output:
                with options.output.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    print_table(rows, COLUMNS)


def learnt_aligner(data: Dataset, plain: Preprocessing, kind: Alignment) -> Aligner:
    """That of the good images that a fit would take."""
    some, _ = spread(data.train, len(data.train))
    aligner = learn_aligner(Sample.of(list(stream(some, plain, whole=True)), plain), kind)
    if aligner is None:
        raise SystemExit(f"align '{kind}' takes none of {data.name}")
    return aligner


def poses(options: argparse.Namespace) -> None:
    """Compare the pose of every image with that of ECC."""
    for where, resize in product(options.dataset, options.resize):
        data, plain = open_dataset(where), Preprocessing.of(literal(resize))  # type: ignore[arg-type]
        aligner = learnt_aligner(data, plain, options.align[-1])
        kind = aligner.reference.kind
        judge = Judge.of(aligner, data, plain)
        sources = [*data.train, *(sample.path for sample in data.test)]
        compared = [judge.compare(source) for source in sources]
        found = [one for one in compared if one["ecc"] is not None]
        print(json.dumps({"data": where, "resize": resize, "kind": kind, "images": len(sources), "ecc": len(found)}))
        for what, unit in (("angle", "degrees"), ("shift", "% of the side")):
            values = np.abs([one[what] for one in found])
            quantiles = dict(zip(PERCENTILES, np.round(np.percentile(values, PERCENTILES), 3).tolist(), strict=True))
            print(json.dumps({"differs_in": what, "unit": unit, "percentiles": quantiles}))
        far = [one for one in compared if one["ecc"] is None or max(abs(one["angle"]), one["shift"]) > FAR]
        far.sort(key=lambda one: -max(abs(one["angle"] or 0), one["shift"] or 0))
        for one in far:
            print(json.dumps(one))
        print(json.dumps({"beyond": len(far), "of": len(compared), "ecc_correlates_better": judged(far)}))
        for number, one in enumerate(far[:SHOWN] if options.pictures else ()):
            options.pictures.mkdir(parents=True, exist_ok=True)
            place = Path(one["image"])
            judge.picture(one["image"]).save(options.pictures / f"{number:02d}_{place.parent.name}_{place.stem}.png")


def judged(far: Sequence[dict[str, Any]]) -> int:
    """Of how many images ECC's pose matches the reference better than flawmap's."""
    return sum(one["ecc"] is not None and one["ecc"] > one["flawmap"] for one in far)


class Judge:
    """Poses by flawmap and by ECC on the full canvas, against one reference: the mean of aligned good images."""

    def __init__(self, preprocessing: AlignedPreprocessing, reference: Grey) -> None:
        self.preprocessing, self.reference = preprocessing, reference
        self.frame = Frame(preprocessing.resize, (float(reference.shape[0]), float(reference.shape[1])))
        self.half = cv2.resize(reference, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        self.differing: dict[str, NDArray[np.float64]] = {}

    @classmethod
    def of(cls, aligner: Aligner, data: Dataset, plain: Preprocessing) -> Judge:
        """A reference as large as the canvas, of all good images that are found."""
        preprocessing = AlignedPreprocessing.of_aligner(plain, aligner)
        total, count = np.zeros(plain.resize), np.zeros(plain.resize)
        for canvas, place in placed(data.train, preprocessing):
            if place.pose is not None and place.pose.found:
                seen = canvas[..., 3] > 0
                total += grey_of(canvas[..., :3]) * seen
                count += seen
        mean = total / np.maximum(count, 1)
        return cls(preprocessing, np.where(count > 0, mean, np.median(mean[count > 0])).astype(np.float32))

    def compare(self, source: ImageSource) -> dict[str, Any]:
        """How ECC's pose differs from flawmap's: in degrees, and in % of the side where the canvas's middle lies."""
        canvas = self._canvas(source)
        own = self._own(canvas)
        grey = grey_of(canvas)
        moved = np.asarray(resample(Image.fromarray(grey), own, grey.shape))
        mask = 255 * inside(own, grey.shape, (0, 0, *grey.shape), margin=0.5).astype(np.uint8)
        half_moved, half_mask = (
            cv2.resize(one, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for one in (moved, mask)
        )
        there = [pose_matrix(math.radians(a), 1.0, shift) for a, shift in zip(ANGLES, SHIFTS, strict=True)]
        small = [
            ecc(self.half, half_moved, half_mask, HALVED @ self.frame.affine(start) @ DOUBLED, COARSE)
            for start in there
        ]
        coarse = [DOUBLED @ affine @ HALVED for affine in small if affine is not None]
        starts = [np.eye(3), *sorted(coarse, key=lambda affine: -self._match(grey, own @ affine))[:1]]
        refined = [ecc(self.reference, moved, mask, start, FINE) for start in starts]
        poses = [own @ affine for affine in refined if affine is not None]
        best = max(poses, key=lambda pose: self._match(grey, pose), default=None)
        found = {"image": str(source), "flawmap": self._match(grey, own)}
        if best is None:
            return {**found, "ecc": None, "angle": None, "shift": None}
        height, width = grey.shape
        apart = (best - own) @ np.array([height / 2, width / 2, 1])
        angle = round(math.degrees(math.remainder(angle_of(best) - angle_of(own), 2 * math.pi)), 4)
        shift = round(100 * float(np.hypot(*apart[:2])) / max(grey.shape), 4)
        if max(abs(angle), shift) > FAR:
            self.differing[str(source)] = best
        return {**found, "ecc": self._match(grey, best), "angle": angle, "shift": shift}

    def picture(self, source: str) -> Image.Image:
        """Reference, aligned by flawmap, by ECC; below, differences from the reference."""
        canvas = self._canvas(source)
        grey = grey_of(canvas)
        own, other = self._own(canvas), self.differing.get(source, np.eye(3))
        moved = [np.asarray(resample(Image.fromarray(grey), pose, grey.shape)) for pose in (own, other)]
        above = np.hstack([self.reference, *moved])
        below = np.hstack([grey, *(np.clip(127 + one - self.reference, 0, 255) for one in moved)])
        return Image.fromarray(np.clip(np.vstack([above, below]), 0, 255).astype(np.uint8))

    def _canvas(self, source: ImageSource) -> NDArray[np.uint8]:
        return Preprocessing.of(self.preprocessing.resize).apply(read_image(source), whole=True)[0]

    def _own(self, canvas: NDArray[np.uint8]) -> NDArray[np.float64]:
        aligner = self.preprocessing.aligner
        if aligner is None:
            raise ValueError("nothing is aligned")
        pose, _ = aligner.locate(canvas, (0, 0, *canvas.shape[:2]))
        return aligner.frame.affine(pose)

    def _match(self, grey: Grey, affine: NDArray[np.float64]) -> float:
        """Correlation with the reference of those pixels that the image shows."""
        moved = np.asarray(resample(Image.fromarray(grey), affine, grey.shape, fill=-1))
        seen = moved >= 0
        if seen.mean() < 0.5:
            return LOST_MATCH
        return round(float(np.corrcoef(moved[seen], self.reference[seen])[0, 1]), 5)


def ecc(
    reference: NDArray[Any],
    image: NDArray[Any],
    mask: NDArray[Any],
    start: NDArray[np.float64],
    criteria: tuple[int, int, float],
) -> NDArray[np.float64] | None:
    """The affine (3, 3) that ECC finds near a start; None where it does not converge."""
    try:
        warp = to_cv(start).astype(np.float32)
        warp = cv2.findTransformECC(reference, image, warp, cv2.MOTION_EUCLIDEAN, criteria, mask, 5)[1]  # type: ignore[assignment]
    except cv2.error:
        return None
    return from_cv(np.asarray(warp, np.float64))


def grey_of(canvas: NDArray[np.uint8]) -> Grey:
    """Grey (H, W) float32 of an image (H, W, 3)."""
    return np.asarray(Image.fromarray(canvas).convert("L"), np.float32)


def angle_of(affine: NDArray[np.float64]) -> float:
    """Radians by which a square canvas is turned."""
    return math.atan2(affine[0, 1], affine[0, 0])


def to_cv(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """(2, 3) of (x, y), pixels' middles at whole numbers, from (3, 3) of (row, column), middles at halves."""
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    swapped = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1]])
    return np.asarray(swapped @ np.linalg.inv(half) @ affine @ half @ swapped)[:2]


def from_cv(warp: NDArray[np.float64]) -> NDArray[np.float64]:
    """The way back."""
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    swapped = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1]])
    return np.asarray(half @ swapped @ np.vstack([warp, [0, 0, 1]]) @ swapped @ np.linalg.inv(half))


def cost(options: argparse.Namespace) -> None:
    """Milliseconds an image, of each part of aligning it."""
    rows = []
    for where, resize in product(options.dataset, options.resize):
        data, plain = open_dataset(where), Preprocessing.of(literal(resize))  # type: ignore[arg-type]
        aligner = learnt_aligner(data, plain, options.align[-1])
        row = {"data": where, "resize": resize, "kind": aligner.reference.kind}
        rows.append(row | costs(aligner, plain, [read_image(path) for path in data.train[:REPEATS]]))
        print(json.dumps(rows[-1]), flush=True)
    print_table(rows, list(rows[0]))


def costs(aligner: Aligner, plain: Preprocessing, photos: Sequence[NDArray[np.uint8]]) -> dict[str, float]:
    """Medians over some photos; `locate` holds the search and the refinement, `aligned` everything."""
    reference, content = aligner.reference, (0, 0, *plain.resize)
    canvases = [plain.apply(photo, whole=True)[0] for photo in photos]
    greys = [grey_picture(canvas, content, reference.frame.size) for canvas in canvases]
    poses_ = [aligner.locate(canvas, content)[0] for canvas in canvases]

    def of_size(frame: Frame) -> list[Grey]:
        return [Picture(grey, reference.frame).resized(frame).values for grey in greys]

    def move(pair: tuple[NDArray[np.uint8], NDArray[np.float64]]) -> object:
        return aligner.move(pair[0], content, aligner.frame.affine(pair[1]))

    found = {
        "plain": median_ms(plain.apply, photos),
        "aligned": median_ms(AlignedPreprocessing.of_aligner(plain, aligner).apply, photos),
        "grey": median_ms(lambda canvas: grey_picture(canvas, content, reference.frame.size), canvases),
        "locate": median_ms(reference.locate, greys),
        "search": median_ms(reference._bank.candidates, of_size(reference._levels[0].picture.frame)),
    }
    for level, n_steps in zip(reference._levels, STEPS, strict=False):
        refine = partial(refine_one, level, n_steps)
        pairs = list(zip(of_size(level.picture.frame), poses_, strict=True))
        found[f"refine_{max(level.picture.frame.size)}"] = median_ms(refine, pairs)
    return {**found, "move": median_ms(move, list(zip(canvases, poses_, strict=True)))}


def refine_one(level: Any, n_steps: int, pair: tuple[Grey, NDArray[np.float64]]) -> object:  # noqa: ANN401 (private)
    """Refine one pose on one level."""
    return level.refine(*pair, n_steps)


def median_ms(function: Callable[[Any], object], arguments: Sequence[Any]) -> float:
    """Median milliseconds of a call."""
    function(arguments[0])
    times = []
    for argument in arguments:
        started = time.perf_counter()
        function(argument)
        times.append(time.perf_counter() - started)
    return round(1000 * statistics.median(times), 2)


def main() -> None:
    """Figures, poses or cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="+")
    parser.add_argument("--resize", nargs="+", default=["256"])
    parser.add_argument("--align", nargs="+", default=["none", "auto"])
    parser.add_argument("--regularization", nargs="+", default=["auto"])
    parser.add_argument("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help="of PaDiM")
    parser.add_argument("--rd-seeds", type=int, default=0)
    parser.add_argument("--output", type=Path, help="also append the lines to this file")
    parser.add_argument("--pictures", type=Path, help="folder for pictures of poses that differ")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--poses", action="store_true")
    what.add_argument("--cost", action="store_true")
    options = parser.parse_args()
    (poses if options.poses else cost if options.cost else figures)(options)


if __name__ == "__main__":
    main()
