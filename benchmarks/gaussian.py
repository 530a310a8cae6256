"""Speed of the Gaussians alone, without the backbone, beside the plain formulas in the same torch and in one run.

Scoring at batch 1: the hierarchy against one full inverse matrix per position. Fitting from features: streaming moments
and factorisation against a loop over positions (np.cov and np.linalg.inv), as the usual scripts do it. Runs interleave
in blocks (warm: the factors may stay in the processor's cache) and call by call (cold: the plain matrices have
displaced them); the figures are medians. Features are random: times do not depend on them. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from flawmap.detectors.padim.embedding import Hierarchy, build_hierarchy, draw_channels
from flawmap.detectors.padim.fit import FIT_BATCH
from flawmap.detectors.padim.gaussian.factor import Factor, covariance_at, factorise, squared_distances
from flawmap.detectors.padim.gaussian.moments import PAPER, Moments, update

GRIDS = [(56, 56), (28, 28), (14, 14)]
CASES = {"resnet18 / 100": ([64, 128, 256], 100), "efficientnet_lite0 / 176": ([24, 40, 112], None)}


def interleaved(runs: dict[str, Callable[[], object]], repeats: int, block: int = 1) -> dict[str, float]:
    """Median milliseconds of each, taken in turn, in blocks of so many calls; the first call of a block warms up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(max(2, repeats // block)):
        for name, run in runs.items():
            for call in range(block):
                start = time.perf_counter()
                run()
                if call or block == 1:
                    times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def repeated(hierarchy: Hierarchy, columns: list[Tensor]) -> Tensor:
    """Embeddings (P, B, d) with the coarser levels repeated, as the plain formula takes them."""
    for level, own, parents in hierarchy.walk(columns):
        embeddings = level.stack(parents, own)
    return hierarchy.to_positions(embeddings)


def full_inverse(factor: Factor) -> Tensor:
    """Inverse covariance (P, d, d) of every position, channels coarse to fine."""
    levels = factor.hierarchy.levels
    order = torch.cat([level.columns for level in levels])
    covariances = (
        covariance_at(factor, position)[order][:, order] for position in range(math.prod(factor.hierarchy.grid))
    )
    return torch.stack([torch.linalg.inv(covariance).float() for covariance in covariances])


def make_batches(hierarchy: Hierarchy, n_images: int) -> list[list[Tensor]]:
    """Random embeddings, per batch and level (positions, B, d)."""
    generator = torch.Generator().manual_seed(0)
    return [
        [torch.randn(level.n_positions, FIT_BATCH, level.n_channels, generator=generator) for level in hierarchy.levels]
        for _ in range(n_images // FIT_BATCH)
    ]


def learn(hierarchy: Hierarchy, batches: list[list[Tensor]]) -> Factor:
    """What `PaDiM.fit` does after the backbone."""
    moments = Moments.empty(hierarchy)
    for batch in batches:
        update(moments, batch)
    return factorise(moments, regularization=PAPER)


def measure_scoring(factor: Factor, columns: list[Tensor], repeats: int) -> dict[str, float]:
    """One image against all positions."""
    hierarchy, one = factor.hierarchy, [column[:, :1].contiguous() for column in columns]
    inverse = full_inverse(factor)
    mean = repeated(hierarchy, [mean[:, None] for mean in factor.mean])[:, 0]
    embedding = repeated(hierarchy, one)[:, 0]

    def plain() -> Tensor:
        delta = embedding - mean
        return torch.bmm(torch.bmm(delta[:, None], inverse), delta[..., None])[:, 0, 0]

    def ours() -> Tensor:
        return squared_distances(factor, one)

    torch.testing.assert_close(ours().flatten(), plain(), rtol=1e-3, atol=1e-3)
    runs = {"hierarchy": ours, "plain": plain}
    warm, cold = interleaved(runs, repeats, block=10), interleaved(runs, repeats)
    return {
        "scoring_ms": round(warm["hierarchy"], 2),
        "plain_scoring_ms": round(warm["plain"], 2),
        "scoring_ratio": round(warm["plain"] / warm["hierarchy"], 2),
        "cold_scoring_ms": round(cold["hierarchy"], 2),
        "cold_scoring_ratio": round(cold["plain"] / cold["hierarchy"], 2),
    }


def measure_fitting(hierarchy: Hierarchy, batches: list[list[Tensor]]) -> dict[str, float]:
    """All images, from their embeddings."""
    embeddings = torch.cat([repeated(hierarchy, batch) for batch in batches], dim=1).numpy()

    def loop() -> None:
        ridge = 0.01 * np.eye(hierarchy.n_features)
        for position in embeddings:
            np.linalg.inv(np.cov(position, rowvar=False) + ridge)

    times = interleaved({"hierarchy": lambda: learn(hierarchy, batches), "loop": loop}, 6, block=3)
    return {
        "fitting_ms": round(times["hierarchy"]),
        "loop_fitting_ms": round(times["loop"]),
        "fitting_ratio": round(times["loop"] / times["hierarchy"], 1),
    }


def measure(name: str, n_images: int, repeats: int, seed: int) -> dict[str, float]:
    """Scoring and fitting of one case."""
    n_channels, n_features = CASES[name]
    hierarchy = build_hierarchy(GRIDS, n_channels, draw_channels(sum(n_channels), n_features, seed))
    batches = make_batches(hierarchy, n_images)
    scoring = measure_scoring(learn(hierarchy, batches), batches[0], repeats)
    return scoring | measure_fitting(hierarchy, batches)


def main() -> None:
    """Measure the cases asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 3], help="draws of the channels")
    options = parser.parse_args()
    results = {
        f"{name}, seed {seed}": measure(name, options.images, options.repeats, seed)
        for name in options.cases
        for seed in options.seeds
    }
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(json.dumps({"machine": machine, "n_images": options.images, "results": results}, indent=2))


if __name__ == "__main__":
    main()
