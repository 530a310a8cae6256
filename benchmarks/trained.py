"""Whether the trained detectors learn: generated parts with a known answer, four minutes for each at most.

Textured parts with pasted scratches and blots (`parts.py`). Each detector trains on good ones alone and
scores unseen ones; AUROC before any training stands beside it, for what the untrained network sees already. Prints one
JSON object, and exits with 1 if a detector misses its bar.

    python benchmarks/trained.py [--detector NAME] [--seed N]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import numpy as np

from flawmap.detectors import ITAE, VAE, GANomaly, PatchSVDD, TrainedDetector
from flawmap.evaluation.metrics import image_auroc
from parts import Parts, generate_parts

MINUTES = 4.0
SETTINGS: dict[type[TrainedDetector[Any]], tuple[dict[str, Any], dict[str, Any], float, float | None]] = {
    # detector: generated parts, arguments, bars of image and pixel AUROC
    VAE: ({"side": 64}, {"resize": 73, "crop": 64, "learning_rate": 1e-3, "steps": 100}, 0.95, 0.90),
    ITAE: ({"side": 64}, {"width": 16, "steps": 150}, 0.95, None),
    GANomaly: ({"side": 64, "n_train": 1200}, {"width": 16}, 0.85, None),
    PatchSVDD: ({"side": 128}, {"steps": 60, "precision": "bfloat16"}, 0.95, 0.90),
}


def measure(detector: TrainedDetector[Any], parts: Parts) -> dict[str, float | None]:
    """Image AUROC and, where there are maps, pixel AUROC."""
    predictions = detector.predict(parts.test)
    scores = np.array([prediction.pred_score for prediction in predictions])
    figures: dict[str, float | None] = {"image_auroc": image_auroc(parts.labels, scores), "pixel_auroc": None}
    if detector.localises:
        seen = [
            detector.preprocessing.apply_mask(mask, prediction.placement)
            for mask, prediction in zip(parts.masks, predictions, strict=True)
        ]
        maps = np.stack([prediction.anomaly_map for prediction in predictions])
        figures["pixel_auroc"] = image_auroc(np.stack(seen).ravel(), maps.ravel())  # of pixels in place of images
    return {name: None if value is None else round(value, 4) for name, value in figures.items()}


def main() -> None:
    """Train, score and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", choices=[kind.name for kind in SETTINGS])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for kind, (parts_of, options, image_bar, pixel_bar) in SETTINGS.items():
        if arguments.detector not in (None, kind.name):
            continue
        parts = generate_parts(seed=arguments.seed, **parts_of)
        options = {"resize": parts_of["side"], "budget": MINUTES, "seed": arguments.seed, **options}
        untrained = measure(kind(**{**options, "steps": 1, "learning_rate": 1e-12}).fit(parts.train), parts)
        started = time.monotonic()
        model = kind(**options).fit(parts.train, progress=sys.stderr.isatty())
        seconds = time.monotonic() - started
        figures = measure(model, parts)
        reached = figures["image_auroc"] >= image_bar and (pixel_bar is None or figures["pixel_auroc"] >= pixel_bar)
        results[kind.name] = {
            **figures,
            "untrained": untrained,
            "bars": [image_bar, pixel_bar],
            "reached": reached,
            "steps": model.record_.steps,
            "seconds": round(seconds, 1),
            "seconds_to_score": round(time.monotonic() - started - seconds, 1),
            "options": {name: value for name, value in options.items() if name != "budget"},
        }
    print(json.dumps(results, indent=2))
    sys.exit(0 if all(result["reached"] for result in results.values()) else 1)


if __name__ == "__main__":
    main()
