"""ITAE, the inverse-transform auto-encoder: restore what was taken away (Huang et al. 2019, arXiv 1911.10676).

Colour is taken away by the mean of the channels, orientation by a rotation by 0, 90, 180 or 270 degrees, drawn at
random for each image of each step; a U-Net restores the original under the L1 loss. At inspection every rotation is
restored, and the score is the mean over the four of the L1 error divided by its mean over the training images (the
paper's normalisation, so that hard rotations do not outweigh easy ones). The last epoch counts.

Left open, and chosen here: a U-Net of four max-poolings and as many up-samplings, two 3 x 3 convolutions on each level
(Ronneberger et al. 2015, with batch normalisation and padding, 64 channels on the first level), transposed convolutions
of 2 x 2, a linear last layer; Adam at 1e-3 in batches of 32 for 300 epochs, halved every fifty; pixels in 0..1. Scores
are of whole images, as in the paper's evaluation; it does not localise.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from flawmap.detectors.batches import batch_size
from flawmap.detectors.trained.detector import TrainedDetector
from flawmap.detectors.trained.images import TrainingImages, to_planes, upload
from flawmap.detectors.trained.training import Mixed, Shuffle, Trainee, random_numbers
from flawmap.errors import ParameterError
from flawmap.prediction import Size

N_ROTATIONS = 4
DEPTH = 4
HALVED_EVERY = 50
"""Epochs after which the learning rate is halved."""


class UNet(nn.Module):
    """Grey images (B, 1, H, W) to images (B, 3, H, W); sides are multiples of 16.

    Args:
        width: channels of the first level; each next one has twice as many.
    """

    def __init__(self, *, width: int = 64) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(DEPTH + 1)]
        self.down = nn.ModuleList(
            _double_convolution(before, after) for before, after in zip([1, *widths], widths, strict=False)
        )
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(below, here, 2, stride=2)
            for below, here in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.join = nn.ModuleList(_double_convolution(2 * here, here) for here in widths[-2::-1])
        self.pixels = nn.Conv2d(width, 3, 1)

    def forward(self, grey: Tensor) -> Tensor:
        """Restored images."""
        levels = [self.down[0](grey)]
        for block in list(self.down)[1:]:
            levels.append(block(self.pool(levels[-1])))
        features = levels.pop()
        for up, join in zip(self.up, self.join, strict=True):
            features = join(torch.cat([levels.pop(), up(features)], dim=1))
        restored: Tensor = self.pixels(features)
        return restored


def _double_convolution(n_before: int, n_after: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n_channels in (n_before, n_after):
        layers += [nn.Conv2d(n_channels, n_after, 3, padding=1, bias=False), nn.BatchNorm2d(n_after), nn.ReLU()]
    return nn.Sequential(*layers)


def check_size(input_size: Size) -> None:
    """ParameterError unless images can be rotated by 90 degrees and pooled four times."""
    if input_size[0] != input_size[1] or input_size[0] % 2**DEPTH:
        raise ParameterError(
            f"ITAE turns images by 90 degrees and needs square ones with sides in multiples of {2**DEPTH}, got "
            f"{input_size} (height, width); give such a resize or crop"
        )


def take_away(planes: Tensor, rotation: int) -> Tensor:
    """Grey images (B, 1, H, W), turned by `rotation` times 90 degrees, of images (B, 3, H, W)."""
    return torch.rot90(planes.mean(dim=1, keepdim=True), rotation, dims=(2, 3))


def rotation_errors(network: nn.Module, planes: Tensor) -> Tensor:
    """Mean absolute errors (B, 4) of images (B, 3, H, W) as restored from each rotation."""
    errors = [
        (network(take_away(planes, rotation)) - planes).abs().mean(dim=(1, 2, 3)) for rotation in range(N_ROTATIONS)
    ]
    return torch.stack(errors, dim=1)


class ITAETraining:
    """A U-Net with what it learns from; a `Trainee`."""

    def __init__(
        self,
        network: UNet,
        images: TrainingImages,
        *,
        learning_rate: float,
        batch_size: int,
        epoch_steps: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.network: nn.Module = network.to(device)
        self.optimizers = (torch.optim.Adam(network.parameters(), lr=learning_rate),)
        self._images, self._learning_rate, self._batch_size = images, learning_rate, batch_size
        self._epoch_steps, self._seed, self._device = epoch_steps, seed, device
        self._shuffle = Shuffle(len(images), seed)

    def step(self, number: int, mixed: Mixed) -> Tensor:
        """One step of Adam on the L1 loss of the restored images."""
        rotations = random_numbers(self._seed, number).integers(N_ROTATIONS, size=self._batch_size)
        planes = upload(self._images.take(self._shuffle.batch(number, self._batch_size)), self._device)
        given = torch.cat([take_away(image[None], int(turn)) for image, turn in zip(planes, rotations, strict=True)])
        for group in self.optimizers[0].param_groups:  # from the step's number, so that it survives an interruption
            group["lr"] = self._learning_rate * 0.5 ** (number // self._epoch_steps // HALVED_EVERY)
        with mixed():
            restored = self.network(given)
        loss = l1_loss(restored.float(), planes)
        self.optimizers[0].zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizers[0].step()
        return loss.detach()


class ITAEScorer(nn.Module):
    """Images (B, H, W, 3) uint8 to image scores (B,): mean over the rotations of errors in units of the usual one.

    Attributes:
        typical: (4,) mean error of the training images for each rotation; ones until `set_typical`.
    """

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network = network
        self.typical: Tensor
        self.register_buffer("typical", torch.ones(N_ROTATIONS))

    def errors(self, images: Tensor) -> Tensor:
        """Errors (B, 4)."""
        return rotation_errors(self.network, to_planes(images))

    def set_typical(self, errors: Tensor) -> None:
        """Take the unit from errors (N, 4) of training images."""
        self.typical.copy_(errors.mean(dim=0).clamp_min(1e-8))

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Scores."""
        return ((self.errors(images) / self.typical).mean(dim=1),)


class ITAE(TrainedDetector[ITAEScorer]):
    """Restores colour and orientation as good images have them; where it fails, the image is anomalous.

    It says whether an image is anomalous and not where. Images are square, with sides in multiples of 16. `width` is
    the number of channels of the first level.

    Example:
        >>> import numpy as np
        >>> good = np.random.default_rng(0).integers(90, 110, (8, 16, 16, 3), dtype=np.uint8)
        >>> model = ITAE(resize=16, width=2, batch_size=2, steps=1).fit(good)
        >>> model.predict(good[0]).pred_score >= 0
        True
    """

    name = "itae"
    presets: ClassVar = {"itae-paper": {"reading": "whole"}}
    localises = False
    epochs = 300
    learning_rate = 1e-3

    def build_scorer(self, input_size: Size, n_images: int) -> ITAEScorer:  # noqa: ARG002
        """The U-Net, and the errors of each rotation."""
        check_size(input_size)
        return ITAEScorer(UNet(width=self.width))

    def _trainee(self, scorer: ITAEScorer, images: TrainingImages, device: torch.device) -> Trainee:
        return ITAETraining(scorer.network, images, epoch_steps=self.epoch_steps(len(images)), **self._options(device))

    @torch.inference_mode()
    def _complete(self, scorer: ITAEScorer, images: TrainingImages, device: torch.device) -> None:
        """The mean training error of each rotation."""
        errors = [scorer.errors(torch.from_numpy(batch).to(device)) for batch in images.batches(batch_size((256, 256)))]
        scorer.set_typical(torch.cat(errors))
