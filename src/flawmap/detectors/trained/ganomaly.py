"""GANomaly: encoder, decoder, encoder against a discriminator (Akcay et al. 2018, arXiv 1805.06725).

Layers, initial weights and losses are those of the authors' code (samet-akcay/ganomaly): bias-free 4 x 4 convolutions
as in DCGAN, weights drawn from N(0, 0.02), Adam at 2e-4 with beta1 0.5, the adversarial loss by matching the
discriminator's features (equation 1), losses weighted 1, 50, 1 (equation 4), and a discriminator that is drawn anew
when its loss falls below 1e-5. Differences, none of which changes what is learnt: the discriminator gives logits and
its loss takes them, and scores are not scaled to 0..1 by the test set's extremes. Two that do: images are scored with
the running statistics of batch normalisation, where the authors' code normalises by the batch that is being tested, and
leaves the last one out; and the last epoch counts, never the best on test images.

The paper's MNIST and CIFAR images are 32 x 32; sides of 64, 128 and 256 follow by more of the same layers. Its score is
of the whole image (equation 5); it does not localise.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, l1_loss, mse_loss

from flawmap.detectors.trained.detector import TrainedDetector
from flawmap.detectors.trained.images import TrainingImages, to_planes, upload
from flawmap.detectors.trained.training import Mixed, Shuffle, Trainee
from flawmap.errors import ParameterError
from flawmap.prediction import Size

SIDES = (16, 32, 64, 128, 256, 512)
"""Sides of the square images that the networks can be built for."""
WEIGHTS = (1.0, 50.0, 1.0)
"""Of the adversarial, contextual and encoder losses."""
LEAST_LOSS = 1e-5
"""Loss of the discriminator below which it is drawn anew."""


def _check_side(input_size: Size) -> int:
    if input_size[0] != input_size[1] or input_size[0] not in SIDES:
        raise ParameterError(
            f"GANomaly takes square images of {', '.join(map(str, SIDES))} pixels, got {input_size} (height, width); "
            f"give such a resize or crop"
        )
    return input_size[0]


def _encoder(side: int, n_latent: int, width: int) -> nn.Sequential:
    """Images (B, 3, side, side) to latent vectors (B, n_latent, 1, 1)."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1, bias=False), nn.LeakyReLU(0.2)]
    side //= 2
    while side > 4:
        layers += [nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2)]
        side, width = side // 2, 2 * width
    return nn.Sequential(*layers, nn.Conv2d(width, n_latent, 4, 1, 0, bias=False))


