"""The VAE that the PaDiM paper compares with, as a detector; `flawmap.detectors.trained.vae` is the method."""

from __future__ import annotations

from flawmap.detectors.trained.detector import TrainedDetector
from flawmap.detectors.trained.pixels import GoodImages
from flawmap.detectors.trained.plan import Paper, Plan
from flawmap.detectors.trained.training import Trainee
from flawmap.detectors.trained.vae import VAENetwork, VAEScorer, VAETraining
from flawmap.prediction import Size

__all__ = ["VAE"]


class VAE(TrainedDetector[VAEScorer]):
    """Reconstructs images from a narrow latent variable learnt from good ones; what it cannot reconstruct is anomalous.

    An epoch is 10,000 images, turned and moved at random. `width` is the number of latent channels, 64. The arguments
    and attributes are those of `TrainedDetector`. Where `resize` is given, `crop` should be 256/292 of it: training
    images are moved within that border.
    """

    kind = "vae"
    paper = Paper(resize=292, crop=256, width=64, epochs=100, batch_size=32, learning_rate=1e-4, epoch_images=10_000)
    localises = True
    trains_on_whole = True

    @classmethod
    def build_scorer(cls, width: int, input_size: Size, n_images: int) -> VAEScorer:  # noqa: ARG003
        """The encoder, the decoder and the smoothing."""
        return VAEScorer(VAENetwork(input_size, latent_channels=width))

    def _trainee(self, scorer: VAEScorer, images: GoodImages, plan: Plan) -> Trainee:
        return VAETraining(
            scorer.network,
            images,
            learning_rate=plan.learning_rate,
            batch_size=plan.batch_size,
            seed=plan.seed,
            device=plan.device,
        )
