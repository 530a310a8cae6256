"""Pixel AUROC and PRO over many maps: time, peak memory, and the error against scikit-learn on a part of them.

Maps of 256 x 256 are smooth, like those of a video's frames, each on a scale of its own; every second has a mask.

    python benchmarks/metrics.py [--maps N] [--types N] [--json FILE]

With `--types` the maps go through `flawmap.evaluation.evaluate.evaluate`, as those of so many types of defects.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import roc_auc_score, roc_curve

from flawmap.datasets import Sample
from flawmap.evaluation.evaluate import evaluate
from flawmap.evaluation.metrics import PixelScores
from flawmap.evaluation.metrics.pixel_scores import MAX_FPR
from flawmap.images import Preprocessing
from flawmap.prediction import Prediction
from flawmap.progress import report_progress

SIDE = 256
PATTERNS = 40
CHECKED = 24
"""Maps that scikit-learn is asked about too."""


def make_maps(n_maps: int) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_] | None]]:
    """Maps (H, W) and masks, or None for good ones."""
    rng = np.random.default_rng(0)
    patterns = []
    for _ in range(PATTERNS):
        coarse = cv2.resize(rng.gamma(2, 1, (64, 64)).astype(np.float32), (SIDE, SIDE))
        smooth = cv2.GaussianBlur(coarse, (0, 0), 4)
        patterns.append((smooth - smooth.min()) / (smooth.max() - smooth.min()))
    mask = np.zeros((SIDE, SIDE), bool)
    mask[100:140, 60:120] = mask[10:20, 10:40] = mask[200, 200] = True
    for i in range(n_maps):
        low, high = 5 + 3 * rng.random(), 15 + rng.random() * (45 if i % 2 else 8)
        one = patterns[i % PATTERNS] * np.float32(high - low) + np.float32(low)
        yield one, mask if i % 2 else None


class Replay:
    """A detector that has these maps ready."""

    preprocessing = Preprocessing.of(SIDE)

    def iter_predict(self, images: Sequence[Path], *, on_bad: object = None) -> Iterator[Prediction]:
        """One for each image."""
        del on_bad
        placement = self.preprocessing.place((SIDE, SIDE))
        for path, (one, _) in zip(images, make_maps(len(images)), strict=True):
            yield Prediction(path, float(one.max()), one, placement)


def measure_evaluate(n_maps: int, n_types: int) -> dict[str, object]:
    """Figures, time and memory of `evaluate`."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "mask.png")
        Image.fromarray(np.uint8(255) * next(mask for _, mask in make_maps(2) if mask is not None)).save(file)
        samples = [
            Sample(Path(f"{i}.png"), f"type {i // 2 % n_types}" if i % 2 else "good", file if i % 2 else None)
            for i in range(n_maps)
        ]
        start = time.perf_counter()
        found = evaluate(Replay(), samples, progress=sys.stderr.isatty())  # type: ignore[arg-type]
    return {
        "maps": n_maps,
        "types": n_types,
        "pixel_auroc": found.pixel_auroc,
        "pro_score": found.pro_score,
        "seconds": round(time.perf_counter() - start, 1),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def measure_metrics(n_maps: int) -> dict[str, object]:
    """Figures, time and memory of the metrics alone."""
    pixels, seconds = PixelScores(), 0.0
    with report_progress(sys.stderr.isatty(), "Maps", n_maps) as advance:
        for one, mask in make_maps(n_maps):
            start = time.perf_counter()
            pixels.add(one, mask)
            seconds += time.perf_counter() - start
            advance(1)
    start = time.perf_counter()
    figures = {"pixel_auroc": pixels.auroc(), "pro_score": pixels.pro()}
    return {
        "maps": n_maps,
        **figures,
        "seconds_adding": round(seconds, 1),
        "seconds_figures": round(time.perf_counter() - start, 1),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "differences_from_scikit_learn": check(),
    }


def check() -> dict[str, float]:
    """Largest differences from scikit-learn, in float64, on the first maps."""
    pixels, scores, truth, weights = PixelScores(), [], [], []
    for one, mask in make_maps(CHECKED):
        pixels.add(one, mask)
        own = np.zeros(one.shape, bool) if mask is None else mask
        labels = cv2.connectedComponents(own.astype(np.uint8))[1]
        sizes = np.bincount(labels.ravel())
        scores.append(one.astype(np.float64).ravel())
        truth.append(own.ravel())
        weights.append(np.where(own, 1 / sizes[labels], 1.0).ravel())
    joined = [np.concatenate(parts) for parts in (truth, scores, weights)]
    x, y, _ = roc_curve(joined[0], joined[1], sample_weight=joined[2], drop_intermediate=False)
    inside = x < MAX_FPR
    x, y = np.append(x[inside], MAX_FPR), np.append(y[inside], np.interp(MAX_FPR, x, y))
    return {
        "pixel_auroc": abs(float(roc_auc_score(joined[0], joined[1])) - (pixels.auroc() or 0)),
        "pro_score": abs(float(np.trapezoid(y, x)) / MAX_FPR - (pixels.pro() or 0)),
    }


def main() -> None:
    """Measure, print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=int, default=40_000)
    parser.add_argument("--types", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report = measure_evaluate(options.maps, options.types) if options.types else measure_metrics(options.maps)
    print(json.dumps(report, indent=2))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
