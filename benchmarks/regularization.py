"""What regularisation does for detection, and what the leave-one-out likelihood would choose.

Embeds a data set once, then learns with the paper's setting, with `auto`, and on request over a grid, and prints one
JSON line for each: a, eps, the leave-one-out log-likelihood per feature, the spread of the leave-one-out image scores,
and the figures on the test images.

    python benchmarks/regularization.py DATASET [--backbone NAME --weights PATH --n-features N --crop N] [--images N]
        [--augment] [--grid]

`--images` learns from the first N good images only; `--augment` turns and crops every image at random, so that nothing
is aligned.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from flawmap import PaDiM
from flawmap.backbones import Backbone, load_backbone
from flawmap.datasets import Dataset, Sample, open_dataset
from flawmap.detectors.anomaly_map import anomaly_maps, image_scores
from flawmap.detectors.batches import in_batches as group
from flawmap.detectors.padim.embedding import Hierarchy, build_hierarchy, draw_channels, embed
from flawmap.detectors.padim.fit import FIT_BATCH
from flawmap.detectors.padim.gaussian.factor import Factor, factorise, squared_distances
from flawmap.detectors.padim.gaussian.leave_one_out import Probe, choose_regularization, leave_one_out
from flawmap.detectors.padim.gaussian.moments import PAPER, Moments, Regularization, update
from flawmap.evaluation.metrics import PixelScores, image_auroc
from flawmap.images import Preprocessing, read_image, read_mask, stream
from flawmap.prediction import Size

SHARINGS = (0.0, 0.05, 0.1, 0.3, 0.6, 0.9)
RIDGES = (0.001, 0.01, 0.1, 1.0)


class Study:
    """A data set's embeddings and labels."""

    def __init__(self, options: argparse.Namespace) -> None:
        data: Dataset = open_dataset(options.dataset)
        self.preprocessing = Preprocessing.of(256, options.crop)
        self.backbone: Backbone = load_backbone(options.backbone, weights=options.weights)
        shapes = self.backbone.shapes(self.preprocessing.input_size)
        channels = draw_channels(sum(n for n, _ in shapes), options.n_features, 0)
        self.hierarchy: Hierarchy = build_hierarchy([grid for _, grid in shapes], [n for n, _ in shapes], channels)
        self.augment = options.augment
        self.good = self.embed(list(data.train)[: options.images])
        self.test = self.embed([sample.path for sample in data.test])
        self.labels = [int(sample.is_anomalous) for sample in data.test]
        self.masks = None if self.augment else masks_of(data.test, self.preprocessing)

    @property
    def size(self) -> Size:
        """Input size."""
        return self.preprocessing.input_size

    def embed(self, paths: Sequence[object]) -> list[Tensor]:
        """Embeddings, per level (positions, N, d)."""
        images = (unaligned(path, i) for i, path in enumerate(paths)) if self.augment else paths
        loaded = stream(images, self.preprocessing)  # type: ignore[arg-type]
        parts = [embed(self.backbone, self.hierarchy, batch.pixels) for batch in group(loaded, 32)]
        return [torch.cat(level, dim=1) for level in zip(*parts, strict=True)]

    def learn(self) -> tuple[Moments, Probe]:
        """Moments of the good images, and the sample that `auto` looks at."""
        moments, probe = Moments.empty(self.hierarchy), Probe(self.hierarchy)
        for start, columns in in_batches(self.good, FIT_BATCH):
            update(moments, columns)
            probe.take(columns, range(start, start + columns[0].shape[1]))
        return moments, probe

    def row(self, moments: Moments, regularization: Regularization) -> dict[str, object]:
        """Likelihood, spread and figures of a setting."""
        factor = factorise(moments, regularization=regularization)
        likelihood, honest = self.leave_one_out(factor, moments.count, regularization)
        scores, pixels = [], PixelScores()
        for start, columns in in_batches(self.test, 32):
            maps = anomaly_maps(squared_distances(factor, columns).sqrt(), self.size)
            scores += image_scores(maps).tolist()
            for i, anomaly_map in enumerate(maps.numpy() if self.masks else (), start=start):
                pixels.add(anomaly_map, self.masks[i] if self.masks else None)
        return {
            "a": regularization.sharing,
            "eps": float(f"{regularization.ridge:.3g}"),
            "log_likelihood": round(likelihood, 4),
            "spread": round(float(honest.std() / honest.mean()), 4),
            "image_auroc": round(image_auroc(self.labels, scores) or 0.0, 4),
            "pixel_auroc": None if self.masks is None else round(pixels.auroc() or 0.0, 4),
            "pro_score": None if self.masks is None else round(pixels.pro() or 0.0, 4),
        }

    def leave_one_out(
        self, factor: Factor, count: int, regularization: Regularization
    ) -> tuple[float, NDArray[np.float32]]:
        """Log-likelihood per feature over all positions, and image scores, each without the image."""
        k = (1 - regularization.sharing) * count / (count - 1) ** 2
        total, scores = 0.0, []
        for _, columns in in_batches(self.good, 32):
            squared = squared_distances(factor, columns)
            without = leave_one_out(squared, count, sharing=regularization.sharing)
            total += float((without + (1 - k * squared).clamp(min=1e-6).log()).double().mean(dim=(1, 2)).sum())
            scores.append(image_scores(anomaly_maps(without.sqrt(), self.size)).numpy())
        likelihood = -0.5 * (total / count + float(log_determinant(factor).mean()))
        return likelihood / self.hierarchy.n_features, np.concatenate(scores)


