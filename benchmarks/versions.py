"""Times the calls of one version of flawmap, to be set beside those of another: fit, load and predict.

    PYTHONPATH=CHECKOUT/src python benchmarks/versions.py GOOD TEST

GOOD is a folder of good images, TEST one of images to score. Start it for either version in turns, on a quiet machine.
Prints one JSON object: seconds of each call, medians where a call is repeated, and the peak memory.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from flawmap import PaDiM, load


def seconds(call: Callable[[], object], repeats: int = 1) -> float:
    """Median seconds of a call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return round(statistics.median(times), 4)


def main() -> None:
    """Time each call once or more, and print the seconds."""
    good, test = sys.argv[1:]
    paths = sorted(Path(test).rglob("*.png"))[:40]
    image = np.asarray(Image.open(paths[0]).convert("RGB"))
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "part.flawmap"
        found["fit and save"] = seconds(lambda: PaDiM().fit(good).save(file))
        for runtime in ("torch", "openvino"):
            start = time.perf_counter()
            model = load(file, runtime=runtime)
            model.predict(image)
            found[f"load and first image, {runtime}"] = round(time.perf_counter() - start, 4)
            model.predict(paths)
            found[f"one image, {runtime}"] = seconds(lambda model=model: model.predict(image), 100)
            found[f"a file of a folder, {runtime}"] = seconds(lambda model=model: model.predict(paths), 5) / len(paths)
    found["peak MB"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
