"""Patch SVDD as a detector; `flawmap.detectors.trained.patch_svdd` is the method."""

from __future__ import annotations

import numpy as np
import torch

from flawmap.detectors.trained.detector import TrainedDetector
from flawmap.detectors.trained.images import ReplayedImages
from flawmap.detectors.trained.patch_svdd import LargeEncoder, PatchSVDDNetwork, PatchSVDDScorer, PatchSVDDTraining
from flawmap.detectors.trained.pixels import GoodImages
from flawmap.detectors.trained.plan import Paper, Plan
from flawmap.detectors.trained.training import Trainee
from flawmap.prediction import Size

__all__ = ["PatchSVDD"]

SVDD_WEIGHT = 1e-3
"""The paper's weight of the SVDD losses, lambda."""
BATCH = 8
"""Images of which the mean is taken, or patches embedded, at a time."""


class PatchSVDD(TrainedDetector[PatchSVDDScorer]):
    """Learns to embed patches of 64 and 32 pixels; those unlike all patches of good images are anomalous.

    A model keeps the embeddings of all patches it has learnt from: 0.8 MB an image of 256 pixels. An epoch goes through
    every image a hundred times, as in the authors' code. `width` is the length of the embeddings, 64. The arguments
    and attributes are those of `TrainedDetector`.
    """

    kind = "patch-svdd"
    paper = Paper(resize=256, crop=None, width=64, epochs=300, batch_size=64, learning_rate=1e-4, repeats=100)
    localises = True

    @classmethod
    def build_scorer(cls, width: int, input_size: Size, n_images: int) -> PatchSVDDScorer:
        """The encoders, and room for the patches of so many images."""
        return PatchSVDDScorer(LargeEncoder(width), input_size, n_images)

    def _trainee(self, scorer: PatchSVDDScorer, images: GoodImages, plan: Plan) -> Trainee:
        network = PatchSVDDNetwork(plan.width)
        network.encoder = scorer.encoder
        mean = np.zeros((*plan.input_size, 3))
        for start in range(0, len(images), BATCH):
            mean += images.take(range(start, min(start + BATCH, len(images)))).sum(axis=0, dtype=np.float64)
        mean /= len(images)
        scorer.mean.copy_(torch.from_numpy(mean.astype(np.float32)))
        return PatchSVDDTraining(
            network,
            images,
            mean.astype(np.float32),
            learning_rate=plan.learning_rate,
            svdd_weight=SVDD_WEIGHT,
            batch_size=plan.batch_size,
            seed=plan.seed,
            device=plan.device,
        )

    @torch.inference_mode()
    def _complete(self, scorer: PatchSVDDScorer, images: ReplayedImages, device: torch.device) -> None:
        """The embeddings of all patches that were learnt from."""
        number = 0
        for batch in images.batches(BATCH):
            scorer.keep(number, scorer.embed(torch.from_numpy(batch).to(device)))
            number += len(batch)
        scorer.set_units()