def log_determinant(factor: Factor) -> Tensor:
    """log det Sigma at each position (P,)."""
    total = torch.zeros(factor.hierarchy.levels[0].n_groups, dtype=torch.float64)
    for level, own in zip(factor.hierarchy.levels, factor.own, strict=True):
        above = level.coarser(total, slice(None)).repeat_interleave(level.children)
        total = above - 2 * own.diagonal(dim1=1, dim2=2).double().log().sum(dim=1)
    return factor.hierarchy.to_positions(total)


def in_batches(columns: Sequence[Tensor], size: int) -> Iterator[tuple[int, list[Tensor]]]:
    """Embeddings in batches, each with the number of its first image."""
    for start in range(0, columns[0].shape[1], size):
        yield start, [column[:, start : start + size].contiguous() for column in columns]


def masks_of(samples: Sequence[Sample], preprocessing: Preprocessing) -> list[NDArray[np.bool_] | None] | None:
    """Ground truth of each image at the input size; None if there is no mask at all."""
    if not any(sample.mask_path for sample in samples):
        return None
    masks = []
    for sample in samples:
        placement = preprocessing.apply(read_image(sample.path))[1]
        mask = None if sample.mask_path is None else read_mask(sample.mask_path)
        masks.append(None if mask is None else preprocessing.apply_mask(mask, placement))
    return masks


def unaligned(path: object, seed: int) -> NDArray[np.uint8]:
    """An image turned by any angle and cropped to 60 to 100 % of its side, seeded."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(read_image(path))  # type: ignore[arg-type]
    turned = image.rotate(rng.uniform(0, 360), Image.Resampling.BILINEAR, fillcolor=image.getpixel((0, 0)))
    side = round(min(image.size) * rng.uniform(0.6, 1))
    left, top = (int(rng.integers(0, full - side + 1)) for full in image.size)
    return np.asarray(turned.crop((left, top, left + side, top + side)))


def main() -> None:
    """Embed once, then compare settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--backbone", default=PaDiM().backbone)
    parser.add_argument("--weights")
    parser.add_argument("--n-features", type=int)
    parser.add_argument("--crop", type=int)
    parser.add_argument("--images", type=int)
    parser.add_argument("--augment", action="store_true")
    parser.add_argument("--grid", action="store_true")
    options = parser.parse_args()
    study = Study(options)
    moments, probe = study.learn()
    started = time.perf_counter()
    chosen = choose_regularization(moments, probe)
    seconds = round(time.perf_counter() - started, 2)
    print(json.dumps({**vars(options), "n_images": moments.count, "auto_seconds": seconds}))
    print(json.dumps({"setting": "paper", **study.row(moments, PAPER)}), flush=True)
    print(json.dumps({"setting": "auto", **study.row(moments, chosen)}), flush=True)
    for sharing in SHARINGS if options.grid else ():
        for ridge in RIDGES:
            print(json.dumps(study.row(moments, Regularization(ridge, sharing))), flush=True)


if __name__ == "__main__":
    main()
