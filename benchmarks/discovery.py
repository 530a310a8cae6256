"""Whether labels of a batch keep their false-discovery rate, on real images.

A model learns the good training images of a data set. Batches are drawn at random from its test images, each with a few
anomalous ones, and labelled by `flawmap.decision.discover` and, beside it, by the threshold of the same number of false
alarms. Prints one JSON object.

    python benchmarks/discovery.py DATASET|elpv:mono [--batch 100 --anomalous 10 --rate 0.1 --calibrate holdout ...]
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from flawmap import PaDiM
from flawmap.datasets import open_dataset
from flawmap.decision import discover
from flawmap.evaluation import labelled_scores


def main() -> None:
    """Learn and score once, then draw and label."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--anomalous", type=int, default=10)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.05, 0.1, 0.2, 0.4])
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--calibrate", default="leave-one-out")
    options = parser.parse_args()
    data = open_dataset(options.dataset)
    model = PaDiM(calibrate=options.calibrate).fit(data.train)
    labels, scores, _ = labelled_scores(model, data.test)
    decision = model.decision_
    if decision is None:
        raise SystemExit("the model was not calibrated")
    p_values = np.array([decision.p_value(score) for score in scores])
    is_anomalous = np.array(labels, bool)
    good, bad = np.flatnonzero(~is_anomalous), np.flatnonzero(is_anomalous)
    rng = np.random.default_rng(0)
    figures: dict[str, list[list[float]]] = {
        f"{kind} {rate:g}": [] for kind in ("fdr", "threshold") for rate in options.rates
    }
    for _ in range(options.draws):
        drawn = np.concatenate(
            [rng.choice(good, options.batch - options.anomalous), rng.choice(bad, options.anomalous, replace=False)]
        )
        for rate in options.rates:
            for kind, found in (("fdr", discover(p_values[drawn], rate)), ("threshold", p_values[drawn] <= rate)):
                false = float(found[: -options.anomalous].sum() / max(1, found.sum()))
                figures[f"{kind} {rate:g}"].append([false, float(found[-options.anomalous :].mean())])
    means = {name: np.mean(values, axis=0).round(3).tolist() for name, values in figures.items()}
    print(
        json.dumps(
            {
                "dataset": options.dataset,
                "calibrate": options.calibrate,
                "n_held_out": decision.n_groups,
                "n_good": len(good),
                "n_anomalous": len(bad),
                "batch": options.batch,
                "anomalous": options.anomalous,
                "false_discoveries_and_found": means,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
