"""The detectors side by side: accuracy, fit time, time per image, memory and file size against training-set size.

Each run is a process of its own. Accuracy is on the test images of a data set in MVTec AD layout, on `--test` of them
at most, drawn evenly. Prints one JSON object.

    python benchmarks/detectors.py mvtec_ad/screw [--backbone resnet18 --weights FILE --image-layer layer3 --crop 224]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from flawmap import load
from flawmap.datasets import open_dataset
from flawmap.detectors import DETECTORS
from flawmap.evaluation.evaluate import evaluate

VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "padim": ("padim", {}),
    "spade-port": ("spade", {"variant": "port"}),
    "spade-paper": ("spade", {"variant": "paper"}),
    "spade-port-coreset": ("spade", {"variant": "port", "coreset": 0.1}),
    "mahalanobis-ad": ("mahalanobis-ad", {}),
}


def measure(name: str, n_train: int, options: argparse.Namespace) -> dict[str, object]:
    """Fit, save, load and evaluate in this process."""
    kind, arguments = VARIANTS[name]
    given: dict[str, object] = {"backbone": options.backbone, "weights": options.weights, "crop": options.crop}
    if kind == "spade":
        given["image_layer"] = options.image_layer
    if kind == "mahalanobis-ad" and options.levels:
        given["layers"] = options.levels.split(",")
    data = open_dataset(options.dataset)
    train = data.train[:: max(1, len(data.train) // n_train)][:n_train]
    test = data.test[:: max(1, len(data.test) // options.test)]
    started = time.perf_counter()
    model = DETECTORS[kind](**given, **arguments).fit(train)  # type: ignore[arg-type]
    fitted = time.perf_counter()
    fit_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.flawmap")
        model.save(path)
        size = path.stat().st_size
        del model
        loaded = load(path, weights=options.weights)
        ready = time.perf_counter()
        result = evaluate(loaded, test)
    figures = {"image_auroc": result.image_auroc, "pixel_auroc": result.pixel_auroc, "pro_score": result.pro_score}
    return {
        "detector": name,
        "n_train": len(train),
        "n_test": len(test),
        **{key: None if value is None else round(value, 4) for key, value in figures.items()},
        "fit_seconds": round(fitted - started, 1),
        "seconds_per_image": round((time.perf_counter() - ready) / len(test), 4),
        "fit_peak_mb": round(fit_peak / 1024),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "file_mb": round(size / 1e6, 1),
    }


def main() -> None:
    """Run each detector on each training-set size in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--detectors", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--sizes", type=int, nargs="+", default=[40, 320])
    parser.add_argument("--test", type=int, default=1000, help="test images at most")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--weights")
    parser.add_argument("--image-layer", help="of spade")
    parser.add_argument("--levels", help="of mahalanobis-ad: A,B,C")
    parser.add_argument("--crop", type=int)
    parser.add_argument("--here", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measure(options.here[0], int(options.here[1]), options)))
        return
    runs = []
    for name in options.detectors:
        for size in options.sizes:
            command = [sys.executable, __file__, *sys.argv[1:], "--here", name, str(size)]
            runs.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
            print(json.dumps(runs[-1]), file=sys.stderr)
    print(json.dumps({"dataset": options.dataset, "backbone": options.backbone, "runs": runs}, indent=2))


if __name__ == "__main__":
    main()
