"""SPADE on many training images, in bounded memory, and beside the same search as batched products in torch.

Wide ResNet-50-2 of random weights, random images of 256 x 256: neither time nor memory depends on their values. The
gallery of 5,000 images takes 37 GB below TMPDIR. Prints one JSON object; the peak is of the process, torch included.

    python benchmarks/spade_scale.py [--images 5000 | --batched]
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import time
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from numpy.typing import NDArray

from flawmap import SPADE
from flawmap.backbones import load_backbone
from flawmap.detectors.anomaly_map import anomaly_maps

NAME = "wide_resnet50_2"
LAYERS = ("layer1", "layer2", "layer3", "layer4")
SIDE = 256
QUERIES = 4
BLOCK = 4096
"""Patches of the gallery that are compared at a time by the batched search."""


def images(n: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    """Random images, made one at a time."""
    rng = np.random.default_rng(seed)
    for _ in range(n):
        yield rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)


class Batched:
    """SPADE as a careful script has it: concatenated features of all images in memory, blocks of products."""

    def __init__(self, train: list[NDArray[np.uint8]], n_neighbors: int) -> None:
        self._backbone = load_backbone(NAME, layers=LAYERS, pretrained=False)
        self._n_neighbors = n_neighbors
        features = [self._features(image) for image in train]
        self._pooled = torch.stack([pooled for pooled, _ in features])
        self._patches = [patches for _, patches in features]

    def _features(self, image: NDArray[np.uint8]) -> tuple[torch.Tensor, torch.Tensor]:
        """Pooled last level (C,), and the others as patches (positions, C)."""
        *maps, last = self._backbone.features(image[None])
        joined = torch.cat([F.interpolate(part, size=maps[0].shape[2:], mode="nearest") for part in maps], dim=1)
        return last.mean(dim=(2, 3))[0], joined[0].flatten(1).T.contiguous()

    def __call__(self, image: NDArray[np.uint8]) -> torch.Tensor:
        """Anomaly map (H, W): squared distance of each patch to the nearest one of the nearest images, smoothed."""
        pooled, query = self._features(image)
        places = torch.cdist(pooled[None], self._pooled)[0].topk(self._n_neighbors, largest=False).indices
        least = torch.full((len(query),), torch.inf)
        for place in places.tolist():
            for block in self._patches[place].split(BLOCK):
                products = torch.addmm(block.square().sum(1), query, block.T, alpha=-2)
                least = torch.minimum(least, products.amin(1))
        side = math.isqrt(len(query))
        return anomaly_maps((least + query.square().sum(1)).view(1, side, side), (SIDE, SIDE))[0]


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--batched", action="store_true", help="time the batched search too: 13 GB more")
    options = parser.parse_args()
    started = time.perf_counter()
    model = SPADE(backbone=NAME, pretrained=False, resize=SIDE, calibrate=None).fit(images(options.images, 0))
    fitted = time.perf_counter()
    queries = np.stack(list(images(QUERIES, 1)))
    alone = []
    for query in queries:
        start = time.perf_counter()
        model.predict(query)
        alone.append(time.perf_counter() - start)
    start = time.perf_counter()
    model.predict(queries)
    together = (time.perf_counter() - start) / QUERIES
    result = {
        "images": options.images,
        "neighbours": model.n_neighbors_,
        "fit_seconds": round(fitted - started, 1),
        "seconds_of_one_image": round(float(np.median(alone)), 2),
        "seconds_of_each_of_four": round(together, 2),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    if options.batched:
        batched = Batched(list(images(options.images, 0)), model.n_neighbors_)
        theirs, ours, differences = [], [], []
        for query in queries:
            start = time.perf_counter()
            expected = batched(query).numpy()
            theirs.append(time.perf_counter() - start)
            start = time.perf_counter()
            anomaly_map = model.predict(query).anomaly_map
            ours.append(time.perf_counter() - start)
            differences.append(np.abs(anomaly_map - expected).max() / expected.max())
        result["batched_seconds_of_one_image"] = round(float(np.median(theirs)), 2)
        result["ours_over_batched"] = round(float(np.median(ours) / np.median(theirs)), 3)
        result["largest_difference"] = float(max(differences))
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
