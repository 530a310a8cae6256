"""Peak memory of fitting WRN-50-2 with 550 channels at 224 x 224 on 320 and on 3,200 images, each in its own process.

Weights and images are random: neither time nor memory depends on their values. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def images(n: int) -> Iterator[NDArray[np.uint8]]:
    """Random images, made one at a time."""
    rng = np.random.default_rng(0)
    for _ in range(n):
        yield rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)


def measure(n_images: int, backbone: str, n_features: int) -> dict[str, object]:
    """Fit and save in this process; its peak resident memory."""
    from flawmap import PaDiM

    start = time.perf_counter()
    model = PaDiM(backbone=backbone, n_features=n_features, resize=256, crop=224, pretrained=False)
    model.fit(images(n_images))
    fitted = time.perf_counter()
    fit_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.flawmap")
        model.save(path)
        size = path.stat().st_size
    return {
        "n_images": n_images,
        "fit_seconds": round(fitted - start, 1),
        "fit_peak_mb": round(fit_peak / 1024),
        "fit_and_save_peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "file_mb": round(size / 1e6),
    }


def main() -> None:
    """Run each size in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="wide_resnet50_2")
    parser.add_argument("--n-features", type=int, default=550)
    parser.add_argument("--images", type=int, nargs="+", default=[320, 3200])
    parser.add_argument("--here", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measure(options.here, options.backbone, options.n_features)))
        return
    results = []
    for n in options.images:
        command = [sys.executable, __file__, "--here", str(n), "--backbone", options.backbone]
        command += ["--n-features", str(options.n_features)]
        results.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    growth = results[-1]["fit_and_save_peak_mb"] / results[0]["fit_and_save_peak_mb"] - 1
    print(json.dumps({"backbone": options.backbone, "runs": results, "growth": round(growth, 4)}, indent=2))


if __name__ == "__main__":
    main()
