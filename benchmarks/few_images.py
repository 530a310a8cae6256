"""Whether thresholds learnt from few good images keep their promise on good images that were never seen.

So many images are drawn at random, a model is fitted to them, and up to 60 of the others are judged; all that several
times. Prints one JSON object: the lowest rate that so few images can promise, and the share that was flagged.

    python benchmarks/few_images.py FOLDER_OF_GOOD_IMAGES [--images 12 --splits 12 --resize 128]
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from flawmap import PaDiM
from flawmap.datasets import training_images
from flawmap.images import collect

MOST_UNSEEN = 60


def main() -> None:
    """Draw, fit, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("good")
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--splits", type=int, default=12)
    parser.add_argument("--resize", type=int, default=128)
    options = parser.parse_args()
    paths = list(collect(training_images(options.good)).items)
    flagged, seconds = [], []
    for seed in range(options.splits):
        order = np.random.default_rng(seed).permutation(len(paths))
        learnt, unseen = np.split(order, [options.images])
        start = time.perf_counter()
        model = PaDiM(resize=options.resize).fit([paths[i] for i in learnt])
        seconds.append(time.perf_counter() - start)
        judged = model.predict([paths[i] for i in unseen[:MOST_UNSEEN]])
        flagged += [prediction.pred_label for prediction in judged]
    result = {
        "images": options.images,
        "promised": round(1 / (options.images + 1), 4),
        "flagged": round(float(np.mean(flagged)), 4),
        "judged": len(flagged),
        "fit_seconds": round(float(np.median(seconds)), 2),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
