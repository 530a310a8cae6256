"""Whether thresholds keep their promise on good images that were never seen.

Good images are split at random, 75 % to learn from and 25 % unseen, 20 times. Realised false-alarm rates are pooled
over the splits, for thresholds by leave-one-out and, beside them, by the scores that the training images get from the
very model they shaped. Embeddings are computed once. Prints one JSON object.

    python benchmarks/promise.py FOLDER_OF_GOOD_IMAGES|elpv:mono [--backbone NAME --weights PATH --crop N ...]
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import kstest
from torch import Tensor

from flawmap import PaDiM
from flawmap.backbones import load_backbone
from flawmap.datasets import training_images
from flawmap.decision import Decision
from flawmap.detectors.anomaly_map import anomaly_maps, image_scores
from flawmap.detectors.batches import in_batches as group
from flawmap.detectors.padim.embedding import build_hierarchy, draw_channels, embed
from flawmap.detectors.padim.gaussian.factor import Factor, factorise, squared_distances
from flawmap.detectors.padim.gaussian.leave_one_out import Probe, choose_regularization, leave_one_out
from flawmap.detectors.padim.gaussian.moments import PAPER, Moments, update
from flawmap.images import Preprocessing, collect, stream

RATES = (0.01, 0.05, 0.1, 0.2)


def scores(
    factor: Factor, columns: list[Tensor], size: tuple[int, int], count: int = 0, sharing: float = 0.0
) -> NDArray[np.float32]:
    """Image scores of some embeddings; leave-one-out ones if `count` images were learnt and these are they."""
    parts = []
    for start in range(0, columns[0].shape[1], 32):
        squared = squared_distances(factor, [column[:, start : start + 32].contiguous() for column in columns])
        squared = leave_one_out(squared, count, sharing=sharing) if count else squared
        parts.append(image_scores(anomaly_maps(squared.sqrt(), size)).numpy())
    return np.concatenate(parts)


def main() -> None:
    """Embed once, then split, learn and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("good")
    parser.add_argument("--backbone", default=PaDiM().backbone)
    parser.add_argument("--weights")
    parser.add_argument("--n-features", type=int)
    parser.add_argument("--crop", type=int)
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--paper", action="store_true", help="the paper's regularisation in place of auto")
    options = parser.parse_args()
    preprocessing = Preprocessing.of(256, options.crop)
    backbone = load_backbone(options.backbone, weights=options.weights)
    shapes = backbone.shapes(preprocessing.input_size)
    channels = draw_channels(sum(n for n, _ in shapes), options.n_features, 0)
    hierarchy = build_hierarchy([grid for _, grid in shapes], [n for n, _ in shapes], channels)
    loaded = stream(collect(training_images(options.good)).items, preprocessing)
    parts = [embed(backbone, hierarchy, batch.pixels) for batch in group(loaded, 32)]
    columns = [torch.cat(level, dim=1) for level in zip(*parts, strict=True)]
    n_images = columns[0].shape[1]
    rng = np.random.default_rng(0)
    p_values: list[float] = []
    bounds: dict[float, list[float]] = {rate: [] for rate in RATES}
    realised: dict[str, dict[float, list[float]]] = {kind: {rate: [] for rate in RATES} for kind in ("ours", "naive")}
    for _ in range(options.splits):
        order = torch.from_numpy(rng.permutation(n_images))
        seen, unseen = order[: 3 * n_images // 4], order[3 * n_images // 4 :]
        known = [column[:, seen] for column in columns]
        moments, probe = Moments.empty(hierarchy), Probe(hierarchy)
        for start in range(0, len(seen), 64):
            batch = [column[:, start : start + 64].contiguous() for column in known]
            update(moments, batch)
            probe.take(batch, range(start, start + batch[0].shape[1]))
        regularization = PAPER if options.paper else choose_regularization(moments, probe)
        factor = factorise(moments, regularization=regularization)
        honest = scores(factor, known, preprocessing.input_size, len(seen), regularization.sharing)
        naive = scores(factor, known, preprocessing.input_size)
        new = scores(factor, [column[:, unseen] for column in columns], preprocessing.input_size)
        for kind, own in (("ours", honest), ("naive", naive)):
            decision = Decision(own, np.zeros(0, np.float32))
            for rate in RATES:
                realised[kind][rate].append(float(np.mean(new > decision.at_rate(rate).threshold)))
                if kind == "ours":
                    bounds[rate].append(decision.at_rate(rate).bound() or 1.0)
        decision = Decision(honest, np.zeros(0, np.float32))
        p_values += [decision.p_value(score) for score in new]
    deciles = np.histogram(p_values, bins=10, range=(0, 1))[0] / len(p_values)
    print(
        json.dumps(
            {
                "good": options.good,
                "backbone": options.backbone,
                "n_images": n_images,
                "splits": options.splits,
                "asked": RATES,
                "realised": [round(float(np.mean(realised["ours"][rate])), 4) for rate in RATES],
                "mean_bound_95": [round(float(np.mean(bounds[rate])), 4) for rate in RATES],
                "splits_above_bound_95": [
                    sum(share > bound for share, bound in zip(realised["ours"][rate], bounds[rate], strict=True))
                    for rate in RATES
                ],
                "realised_with_training_scores": [round(float(np.mean(realised["naive"][rate])), 4) for rate in RATES],
                "uniformity": round(float(kstest(p_values[: n_images // 4], "uniform").pvalue), 3),
                "p_value_deciles": [round(float(share), 3) for share in deciles],
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
