"""GANomaly as a detector; `flawmap.detectors.trained.ganomaly` is the method."""

from __future__ import annotations

from flawmap.detectors.trained.detector import TrainedDetector
from flawmap.detectors.trained.ganomaly import Discriminator, GANomalyScorer, GANomalyTraining, Generator
from flawmap.detectors.trained.pixels import GoodImages
from flawmap.detectors.trained.plan import Paper, Plan
from flawmap.detectors.trained.training import Trainee
from flawmap.prediction import Size

__all__ = ["GANomaly"]


class GANomaly(TrainedDetector[GANomalyScorer]):
    """Encodes an image, generates it again and encodes that: good images come back to the same latent vector.

    It says whether an image is anomalous and not where. Images are square, of 16 to 512 pixels, 32 in the paper.
    `width` is the number of channels of the first layer, 64. The arguments and attributes are those of
    `TrainedDetector`.
    """

    kind = "ganomaly"
    paper = Paper(resize=32, crop=None, width=64, epochs=15, batch_size=64, learning_rate=2e-4)
    localises = False

    @classmethod
    def build_scorer(cls, width: int, input_size: Size, n_images: int) -> GANomalyScorer:  # noqa: ARG003
        """The generator."""
        return GANomalyScorer(Generator(input_size, width=width))

    def _trainee(self, scorer: GANomalyScorer, images: GoodImages, plan: Plan) -> Trainee:
        return GANomalyTraining(
            scorer.generator,
            Discriminator(plan.input_size, width=plan.width),
            images,
            learning_rate=plan.learning_rate,
            batch_size=plan.batch_size,
            seed=plan.seed,
            device=plan.device,
        )
