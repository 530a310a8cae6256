"""The variational auto-encoder that the PaDiM paper compares with (Defard et al. 2020, section IV-C).

The paper gives: a ResNet-18 encoder, a convolutional latent variable of 8 x 8, 10,000 augmented images (rotation by up
to 2 degrees, resize to 292, random crop to 282, centre crop to 256), Adam at 1e-4, batches of 32, 100 epochs, and
squared L2 norms of the reconstruction error as anomaly map. It leaves open, and is chosen here:

- the encoder begins from random weights;
- for images of other sizes than 256 the latent variable is read from the layer that comes nearest to 8 x 8;
- 64 latent channels, a standard normal prior and a diagonal posterior (Kingma & Welling 2014), both by 1 x 1
  convolutions;
- the decoder doubles the grid by nearest neighbour, a 3 x 3 convolution, batch normalisation and ReLU until it has the
  input's size, and ends in a sigmoid;
- the loss is the negative evidence bound of a Gaussian decoder of standard deviation 0.1, on pixels in 0..1;
- at inspection the latent variable is its mean, and the map is smoothed by the Gaussian of PaDiM (sigma 4).
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import cv2
import numpy as np
import timm
import torch
from numpy.typing import NDArray
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn.functional import interpolate

from flawmap.backbones import CATALOGUE
from flawmap.detectors.anomaly_map import image_scores, roi_weights, smoothing_operator
from flawmap.detectors.trained.detector import TrainedDetector
from flawmap.detectors.trained.images import TrainingImages, to_planes, upload
from flawmap.detectors.trained.training import Mixed, Shuffle, Trainee, random_numbers, torch_numbers
from flawmap.prediction import Size

LATENT_SIDE = 8
STRIDES = (4, 8, 16, 32)
"""Of ResNet-18's four layers."""
NOISE = 0.1
"""Standard deviation of the decoder, for pixels in 0..1."""
MAX_ROTATION = 2.0
"""Degrees by which training images are turned, either way."""
SHIFTED = (292 - 282) / (292 - 256)
"""Share of the border, between the whole image and its centre crop, that the random crop takes."""
WIDTHS = (256, 128, 64, 32, 16)
"""Channels of the decoder's steps."""


def latent_stride(input_size: Size) -> int:
    """Pixels a cell of the layer of ResNet-18 whose grid comes nearest to 8 x 8: 32 for images of 256."""
    side = math.sqrt(input_size[0] * input_size[1])
    return min(STRIDES, key=lambda stride: abs(math.log(side / stride / LATENT_SIDE)))


