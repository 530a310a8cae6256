"""Patch SVDD: patches embedded by self-supervision, compared with those of good images (Yi & Yoon 2020, 2006.16067).

Layers, sampling and losses are those of the authors' code (nuclearboy95/Anomaly-Detection-PatchSVDD-PyTorch). An
encoder embeds patches of 32 pixels in 64 values; four of these, side by side, are embedded again as a patch of 64
pixels (section 3.4). For each size, a classifier tells from the difference of two embeddings in which of eight
directions the second patch lies (equation 4; patches shifted in colour and with noise), and embeddings of patches a
pixel or two apart are pulled together (equation 3). Loss: both cross-entropies plus `svdd_weight` times both distances.
As in that code, the classifier's last weights are normalised without a gradient and so stay as drawn.

At inspection the encoder runs over the whole image at once: patches overlap, and a convolution without padding gives
for each just what it would for the patch alone, at a twentieth of the operations. A patch is as anomalous as the
nearest of all training patches of its size is far; a pixel takes the mean over the patches that cover it; the two maps
are multiplied (section 3.5) and their maximum is the image score. An epoch goes through every image a hundred times, as
the code does.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import conv2d, cross_entropy, leaky_relu, linear

from flawmap.detectors.anomaly_map import image_scores
from flawmap.detectors.neighbours import nearest_distances
from flawmap.detectors.trained.detector import TrainedDetector
from flawmap.detectors.trained.images import TrainingImages
from flawmap.detectors.trained.training import Mixed, Shuffle, Trainee, random_numbers
from flawmap.errors import ParameterError, TrainingError
from flawmap.prediction import Size

SMALL, LARGE = 32, 64
"""Sides of the patches, in pixels."""
STRIDES = {SMALL: 4, LARGE: 16}
"""Pixels between the patches that are compared."""
DIRECTIONS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
"""Where the second patch lies, (down, right), by its label."""
SLOPE = 0.1
NOISE = 0.02
"""Standard deviation of the shift in colour and of the noise, for pixels in 0..1."""
SVDD_WEIGHT = 1e-3
"""The paper's weight of the SVDD losses, lambda."""
AT_ONCE = 8
"""Images of which the mean is computed, or patches embedded, at a time."""
COLLAPSED = 1e-6
"""Spread of embeddings, between -1 and 1, that is none."""


class SmallEncoder(nn.Module):
    """Patches of 32 pixels to embeddings: eight convolutions of 3 x 3 without padding, the first of stride 2."""

    def __init__(self, n_features: int = 64) -> None:
        super().__init__()
        widths = (3, 32, 64, 128, 128, 64, 32, 32, n_features)
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2 if number == 0 else 1)
            for number, (before, after) in enumerate(pairwise(widths))
        )

    def forward(self, planes: Tensor) -> Tensor:
        """Embeddings (B, D, h, w) in -1..1 of every patch of (B, 3, H, W) whose corner lies on even pixels."""
        features = planes
        for number, layer in enumerate(self.layers):
            features = layer(leaky_relu(features, SLOPE) if number else features)
        return torch.tanh(features)


