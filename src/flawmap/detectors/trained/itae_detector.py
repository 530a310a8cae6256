"""ITAE as a detector; `flawmap.detectors.trained.itae` is the method."""

from __future__ import annotations

import torch

from flawmap.detectors import passes
from flawmap.detectors.trained.detector import TrainedDetector
from flawmap.detectors.trained.images import ReplayedImages
from flawmap.detectors.trained.itae import ITAEScorer, ITAETraining, UNet, check_size
from flawmap.detectors.trained.pixels import GoodImages
from flawmap.detectors.trained.plan import Paper, Plan
from flawmap.detectors.trained.training import Trainee
from flawmap.prediction import Size

__all__ = ["ITAE"]


class ITAE(TrainedDetector[ITAEScorer]):
    """Restores colour and orientation as good images have them; where it fails, the image is anomalous.

    It says whether an image is anomalous and not where. Images are square, with sides in multiples of 16. `width` is
    the number of channels of the first level, 64. The arguments and attributes are those of `TrainedDetector`.
    """

    kind = "itae"
    paper = Paper(resize=256, crop=None, width=64, epochs=300, batch_size=32, learning_rate=1e-3)
    localises = False

    @classmethod
    def build_scorer(cls, width: int, input_size: Size, n_images: int) -> ITAEScorer:  # noqa: ARG003
        """The U-Net, and the errors of each rotation."""
        check_size(input_size)
        return ITAEScorer(UNet(width=width))

    def _trainee(self, scorer: ITAEScorer, images: GoodImages, plan: Plan) -> Trainee:
        return ITAETraining(
            scorer.network,
            images,
            learning_rate=plan.learning_rate,
            batch_size=plan.batch_size,
            epoch_steps=plan.epoch_steps,
            seed=plan.seed,
            device=plan.device,
        )

    @torch.inference_mode()
    def _complete(self, scorer: ITAEScorer, images: ReplayedImages, device: torch.device) -> None:
        """The mean training error of each rotation."""
        errors = [
            scorer.errors(torch.from_numpy(batch).to(device)) for batch in images.batches(passes.batch_size((256, 256)))
        ]
        scorer.set_typical(torch.cat(errors))
