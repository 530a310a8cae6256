"""Feature maps of one class for several PaDiMs: one pass of the backbone for all of them.

They lie in files on disk up to a limit; those of further images are computed again at each use. Neither memory nor disk
grows with the data set.
"""

from __future__ import annotations

import errno
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flawmap.backbones import Backbone, load_backbone, pick_device
from flawmap.benchmark.paper.class_images import ClassImages
from flawmap.decision import Decision
from flawmap.detectors import PaDiM
from flawmap.detectors.anomaly_map import anomaly_maps
from flawmap.detectors.batches import batch_size, in_batches
from flawmap.detectors.padim.embedding import draw_channels
from flawmap.detectors.padim.fit import FIT_BATCH, reduced_hierarchy
from flawmap.detectors.padim.gaussian.factor import Factor, factorise, squared_distances
from flawmap.detectors.padim.gaussian.leave_one_out import Probe, choose_regularization, leave_one_out
from flawmap.detectors.padim.gaussian.moments import Moments, Regularization, update
from flawmap.errors import BackboneError, ParameterError
from flawmap.images import Preprocessing, stream
from flawmap.options import MIN_IMAGES, Runtime
from flawmap.prediction import Placement, Prediction

SCORE_BATCH = 8
FEW_IMAGES = 32
"""Images for which compiling a backbone does not pay."""

Advance = Callable[[int], None]


