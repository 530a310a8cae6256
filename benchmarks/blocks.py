"""Blocks of positions that share a covariance: what they cost in detection, and what they save.

Fits, saves, loads and evaluates one model, and prints one JSON line: figures on the test images, the defects found and
good images flagged by a threshold that promises 5 %, seconds and peak memory of the fit, size of the file, and
milliseconds of one prediction and of its comparison with the Gaussians alone. Times are those of the processor, of all
threads. Start it anew for each combination: peak memory is that of the process.

    OMP_NUM_THREADS=1 python benchmarks/blocks.py DATASET|elpv:mono [--resize 512] [--blocks 2] [-p NAME=VALUE ...]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from alignment import literal, rounded
from flawmap import PaDiM, load
from flawmap.datasets import Dataset, open_dataset
from flawmap.detectors.padim.graph import PaDiMHead
from flawmap.evaluation.evaluate import evaluate
from flawmap.images import stream

REPEATS = 30


def milliseconds(call: Callable[[], object]) -> float:
    """Median of the processor's time, after three calls that do not count."""
    times = []
    for _ in range(3 + REPEATS):
        started = time.process_time()
        call()
        times.append(1000 * (time.process_time() - started))
    return round(statistics.median(times[3:]), 1)


def comparison(model: PaDiM, data: Dataset) -> float:
    """Milliseconds from the feature maps of one image to its anomaly map and score."""
    head = PaDiMHead(model.factor_, model.preprocessing.input_size, top_share=model.top_share_)
    pixels = np.stack([image.pixels for image in stream(data.train[:1], model.preprocessing)])
    with torch.inference_mode():
        features = model.backbone_.features(pixels[..., :3])
        return milliseconds(lambda: head(features))


def main() -> None:
    """Measure one combination."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--resize", type=int, default=256)
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    further = {name: literal(value) for name, value in (pair.split("=", 1) for pair in options.parameter)}
    data = open_dataset(options.dataset)
    started = time.process_time()
    model = PaDiM(**{"resize": options.resize, "blocks": options.blocks, **further}).fit(data.train)
    fit_s = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    with tempfile.TemporaryDirectory() as folder:
        model.save(path := Path(folder, "m.flawmap"))
        size = path.stat().st_size
        chosen, model = model.regularization_, load(path)
    result = evaluate(model, data)
    image = data.test[0].path
    row = {
        "data": options.dataset,
        "resize": options.resize,
        "blocks": options.blocks,
        "regularization": f"{chosen.sharing:g},{chosen.ridge:.3g}",
        "image_auroc": rounded(result.image_auroc),
        "pixel_auroc": rounded(result.pixel_auroc),
        "pro": rounded(result.pro_score),
        "found_5": rounded(result.found_at_5),
        "flagged_5": rounded(result.flagged_at_5),
        "fit_s": round(fit_s, 1),
        "peak_mb": round(peak),
        "file_mb": round(size / 1e6, 1),
        "predict_ms": milliseconds(lambda: model.predict(image)),
        "compare_ms": comparison(model, data),
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
