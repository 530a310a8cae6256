"""What 16 bits change: the fit, the file and the graph in either precision, on labelled images.

Prints one JSON object: for each fit precision the figures of `predict`, of the file saved with 16-bit factors, and of
the exported graph in the precision of the fit, with the differences of image scores from those of `predict`.

    python benchmarks/precision.py mvtec_ad/screw [--crop 224 --backbone resnet18 --n-features 100 --weights FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from flawmap import Inspector, PaDiM, export_model, load
from flawmap.datasets import Dataset, open_dataset
from flawmap.evaluation import Evaluation, evaluate
from flawmap.images import ImageInput
from flawmap.options import FactorDtype, Precision
from flawmap.prediction import Prediction


class Noted:
    """A detector or an export, and the scores it gave."""

    def __init__(self, scorer: PaDiM | Inspector, model: PaDiM) -> None:
        self.preprocessing = model.preprocessing
        self.scores: list[float] = []
        self._iterate = scorer.iter_predict

    def iter_predict(self, images: ImageInput, **options: object) -> Iterator[Prediction]:
        """Score images, and keep the scores."""
        for prediction in self._iterate(images, **options):
            self.scores.append(prediction.pred_score)
            yield prediction


def figures(result: Evaluation, scores: Sequence[float], expected: Sequence[float]) -> dict[str, object]:
    """What is printed of an evaluation."""
    rate = result.false_alarm_rate
    difference = np.abs(np.array(scores) / np.array(expected) - 1)
    return {
        "image_auroc": result.image_auroc,
        "pixel_auroc": result.pixel_auroc,
        "pro_score": result.pro_score,
        "false_alarm_rate": None if rate is None else rate.value,
        "largest_score_difference": float(difference.max()),
        "mean_score_difference": float((np.array(scores) / np.array(expected) - 1).mean()),
    }


def measure(data: Dataset, precision: Precision, options: argparse.Namespace) -> dict[str, object]:
    """Fit in one precision and evaluate in every way."""
    model = PaDiM(
        backbone=options.backbone,
        n_features=options.n_features,
        weights=options.weights,
        crop=options.crop,
        precision=precision,
        false_alarm_rate=0.05,
    ).fit(data.train)
    own = Noted(model, model)
    result = evaluate(own, data.test)
    rows = {"predict": figures(result, own.scores, own.scores)}
    with tempfile.TemporaryDirectory() as folder:
        for dtype in get_args(FactorDtype)[1:]:
            path = Path(folder, f"{dtype}.flawmap")
            model.save(path, dtype=dtype)
            stored = Noted(load(path, weights=options.weights), model)
            result = evaluate(stored, data.test)
            rows[f"file of {dtype}"] = figures(result, stored.scores, own.scores)
        graph = Noted(Inspector(export_model(model, Path(folder, "graph"))), model)
        result = evaluate(graph, data.test)
        rows["graph"] = figures(result, graph.scores, own.scores)
    return rows


def main() -> None:
    """Measure both precisions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--n-features", type=int)
    parser.add_argument("--weights")
    parser.add_argument("--crop", type=int)
    options = parser.parse_args()
    data = open_dataset(options.dataset)
    print(json.dumps({precision: measure(data, precision, options) for precision in get_args(Precision)}, indent=2))


if __name__ == "__main__":
    main()