class VAENetwork(nn.Module):
    """Encoder and decoder; parts are named after what they give.

    Args:
        input_size: (height, width) of the images.
        latent_channels: channels of the latent variable.
    """

    def __init__(self, input_size: Size, *, latent_channels: int = 64) -> None:
        super().__init__()
        stride = latent_stride(input_size)
        self.input_size = input_size
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(IMAGENET_DEFAULT_MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(IMAGENET_DEFAULT_STD)[:, None, None])
        encoder: Any = timm.create_model(
            CATALOGUE["resnet18"].architecture, features_only=True, out_indices=(int(math.log2(stride)) - 1,)
        )
        self.encoder: nn.Module = encoder
        (n_features,) = encoder.feature_info.channels()
        self.latent_mean = nn.Conv2d(n_features, latent_channels, 1)
        self.latent_log_variance = nn.Conv2d(n_features, latent_channels, 1)
        widths = WIDTHS[: int(math.log2(stride))]
        self.decoder = nn.ModuleList(
            _UpStep(before, after) for before, after in zip((latent_channels, *widths), widths, strict=False)
        )
        self.pixels = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def encode(self, planes: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (B, C, h, w) of the latent variable for images (B, 3, H, W) in 0..1."""
        (features,) = self.encoder((planes - self.mean) / self.std)
        return self.latent_mean(features), self.latent_log_variance(features)

    def decode(self, latent: Tensor) -> Tensor:
        """Images (B, 3, H, W) in 0..1."""
        grown = latent
        for step in self.decoder:
            grown = step(grown)
        pixels = torch.sigmoid(self.pixels(grown))
        if pixels.shape[2:] != self.input_size:  # of sizes that the strides do not divide
            pixels = pixels[:, :, : self.input_size[0], : self.input_size[1]]
        return pixels

    def forward(self, planes: Tensor) -> Tensor:
        """What the mean of the latent variable gives back of images (B, 3, H, W) in 0..1."""
        return self.decode(self.encode(planes)[0])


class _UpStep(nn.Module):
    """Twice the height and width."""

    def __init__(self, n_before: int, n_after: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(n_before, n_after, 3, padding=1, bias=False)
        self.normalisation = nn.BatchNorm2d(n_after)

    def forward(self, features: Tensor) -> Tensor:
        """Feature maps (B, C', 2 h, 2 w) from (B, C, h, w)."""
        larger = interpolate(features, scale_factor=2.0, mode="nearest")
        return torch.relu(self.normalisation(self.convolution(larger)))


def evidence_bound(planes: Tensor, reconstruction: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Negative evidence lower bound, a number per pixel value, without its constant.

    |x - x^|^2 / (2 NOISE^2) + KL(N(mean, exp(log_variance)) || N(0, 1)), the mean over images and pixel values; the
    second term is (mean^2 + variance - 1 - log_variance) / 2, summed over the latent variable.
    """
    squared = (planes - reconstruction).float().square().sum() / (2 * NOISE**2)
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).float().sum()
    return (squared + divergence) / planes.numel()


def error_map(planes: Tensor, reconstruction: Tensor) -> Tensor:
    """Squared L2 norm over the colours of the reconstruction error, in squared grey levels of 0..255: (B, H, W)."""
    return 255**2 * (planes - reconstruction).square().sum(dim=1)


def window_offsets(whole: Size, window: Size) -> tuple[float, float]:
    """How far the random crop moves the window, either way, in pixels (y, x): 5 of 292 pixels for a window of 256."""
    return (whole[0] - window[0]) * SHIFTED / 2, (whole[1] - window[1]) * SHIFTED / 2


def augment(image: NDArray[np.uint8], window: Size, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A window (h, w, 3) of an image (H, W, 3), turned by up to 2 degrees and moved as the random crop would.

    Rotation and both crops are one bilinear resampling; what lies beyond the border is mirrored. (The paper turns
    before it resizes, which is the same up to the resampling.)
    """
    height, width = image.shape[:2]
    angle = rng.uniform(-MAX_ROTATION, MAX_ROTATION)
    most = window_offsets((height, width), window)
    shift = [rng.uniform(-limit, limit) for limit in most]
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
    turn[0, 2] -= (width - window[1]) / 2 + shift[1]
    turn[1, 2] -= (height - window[0]) / 2 + shift[0]
    turned = cv2.warpAffine(
        image, turn, (window[1], window[0]), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    return np.asarray(turned, np.uint8)


class VAETraining:
    """A VAE with what it learns from; a `Trainee`."""

    def __init__(
        self,
        network: VAENetwork,
        images: TrainingImages,
        *,
        learning_rate: float,
        batch_size: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.network: nn.Module = network.to(device)
        self.optimizers = (torch.optim.Adam(network.parameters(), lr=learning_rate),)
        self._vae, self._images, self._batch_size = network, images, batch_size
        self._seed, self._device = seed, device
        self._shuffle = Shuffle(len(images), seed)

    def step(self, number: int, mixed: Mixed) -> Tensor:
        """One step of Adam on the negative evidence bound."""
        rng = random_numbers(self._seed, number)
        chosen = self._images.take(self._shuffle.batch(number, self._batch_size))
        window = self._vae.input_size
        planes = upload(np.stack([augment(image, window, rng) for image in chosen]), self._device)
        with mixed():
            mean, log_variance = (part.float() for part in self._vae.encode(planes))
            noise = torch.randn(mean.shape, generator=torch_numbers(self._seed, number)).to(self._device)
            latent = mean + noise * (0.5 * log_variance).exp()
            loss = evidence_bound(planes, self._vae.decode(latent), mean, log_variance)
        self.optimizers[0].zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizers[0].step()
        return loss.detach()


class VAEScorer(nn.Module):
    """Images (B, H, W, 3) uint8 to anomaly maps (B, H, W) and image scores (B,): the map's maximum.

    Args:
        network: encoder and decoder.
        roi: (H, W), the pixels that are inspected; the maps are 0 elsewhere. None for all.
    """

    def __init__(self, network: VAENetwork, roi: NDArray[np.bool_] | None = None) -> None:
        super().__init__()
        self.network = network
        height, width = network.input_size
        self.rows: Tensor
        self.columns: Tensor
        self.register_buffer("rows", smoothing_operator(height, height).clone(), persistent=False)
        self.register_buffer("columns", smoothing_operator(width, width).T.contiguous(), persistent=False)
        weights = (None, None) if roi is None else roi_weights(roi, network.input_size)
        self.cells: Tensor | None
        self.gain: Tensor | None
        self.register_buffer("cells", weights[0], persistent=False)
        self.register_buffer("gain", weights[1], persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Maps and scores."""
        planes = to_planes(images)
        errors = error_map(planes, self.network(planes))
        if self.cells is not None:
            errors = errors * self.cells
        maps = self.rows @ errors @ self.columns
        maps = maps if self.gain is None else maps * self.gain
        return maps, image_scores(maps)


class VAE(TrainedDetector[VAEScorer]):
    """Reconstructs images from a narrow latent variable learnt from good ones; what it cannot reconstruct is anomalous.

    An epoch is 10,000 images, turned and moved at random. `width` is the number of latent channels. Where `resize` is
    given, `crop` should be 256/292 of it: training images are moved within that border.

    Example:
        >>> import numpy as np
        >>> good = np.random.default_rng(0).integers(90, 110, (8, 32, 32, 3), dtype=np.uint8)
        >>> model = VAE(resize=32, width=2, batch_size=2, steps=1).fit(good)
        >>> model.predict(good[0]).pred_score >= 0
        True
    """

    name = "vae"
    presets: ClassVar = {"vae-paper": {"reading": "whole"}}
    trains_on_whole = True
    epoch_images = 10_000
    resize = 292
    crop = 256

    def build_scorer(self, input_size: Size, n_images: int) -> VAEScorer:  # noqa: ARG002
        """The encoder, the decoder and the smoothing."""
        return VAEScorer(VAENetwork(input_size, latent_channels=self.width), self.roi_)

    def _trainee(self, scorer: VAEScorer, images: TrainingImages, device: torch.device) -> Trainee:
        return VAETraining(scorer.network, images, **self._options(device))
