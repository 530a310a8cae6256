"""How well pasted defects choose the sharing of covariances: the area that they give, and what real defects say.

For each sharing, at the ridge of the likelihood: the area under the ROC curve of pasted defects, from good images
alone; and image AUROC, defects found and good images flagged at a promised 5 % on the test images. Then what "auto"
takes for several seeds. Prints JSON, one line a data set.

    python benchmarks/sharing.py DATASET|elpv:mono ... [--align auto] [--resize 256] [--seeds 3]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from flawmap import PaDiM
from flawmap.datasets import Dataset, open_dataset
from flawmap.detectors.padim import sharing
from flawmap.evaluation.metrics import image_auroc

RATE = 0.05


@contextmanager
def areas() -> Iterator[list[float]]:
    """The areas that are computed meanwhile: of the likelihood's choice, then of each candidate."""
    found, told_apart = [], sharing._told_apart

    def noted(images: np.ndarray, copies: np.ndarray) -> np.ndarray:
        told = told_apart(images, copies)
        found.append(float(told.mean()))
        return told

    sharing._told_apart = noted
    try:
        yield found
    finally:
        sharing._told_apart = told_apart


def measure(data: Dataset, options: argparse.Namespace) -> dict[str, object]:
    """All figures of a data set."""
    common = {"align": options.align, "resize": options.resize}
    chosen = []
    with areas() as found:
        for seed in range(options.seeds):
            model = PaDiM(**common, seed=seed).fit(data.train)
            chosen.append(model.regularization_.sharing)
    ridge = model.regularization_.ridge
    likely = PaDiM(**common, regularization="likelihood").fit(data.train).regularization_.sharing
    labels = [sample.is_anomalous for sample in data.test]
    rows = []
    for a in sorted({likely, *sharing.SHARINGS}):
        model = PaDiM(**common, regularization=(a, ridge)).fit(data.train).set_threshold(false_alarm_rate=RATE)
        predictions = model.predict([sample.path for sample in data.test])
        flagged = np.array([prediction.pred_label == 1 for prediction in predictions])
        anomalous = np.array(labels)
        columns = (likely, *sharing.SHARINGS)
        rows.append(
            {
                "sharing": a,
                "area": round(float(np.mean(found[columns.index(a) :: len(columns)])), 4),
                "image_auroc": round(image_auroc(labels, [one.pred_score for one in predictions]), 4),
                "found": round(float(flagged[anomalous].mean()), 3),
                "flagged": round(float(flagged[~anomalous].mean()), 3),
            }
        )
    return {"likelihood": likely, "ridge": round(ridge, 3), "auto": chosen, "sharings": rows}


def main() -> None:
    """Measure each data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+")
    parser.add_argument("--align", default="auto")
    parser.add_argument("--resize", type=int, default=256)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    for name in options.datasets:
        print(json.dumps({"data": name, **measure(open_dataset(name), options)}), flush=True)


if __name__ == "__main__":
    main()