def _decoder(side: int, n_latent: int, width: int) -> nn.Sequential:
    """Latent vectors (B, n_latent, 1, 1) to images (B, 3, side, side) in -1..1."""
    now = width * side // 8
    layers: list[nn.Module] = [nn.ConvTranspose2d(n_latent, now, 4, 1, 0, bias=False), nn.BatchNorm2d(now), nn.ReLU()]
    while now > width:
        layers += [nn.ConvTranspose2d(now, now // 2, 4, 2, 1, bias=False), nn.BatchNorm2d(now // 2), nn.ReLU()]
        now //= 2
    return nn.Sequential(*layers, nn.ConvTranspose2d(width, 3, 4, 2, 1, bias=False), nn.Tanh())


class Generator(nn.Module):
    """Encoder, decoder and second encoder, for images (B, 3, side, side) in -1..1.

    Args:
        input_size: (height, width) of the images.
        n_latent: length of the latent vectors.
        width: channels of the first layer.
    """

    def __init__(self, input_size: Size, *, n_latent: int = 100, width: int = 64) -> None:
        super().__init__()
        side = _check_side(input_size)
        self.encoder = _encoder(side, n_latent, width)
        self.decoder = _decoder(side, n_latent, width)
        self.second_encoder = _encoder(side, n_latent, width)
        self.apply(draw_weights)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The images as generated, and the latent vectors (B, n_latent, 1, 1) of the images and of those."""
        latent = self.encoder(images)
        generated = self.decoder(latent)
        return generated, latent, self.second_encoder(generated)


class Discriminator(nn.Module):
    """An encoder whose latent vector is one logit: positive for real images."""

    def __init__(self, input_size: Size, *, width: int = 64) -> None:
        super().__init__()
        layers = list(_encoder(_check_side(input_size), 1, width))
        self.features = nn.Sequential(*layers[:-1])
        self.classifier = layers[-1]
        self.apply(draw_weights)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B,), and the features (B, C, 4, 4) that they are of."""
        features = self.features(images)
        return self.classifier(features).flatten(), features


def draw_weights(module: nn.Module) -> None:
    """DCGAN's initial weights: N(0, 0.02) for convolutions, N(1, 0.02) for normalisations."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def generator_loss(
    images: Tensor, generated: Tensor, latent: Tensor, second_latent: Tensor, real_features: Tensor, features: Tensor
) -> Tensor:
    """Equation 4: adversarial |f(x) - f(x^)|^2, contextual |x - x^|_1 and encoder |z - z^|^2 losses, weighted means."""
    adversarial, contextual, encoder = WEIGHTS
    return (
        adversarial * mse_loss(features, real_features)
        + contextual * l1_loss(generated, images)
        + encoder * mse_loss(second_latent, latent)
    )


def discriminator_loss(real: Tensor, generated: Tensor) -> Tensor:
    """Mean binary cross-entropy of logits (B,) of real and of generated images."""
    ones, zeros = torch.ones_like(real), torch.zeros_like(generated)
    return 0.5 * (binary_cross_entropy_with_logits(real, ones) + binary_cross_entropy_with_logits(generated, zeros))


class GANomalyTraining:
    """Generator and discriminator with what they learn from; a `Trainee`."""

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        images: TrainingImages,
        *,
        learning_rate: float,
        batch_size: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.network: nn.Module = nn.ModuleDict({"generator": generator, "discriminator": discriminator}).to(device)
        self.optimizers = tuple(
            torch.optim.Adam(network.parameters(), lr=learning_rate, betas=(0.5, 0.999))
            for network in (generator, discriminator)
        )
        self._generator, self._discriminator, self._images = generator, discriminator, images
        self._batch_size, self._seed, self._device = batch_size, seed, device
        self._shuffle = Shuffle(len(images), seed)

    def step(self, number: int, mixed: Mixed) -> Tensor:
        """One step of the generator, then one of the discriminator on the same images; gives the generator's loss."""
        chosen = self._images.take(self._shuffle.batch(number, self._batch_size))
        images = 2 * upload(chosen, self._device) - 1
        generator, discriminator = self.optimizers
        with mixed():
            generated, latent, second_latent = self._generator(images)
            real, real_features = self._discriminator(images)
            logits, _ = self._discriminator(generated.detach())
            judged = discriminator_loss(real.float(), logits.float())
            _, through = self._discriminator(generated)
            loss = generator_loss(images, generated, latent, second_latent, real_features.detach(), through)
        generator.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        generator.step()
        discriminator.zero_grad(set_to_none=True)  # the generator's loss went through it
        judged.backward()  # type: ignore[no-untyped-call]
        discriminator.step()
        if float(judged.detach()) < LEAST_LOSS:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self._seed + number)
                self._discriminator.apply(draw_weights)
        return loss.detach()


class GANomalyScorer(nn.Module):
    """Images (B, side, side, 3) uint8 to image scores (B,): the mean of (z - z^)^2 (equation 5)."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Scores."""
        _, latent, second_latent = self.generator(2 * to_planes(images) - 1)
        return ((latent - second_latent).square().mean(dim=(1, 2, 3)),)


class GANomaly(TrainedDetector[GANomalyScorer]):
    """Encodes an image, generates it again and encodes that: good images come back to the same latent vector.

    It says whether an image is anomalous and not where. Images are square, of 16 to 512 pixels, 32 in the paper.
    `width` is the number of channels of the first layer.

    Example:
        >>> import numpy as np
        >>> good = np.random.default_rng(0).integers(90, 110, (8, 16, 16, 3), dtype=np.uint8)
        >>> model = GANomaly(resize=16, width=2, batch_size=2, steps=1).fit(good)
        >>> model.predict(good[0]).pred_score >= 0
        True
    """

    name = "ganomaly"
    presets: ClassVar = {"ganomaly-paper": {"reading": "whole"}}
    localises = False
    resize = 32
    epochs = 15
    batch_size = 64
    learning_rate = 2e-4

    def build_scorer(self, input_size: Size, n_images: int) -> GANomalyScorer:  # noqa: ARG002
        """The generator."""
        return GANomalyScorer(Generator(input_size, width=self.width))

    def _trainee(self, scorer: GANomalyScorer, images: TrainingImages, device: torch.device) -> Trainee:
        return GANomalyTraining(
            scorer.generator,
            Discriminator(self.preprocessing.input_size, width=self.width),
            images,
            **self._options(device),
        )