class LargeEncoder(nn.Module):
    """Patches of 64 pixels to embeddings: those of its four quarters, joined by 2 x 2 and mixed by 1 x 1."""

    def __init__(self, n_features: int = 64) -> None:
        super().__init__()
        self.small = SmallEncoder(n_features)
        self.join = nn.Conv2d(n_features, 128, 2)
        self.mix = nn.Conv2d(128, n_features, 1)

    def forward(self, patches: Tensor) -> Tensor:
        """Embeddings (B, D, 1, 1) of patches (B, 3, 64, 64)."""
        n, half = len(patches), LARGE // 2
        quarters = [patches[..., :half, :half], patches[..., :half, half:]]
        quarters += [patches[..., half:, :half], patches[..., half:, half:]]
        embedded = self.small(torch.cat(quarters)).view(2, 2, n, -1)  # (down, right, B, D): one embedding each
        return self._finish(self.join(embedded.permute(2, 3, 0, 1)))

    def of_map(self, small: Tensor) -> Tensor:
        """Embeddings (B, D, h, w), one for each 8 small ones, from a map of small embeddings of stride 2."""
        apart = LARGE // 2 // 2
        joined = conv2d(small, self.join.weight, self.join.bias, stride=STRIDES[LARGE] // 2, dilation=apart)
        return self._finish(joined)

    def _finish(self, joined: Tensor) -> Tensor:
        return torch.tanh(self.mix(leaky_relu(joined, SLOPE)))


class PositionClassifier(nn.Module):
    """From two embeddings to eight directions, by their difference."""

    def __init__(self, n_features: int = 64) -> None:
        super().__init__()
        self.first = nn.Linear(n_features, 128)
        self.second = nn.Linear(128, 128)
        self.last = nn.Linear(128, len(DIRECTIONS))

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """Logits (B, 8) of embeddings (B, D, 1, 1)."""
        hidden = leaky_relu(self.first((one - other).flatten(1)), SLOPE)
        hidden = leaky_relu(self.second(hidden), SLOPE)
        fixed = self.last.weight.detach()
        logits: Tensor = linear(hidden, fixed / fixed.norm(dim=0, keepdim=True), self.last.bias)
        return logits


class PatchSVDDNetwork(nn.Module):
    """The encoders and the classifiers that teach them."""

    def __init__(self, n_features: int = 64) -> None:
        super().__init__()
        self.encoder = LargeEncoder(n_features)
        self.classifiers = nn.ModuleDict({str(side): PositionClassifier(n_features) for side in (LARGE, SMALL)})

    def encode(self, side: int, patches: Tensor) -> Tensor:
        """Embeddings (B, D, 1, 1) of patches (B, 3, side, side)."""
        encoder: nn.Module = self.encoder if side == LARGE else self.encoder.small
        embedded: Tensor = encoder(patches)
        return embedded


def svdd_loss(one: Tensor, other: Tensor) -> Tensor:
    """Mean distance of embeddings (B, D, 1, 1) of patches that lie nearly at the same place (equation 3)."""
    distances: Tensor = (one - other).float().flatten(1).norm(dim=1)
    return distances.mean()


def neighbour_corners(size: Size, side: int, rng: np.random.Generator) -> tuple[tuple[int, int], tuple[int, int], int]:
    """Corners of a patch and of one 3/4 to 1 side away, which must stay inside, and the direction's label."""
    corner = _corner(size, side, rng)
    label = int(rng.integers(len(DIRECTIONS)))
    steps = 3 * side // 4 + rng.integers(side // 4, size=2)
    return corner, _moved(corner, steps * DIRECTIONS[label], size, side), label


def nearby_corners(size: Size, side: int, rng: np.random.Generator) -> tuple[tuple[int, int], tuple[int, int]]:
    """Corners of a patch and of one up to 1 pixel away (2 for patches of 64), never zero, which must stay inside."""
    corner, most = _corner(size, side, rng), side // 32
    step = np.zeros(2, np.int64)
    while not step.any():
        step = rng.integers(-most, most + 1, size=2)
    return corner, _moved(corner, step, size, side)


def _corner(size: Size, side: int, rng: np.random.Generator) -> tuple[int, int]:
    return int(rng.integers(size[0] - side + 1)), int(rng.integers(size[1] - side + 1))


def _moved(corner: tuple[int, int], step: NDArray[np.int64], size: Size, side: int) -> tuple[int, int]:
    row, column = (int(np.clip(corner[axis] + step[axis], 0, size[axis] - side)) for axis in (0, 1))
    return row, column


def check_size(input_size: Size) -> None:
    """ParameterError for images smaller than a patch."""
    if min(input_size) < LARGE:
        raise ParameterError(
            f"Patch SVDD compares patches of {LARGE} x {LARGE} pixels, the images are made {input_size} (height, "
            f"width); give a larger resize or crop"
        )


class PatchSVDDTraining:
    """The networks with what they learn from; a `Trainee`.

    Args:
        mean: (H, W, 3) mean of the training images, 0..255.
    """

    def __init__(
        self,
        network: PatchSVDDNetwork,
        images: TrainingImages,
        mean: NDArray[np.float32],
        *,
        learning_rate: float,
        svdd_weight: float,
        batch_size: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.network: nn.Module = network.to(device)
        self.optimizers = (torch.optim.Adam(network.parameters(), lr=learning_rate),)
        self._networks, self._images, self._mean = network, images, mean
        self._svdd_weight, self._batch_size, self._seed, self._device = svdd_weight, batch_size, seed, device
        self._shuffle = Shuffle(len(images), seed)

    def step(self, number: int, mixed: Mixed) -> Tensor:
        """One step of Adam on the position losses plus `svdd_weight` times the SVDD losses, of both sizes."""
        rng = random_numbers(self._seed, number)
        chosen = self._images.take(self._shuffle.batch(number, self._batch_size))
        centred = ((chosen - self._mean) / 255).astype(np.float32)
        losses = []
        for side in (LARGE, SMALL):
            pairs, labels = self._neighbours(centred, side, rng)
            near = self._nearby(centred, side, rng)
            with mixed():
                one, other, first, second = self._networks.encode(side, torch.cat([pairs, near])).chunk(4)
                logits = self._networks.classifiers[str(side)](one, other)
            losses.append(cross_entropy(logits.float(), labels) + self._svdd_weight * svdd_loss(first, second))
        loss = losses[0] + losses[1]
        self.optimizers[0].zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizers[0].step()
        return loss.detach()

    def _neighbours(self, images: NDArray[np.float32], side: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Patches (2B, 3, side, side), the first of all pairs first, shifted in colour and noisy; labels (B,)."""
        drawn = [neighbour_corners((images.shape[1], images.shape[2]), side, rng) for _ in images]
        patches = _cut_pairs(images, [(one, other) for one, other, _ in drawn], side)
        patches += NOISE * rng.standard_normal((len(patches), 1, 1, 3), np.float32)
        patches += NOISE * rng.standard_normal(patches.shape, np.float32)
        labels = torch.tensor([label for _, _, label in drawn], device=self._device)
        return self._to_planes(patches), labels

    def _nearby(self, images: NDArray[np.float32], side: int, rng: np.random.Generator) -> Tensor:
        """Patches (2B, 3, side, side), the first of all pairs first."""
        drawn = [nearby_corners((images.shape[1], images.shape[2]), side, rng) for _ in images]
        return self._to_planes(_cut_pairs(images, drawn, side))

    def _to_planes(self, patches: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(patches).to(self._device).permute(0, 3, 1, 2).contiguous()


def _cut_pairs(
    images: NDArray[np.float32], pairs: Sequence[tuple[tuple[int, int], tuple[int, int]]], side: int
) -> NDArray[np.float32]:
    """Patches (2B, side, side, 3) at two corners of each image, the first ones first."""
    firsts = [
        image[row : row + side, column : column + side] for image, ((row, column), _) in zip(images, pairs, strict=True)
    ]
    seconds = [
        image[row : row + side, column : column + side] for image, (_, (row, column)) in zip(images, pairs, strict=True)
    ]
    return np.stack(firsts + seconds)


def embed_patches(encoder: LargeEncoder, planes: Tensor) -> dict[int, Tensor]:
    """Embeddings (B, D, h, w) of the patches of each side, 4 and 16 pixels apart, of images (B, 3, H, W)."""
    height, width = planes.shape[2:]
    # of a patch's 32 pixels the convolutions see 31, so that odd sides would give one more
    dense = encoder.small(planes)[:, :, : (height - SMALL) // 2 + 1, : (width - SMALL) // 2 + 1]
    every = STRIDES[SMALL] // 2
    return {SMALL: dense[:, :, ::every, ::every], LARGE: encoder.of_map(dense)}


@lru_cache(maxsize=64)
def spread_operator(n_pixels: int, side: int) -> Tensor:
    """Matrix (n_pixels, n_patches): each pixel of a line takes the mean of the patches that cover it.

    Pixels behind the last patch take what the last one covered takes.
    """
    stride = STRIDES[side]
    n_patches = (n_pixels - side) // stride + 1
    covered = torch.zeros(n_pixels, n_patches, device="cpu")
    for number in range(n_patches):
        covered[number * stride : number * stride + side, number] = 1
    covered[(n_patches - 1) * stride + side :] = covered[(n_patches - 1) * stride + side - 1]
    return covered / covered.sum(dim=1, keepdim=True)


def patch_grid(input_size: Size, side: int) -> Size:
    """Rows and columns of patches of one side that are compared."""
    rows, columns = ((length - side) // STRIDES[side] + 1 for length in input_size)
    return rows, columns


class PatchSVDDScorer(nn.Module):
    """Images (B, H, W, 3) uint8 to anomaly maps (B, H, W) and image scores (B,).

    Attributes:
        mean: (H, W, 3) mean of the training images, 0..255.
        gallery_32, gallery_64: (patches, D) embeddings of all their patches of a side.
        unit_32, unit_64: root mean square distance of these from their mean, in which distances are counted. It makes
            scores of different trainings alike in size and changes no order.
    """

    def __init__(self, encoder: LargeEncoder, input_size: Size, n_images: int) -> None:
        super().__init__()
        check_size(input_size)
        self.encoder = encoder
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(*input_size, 3))
        self.grids = {side: patch_grid(input_size, side) for side in (SMALL, LARGE)}
        n_features = encoder.mix.out_channels
        for side, (rows, columns) in self.grids.items():
            self.register_buffer(f"unit_{side}", torch.ones(()))
            self.register_buffer(f"gallery_{side}", torch.zeros(n_images * rows * columns, n_features))
            for axis, name in enumerate(("rows", "columns")):
                spread = spread_operator(input_size[axis], side)
                self.register_buffer(f"{name}_{side}", spread.T.contiguous() if axis else spread, persistent=False)

    def embed(self, images: Tensor) -> dict[int, Tensor]:
        """Embeddings (B, D, h, w) of the patches of each side."""
        planes = (images.float() - self.mean) / 255
        return embed_patches(self.encoder, planes.permute(0, 3, 1, 2))

    def keep(self, number: int, embedded: dict[int, Tensor]) -> None:
        """Put the patches of training images, of which the first is the `number`th, into the galleries."""
        for side, features in embedded.items():
            patches = features.permute(0, 2, 3, 1).flatten(0, 2)
            start = number * len(patches) // len(features)
            self.get_buffer(f"gallery_{side}")[start : start + len(patches)] = patches

    def set_units(self) -> None:
        """Take the units from the galleries; TrainingError if all patches have become alike."""
        for side in self.grids:
            spread = self.get_buffer(f"gallery_{side}").var(dim=0, correction=0).sum().sqrt()
            if float(spread) < COLLAPSED:
                raise TrainingError(
                    f"the training broke down: its patches of {side} pixels all have one embedding, from which nothing "
                    f"can differ. Train anew, with a lower learning rate"
                )
            self.get_buffer(f"unit_{side}").copy_(spread)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Maps and scores."""
        product: Tensor | None = None
        for side, features in self.embed(images).items():
            patches = features.flatten(2).transpose(1, 2)
            nearest = nearest_distances(patches, self.get_buffer(f"gallery_{side}")) / self.get_buffer(f"unit_{side}")
            distances = nearest.view(-1, *self.grids[side])
            maps = self.get_buffer(f"rows_{side}") @ distances @ self.get_buffer(f"columns_{side}")
            product = maps if product is None else product * maps
        if product is None:
            raise ValueError("no patches")
        return product, image_scores(product)


class PatchSVDD(TrainedDetector[PatchSVDDScorer]):
    """Learns to embed patches of 64 and 32 pixels; those unlike all patches of good images are anomalous.

    A model keeps the embeddings of all patches it has learnt from: 0.8 MB an image of 256 pixels. An epoch goes through
    every image a hundred times, as in the authors' code. `width` is the length of the embeddings.

    Example:
        >>> import numpy as np
        >>> good = np.random.default_rng(0).integers(90, 110, (8, 72, 72, 3), dtype=np.uint8)
        >>> model = PatchSVDD(resize=72, width=2, batch_size=2, steps=1).fit(good)
        >>> model.predict(good[0]).pred_score >= 0
        True
    """

    name = "patch-svdd"
    presets: ClassVar = {"patch-svdd-paper": {"reading": "whole"}}
    graph_dtypes = ("float32",)
    """Distances between its embeddings are too small for float16."""
    repeats = 100
    epochs = 300
    batch_size = 64

    def build_scorer(self, input_size: Size, n_images: int) -> PatchSVDDScorer:
        """The encoders, and room for the patches of so many images."""
        return PatchSVDDScorer(LargeEncoder(self.width), input_size, n_images)

    def _trainee(self, scorer: PatchSVDDScorer, images: TrainingImages, device: torch.device) -> Trainee:
        network = PatchSVDDNetwork(self.width)
        network.encoder = scorer.encoder
        mean = np.zeros((*self.preprocessing.input_size, 3))
        for start in range(0, len(images), AT_ONCE):
            mean += images.take(range(start, min(start + AT_ONCE, len(images)))).sum(axis=0, dtype=np.float64)
        mean /= len(images)
        scorer.mean.copy_(torch.from_numpy(mean.astype(np.float32)))
        return PatchSVDDTraining(
            network, images, mean.astype(np.float32), svdd_weight=SVDD_WEIGHT, **self._options(device)
        )

    @torch.inference_mode()
    def _complete(self, scorer: PatchSVDDScorer, images: TrainingImages, device: torch.device) -> None:
        """The embeddings of all patches that were learnt from."""
        number = 0
        for batch in images.batches(AT_ONCE):
            scorer.keep(number, scorer.embed(torch.from_numpy(batch).to(device)))
            number += len(batch)
        scorer.set_units()