class SharedFeatures:
    """Feature maps of a class's training images, then its test images.

    They lie in unnamed files in `folder`, which vanish with this object, however the process ends.

    Attributes:
        preprocessing: makes the backbone's input.
        shapes: channels and grid of each layer.
        n_train: number of training images.
    """

    def __init__(
        self, images: ClassImages, backbone: Backbone, preprocessing: Preprocessing, *, folder: Path, limit_bytes: int
    ) -> None:
        self.preprocessing = preprocessing
        self.shapes = backbone.shapes(preprocessing.input_size)
        self.n_train = len(images.train)
        self._backbone = backbone
        self._sources = images.sources
        self._placements: dict[int, Placement] = {}  # of each image seen so far
        per_image = 4 * sum(n * height * width for n, (height, width) in self.shapes)
        self._n_stored = min(len(self._sources), limit_bytes // per_image)
        self._stored: list[NDArray[np.float32]] = []
        self._folder = folder

    def compute(self, advance: Advance) -> None:
        """Run the backbone over all images to store. ParameterError if the disk is full."""
        if self._n_stored == 0:
            return
        self._stored = [_reserve(self._folder, (self._n_stored, n, *grid)) for n, grid in self.shapes]
        for start, maps in self._run(0, self._n_stored):
            for stored, part in zip(self._stored, maps, strict=True):
                stored[start : start + len(part)] = part.cpu().numpy()
            advance(len(maps[0]))

    def train(self, size: int, layers: Sequence[int]) -> Iterator[list[Tensor]]:
        """Maps (B, C, h, w) of some layers of all training images, in batches of up to `size`."""
        return (maps for _, maps in self._batches(0, self.n_train, size, layers))

    def test(self, size: int, layers: Sequence[int]) -> Iterator[tuple[list[Placement], list[Tensor]]]:
        """The same of the test images, with the position of the input on each."""
        for start, maps in self._batches(self.n_train, len(self._sources), size, layers):
            yield [self._placements[i] for i in range(start, start + len(maps[0]))], maps

    def layers_of(self, model: PaDiM) -> list[int]:
        """Indices of a model's layers among those computed."""
        return [self._backbone.layers.index(layer) for layer in model.layers or self._backbone.layers]

    def _batches(self, first: int, last: int, size: int, layers: Sequence[int]) -> Iterator[tuple[int, list[Tensor]]]:
        for start in range(first, min(last, self._n_stored), size):
            stop = min(start + size, last, self._n_stored)
            yield start, [torch.from_numpy(np.array(self._stored[layer][start:stop])) for layer in layers]
        if last > self._n_stored:
            for start, maps in self._run(max(first, self._n_stored), last):
                for offset in range(0, len(maps[0]), size):
                    yield start + offset, [maps[layer][offset : offset + size].cpu() for layer in layers]

    def _run(self, first: int, last: int) -> Iterator[tuple[int, list[Tensor]]]:
        loaded = stream(self._sources[first:last], self.preprocessing)
        for batch in in_batches(loaded, batch_size(self.preprocessing.input_size)):
            self._placements.update(enumerate((image.placement for image in batch.images), first))
            yield first, self._backbone.features(batch.pixels)
            first += len(batch.images)


def _reserve(folder: Path, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """An array in an unnamed file, whose disk space is reserved: the disk may fill up later."""
    n_bytes = 4 * math.prod(shape)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.truncate(n_bytes)
            if hasattr(os, "posix_fallocate"):
                try:
                    os.posix_fallocate(file.fileno(), 0, n_bytes)
                except OSError as error:
                    if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # what this file system cannot do
                        raise
            return np.memmap(file, np.float32, "r+", shape=shape)
    except OSError as error:
        raise ParameterError(
            f"{folder}: cannot hold {n_bytes / 1e9:.2g} GB of features ({error.strerror}); make room, write the "
            "results to another disk, or lower --cache-gb (0 stores no features)"
        ) from error


def steady_backbone(model: PaDiM, n_images: int) -> Backbone:
    """A model's backbone with all its known layers, or with the model's if those are others, on one runtime.

    A benchmark that resumes after a kill then computes exactly the features of an uninterrupted one.
    """
    on_cpu = n_images > FEW_IMAGES and pick_device("auto").type == "cpu"
    runtimes: tuple[Runtime, ...] = ("openvino", "torch") if on_cpu else ("torch",)
    for runtime in runtimes:
        load = partial(
            load_backbone,
            model.backbone,
            pretrained=model.pretrained,
            weights=model.weights,
            runtime=runtime,
            input_size=model.preprocessing.input_size,
        )
        backbone = load()
        if not set(model.layers or ()) <= set(backbone.layers):
            backbone = load(layers=model.layers)
        backbone.shapes(model.preprocessing.input_size)  # BackboneError for a size that the network cannot take
        try:
            backbone.features(np.zeros((1, *model.preprocessing.input_size, 3), np.uint8))
        except BackboneError:
            if runtime == runtimes[-1]:
                raise
        else:
            break
    return backbone


@dataclass(frozen=True, eq=False)
class Learnt:
    """A PaDiM that was learnt from shared features: its layers, Gaussians, and what regularised them."""

    layers: list[int]
    factor: Factor
    sharing: float


class SharedModels:
    """PaDiMs that are fitted on shared features, and whose maps (H, W) are summed.

    Used of the models are `layers`, `n_features`, `reduction`, `seed` and `regularization`.
    """

    def __init__(self, models: Sequence[PaDiM], features: SharedFeatures, advance: Advance) -> None:
        self._features = features
        self._learnt = [  # an image counts once, however many models learn it
            _learn(model, features, advance if i == 0 else lambda _: None) for i, model in enumerate(models)
        ]
        self._used = sorted({layer for one in self._learnt for layer in one.layers})

    def held_out(self) -> Decision | None:
        """Leave-one-out image scores of the training images, by the closed form; None of fewer than three images."""
        count = self._features.n_train
        if count < MIN_IMAGES:
            return None
        scores = []
        for maps in self._features.train(SCORE_BATCH, self._used):
            total = self._sum(maps, lambda one, squared: leave_one_out(squared, count, sharing=one.sharing))
            scores.append(total.flatten(1).amax(dim=1).numpy())
        return Decision(np.concatenate(scores), np.zeros(0, np.float32))

    def predictions(self, advance: Advance) -> Iterator[Prediction]:
        """A prediction of every test image."""
        for placements, maps in self._features.test(SCORE_BATCH, self._used):
            total = self._sum(maps, lambda _, squared: squared)
            for placement, anomaly_map in zip(placements, total.numpy(), strict=True):
                yield Prediction(None, float(anomaly_map.max()), anomaly_map, placement)
            advance(len(placements))

    def _sum(self, maps: Sequence[Tensor], change: Callable[[Learnt, Tensor], Tensor]) -> Tensor:
        """Summed anomaly maps (B, H, W) of the models; `change` is done to each one's squared distances."""
        size = self._features.preprocessing.input_size
        total = torch.zeros(len(maps[0]), *size)
        for one in self._learnt:
            columns = one.factor.hierarchy.select([maps[self._used.index(layer)] for layer in one.layers])
            total += anomaly_maps(change(one, squared_distances(one.factor, columns)).sqrt_(), size)
        return total


def _learn(model: PaDiM, features: SharedFeatures, advance: Advance) -> Learnt:
    layers = features.layers_of(model)
    shapes = [features.shapes[layer] for layer in layers]
    channels = draw_channels(sum(n for n, _ in shapes), model.n_features, model.seed)
    hierarchy = reduced_hierarchy(
        shapes, channels, model.reduction, model.n_features, features.train(FIT_BATCH, layers)
    )
    moments, probe = Moments.empty(hierarchy), Probe(hierarchy)
    regularization = Regularization.of(model.regularization)
    for maps in features.train(FIT_BATCH, layers):
        columns = hierarchy.select(maps)
        if regularization is None:
            probe.take(probe.at_positions(columns), range(moments.count, moments.count + columns[0].shape[1]))
        update(moments, columns)
        advance(len(maps[0]))
    chosen = regularization or choose_regularization(moments, probe)
    return Learnt(layers, factorise(moments, regularization=chosen), chosen.sharing)
