"""PaDiM: one Gaussian per patch position, Mahalanobis distances (Defard et al. 2020, arXiv 2011.08785)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from flawmap.anomaly_map import anomaly_maps, image_scores
from flawmap.backbones import DEFAULT_BACKBONE, Backbone, load_backbone
from flawmap.detectors.detector import OnBad
from flawmap.detectors.presets import PRESETS
from flawmap.embedding import Hierarchy, build_hierarchy, draw_channels
from flawmap.errors import (
    ModelFileError,
    NotFittedError,
    ParameterError,
    TrainingSetError,
    WeightsError,
)
from flawmap.gaussian import (
    Factor,
    Moments,
    covariance_at,
    factorise,
    mean_at,
    squared_distances,
    typical_distance,
    update,
)
from flawmap.images import ImageInput, ImageSource, Loaded, Preprocessing, collect, stream
from flawmap.model_file import BackboneRecord, Document, ModelFile, PreprocessingRecord
from flawmap.progress import Progress, report_progress
from flawmap.records import Prediction, Size

__all__ = ["PaDiM"]

BATCH_PIXELS = 32 * 256 * 256
"""Input pixels per batch: 32 images of 256 x 256, fewer of larger ones."""
FIT_BATCH = 64
"""Embeddings that are gathered before the moments take them in; fewer make it slower."""
MAX_POSITIONS = 2**22
"""Finest grid that a model file may ask for."""


class PaDiM:
    """Learns one Gaussian per patch position from good images; scores new ones by their Mahalanobis distance.

    Args:
        backbone: a name of `flawmap.backbones.CATALOGUE` or any timm name.
        layers: one to five module names; None for the backbone's usual ones.
        n_features: channels drawn at random (by `seed`) from the concatenated layers; None for all.
        channels: indices into the concatenated layers, in place of a draw.
        seed: fixes the draw, and the weights where `pretrained` is False.
        regularization: added to the diagonal of every covariance.
        pretrained: False for random weights.
        weights: a weights file, or `hf-hub:REPO`; None to look on this machine.
        resize: the whole image is resized to this size, an int or (height, width).
        crop: centre crop after that, an int or (height, width); what it cuts off is not inspected.
        aspect: "squash" fills `resize`; "letterbox" keeps the proportions and pads.
        device: "auto" takes a GPU where there is one.

    Attributes after `fit`:
        factor_: the Gaussians (`flawmap.gaussian.Factor`). channels_: (d,) indices into the concatenated layers.
        n_images_: number of good images learnt from.
    """

    def __init__(
        self,
        *,
        backbone: str = DEFAULT_BACKBONE,
        layers: Sequence[str] | None = None,
        n_features: int | None = None,
        channels: ArrayLike | None = None,
        seed: int = 0,
        regularization: float = 0.01,
        pretrained: bool = True,
        weights: str | os.PathLike[str] | None = None,
        resize: int | Size = 256,
        crop: int | Size | None = None,
        aspect: Literal["squash", "letterbox"] = "squash",
        device: torch.device | str = "auto",
    ) -> None:
        self.backbone = backbone
        self.layers = layers
        self.n_features = n_features
        self.channels = channels
        self.seed = seed
        self.regularization = regularization
        self.pretrained = pretrained
        self.weights = weights
        self.resize = resize
        self.crop = crop
        self.aspect = aspect
        self.device = device
        self._backbone: Backbone | None = None

    @classmethod
    def from_preset(cls, preset: str, **changes: Any) -> Self:  # noqa: ANN401 (the arguments of __init__)
        """A detector as the paper configures it; `changes` are further arguments, such as `weights`."""
        if preset not in PRESETS:
            raise ParameterError(f"unknown preset '{preset}'; there are {', '.join(PRESETS)}")
        return cls(**{**PRESETS[preset], **changes})

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image becomes the model's input."""
        return Preprocessing.of(self.resize, self.crop, self.aspect)

    def fit(
        self,
        images: ImageInput,
        *,
        progress: Progress = False,
        on_bad: OnBad | None = None,
        batch_size: int | None = None,
    ) -> Self:
        """Learn from good images in one streaming pass; memory does not grow with their number.

        Args:
            images: path, folder, glob, iterable, RGB uint8 array (H, W, 3) or batch of them, PIL image.
            progress: True for a progress bar, or a function of (done, total).
            on_bad: is told of each image that cannot be read, which is then left out; None raises ImageError.
            batch_size: images per step; None to choose by the input size.
        """
        if not (math.isfinite(self.regularization) and self.regularization >= 0):
            raise ParameterError(f"regularization must be a finite number >= 0, got {self.regularization}")
        collection = collect(images)
        preprocessing = self.preprocessing
        backbone = load_backbone(
            self.backbone,
            layers=self.layers,
            pretrained=self.pretrained,
            weights=self.weights,
            seed=self.seed,
            device=self.device,
        )
        shapes = backbone.shapes(preprocessing.input_size)
        channels = self._draw(sum(n for n, _ in shapes))
        hierarchy = build_hierarchy([grid for _, grid in shapes], [n for n, _ in shapes], channels).to(backbone.device)
        moments = Moments.empty(hierarchy, backbone.device)
        loaded = stream(collection.items, preprocessing, on_bad=on_bad)
        with report_progress(progress, "Learning", collection.count) as advance:
            pending: list[list[Tensor]] = []
            for batch in _batches(loaded, batch_size or _batch_size(preprocessing.input_size)):
                pending.append(_embed(backbone, hierarchy, batch))
                if sum(columns[0].shape[1] for columns in pending) >= FIT_BATCH:
                    update(moments, _join(pending))
                    pending = []
                advance(len(batch))
            if pending:
                update(moments, _join(pending))
            del pending
            if moments.count < 2:
                raise TrainingSetError(
                    f"PaDiM learns a spread and needs at least 2 good images, got {moments.count} usable; "
                    f"a few dozen are a good start"
                )
            factor = factorise(moments, regularization=self.regularization)
        self._backbone, self.factor_, self.channels_, self.n_images_ = backbone, factor, channels, moments.count
        self._shapes = shapes
        return self

    def predict(
        self, images: ImageInput, *, on_bad: OnBad | None = None, batch_size: int | None = None
    ) -> Prediction | list[Prediction]:
        """Score one image (a Prediction) or many (a list in input order); input and `on_bad` as in `fit`."""
        collection = collect(images)
        predictions = list(self._predict(collection.items, on_bad, batch_size))
        return predictions[0] if collection.single and predictions else predictions

    def iter_predict(
        self, images: ImageInput, *, on_bad: OnBad | None = None, batch_size: int | None = None
    ) -> Iterator[Prediction]:
        """Score images one after the other, in input order, in bounded memory; input and `on_bad` as in `fit`."""
        return self._predict(collect(images).items, on_bad, batch_size)

    def distances(self, images: ImageInput, *, batch_size: int | None = None) -> NDArray[np.float32]:
        """Patch distances (N, h, w) on the finest layer's grid, before up-sampling and smoothing (equation 2)."""
        maps = [distances.cpu().numpy() for _, distances in self._distances(collect(images).items, None, batch_size)]
        grid = self._fitted()[1].hierarchy.grid
        return np.concatenate(maps) if maps else np.empty((0, *grid), np.float32)

    def gaussian(self, row: int, column: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean (d,) and regularised covariance (d, d) of a patch of the finest grid, in the order of `channels_`."""
        _, factor = self._fitted()
        height, width = factor.hierarchy.grid
        if not (0 <= row < height and 0 <= column < width):
            raise ParameterError(f"the grid has {height} x {width} patches, got ({row}, {column})")
        position = row * width + column
        return mean_at(factor, position).numpy(), covariance_at(factor, position).numpy()

    @property
    def map_scale(self) -> tuple[float, float]:
        """Anomaly-map values shown as coolest and hottest: 1.5 and 8 times a typical good patch's distance."""
        typical = typical_distance(self._fitted()[1], regularization=self.regularization, count=self.n_images_)
        return 1.5 * typical, 8 * typical

    def describe(self) -> dict[str, object]:
        """What the model is and what it was fitted on, as plain JSON values."""
        return self._document().model_dump(mode="json", exclude={"channels"})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a model file atomically; the same images, parameters and seed give the same bytes."""
        document, (_, factor) = self._document(), self._fitted()
        tensors: dict[str, Tensor] = {}
        for i, level in enumerate(factor.hierarchy.levels):
            layer = document.backbone.layers[level.layer]
            tensors[f"{layer}.mean"], tensors[f"{layer}.own"] = factor.mean[i], factor.own[i]
            if level.n_coarser:
                tensors[f"{layer}.cross"] = factor.cross[i]
        ModelFile.write(path, document, tensors)

    @classmethod
    def from_file(
        cls,
        file: ModelFile,
        *,
        weights: str | os.PathLike[str] | None = None,
        device: torch.device | str = "auto",
    ) -> Self:
        """The model of an opened file; `weights` if the backbone's are not where they were when it was fitted."""
        document, record = file.document, file.document.backbone
        try:
            model = cls(
                backbone=record.name,
                layers=record.layers,
                n_features=document.n_features,
                channels=document.channels,
                seed=document.seed,
                regularization=document.regularization,
                pretrained=record.pretrained,
                weights=weights,
                resize=document.preprocessing.resize,
                crop=document.preprocessing.crop,
                aspect=document.preprocessing.aspect,
                device=device,
            )
            input_size = model.preprocessing.input_size
            if not len(document.grids) == len(document.n_channels) == len(record.layers):
                raise ParameterError("layers, grids and channel counts differ in number")
            if any(math.prod(grid) > min(MAX_POSITIONS, math.prod(input_size)) for grid in document.grids):
                raise ParameterError("a grid is finer than the images")
            channels = np.array(document.channels, np.int64)
            if np.any(np.diff(channels) <= 0):
                raise ParameterError("channels are not ascending")
            hierarchy = build_hierarchy(document.grids, document.n_channels, channels)
        except ParameterError as error:
            raise ModelFileError(
                f"{file.path}: no whole flawmap model file: {error}; fit again or take a backup"
            ) from error
        model._backbone = _matching_backbone(file, weights, device)
        target = model._backbone.device
        tensors = file.read(_expected_shapes(hierarchy, record.layers), target)
        names = [record.layers[level.layer] for level in hierarchy.levels]
        coarsest = hierarchy.levels[0]
        no_cross = torch.empty(coarsest.n_cells, coarsest.n_channels, 0, device=target)
        model.factor_ = Factor(
            hierarchy.to(target),
            mean=[tensors[f"{name}.mean"] for name in names],
            cross=[no_cross, *(tensors[f"{name}.cross"] for name in names[1:])],
            own=[tensors[f"{name}.own"] for name in names],
        )
        model.channels_, model.n_images_ = channels, document.n_images
        model._shapes = list(zip(document.n_channels, document.grids, strict=True))
        if model._backbone.shapes(input_size) != model._shapes:
            raise ModelFileError(f"{file.path}: its grids are not those of {record.name}; fit again")
        return model

    def _draw(self, n_total: int) -> NDArray[np.int64]:
        """The channels used, ascending."""
        if self.channels is None:
            return draw_channels(n_total, self.n_features, self.seed)
        channels = np.asarray(self.channels)
        if channels.ndim != 1 or not np.issubdtype(channels.dtype, np.integer):
            raise ParameterError(f"channels must be a list of integers, got shape {channels.shape} of {channels.dtype}")
        return np.sort(channels.astype(np.int64))

    def _fitted(self) -> tuple[Backbone, Factor]:
        if self._backbone is None:
            raise NotFittedError("this PaDiM has learnt nothing yet; call fit(good_images), or flawmap.load(path)")
        return self._backbone, self.factor_

    def _predict(
        self, items: Iterable[ImageSource], on_bad: OnBad | None, batch_size: int | None
    ) -> Iterator[Prediction]:
        input_size = self.preprocessing.input_size
        for batch, distances in self._distances(items, on_bad, batch_size):
            maps = anomaly_maps(distances, input_size).cpu()
            for image, anomaly_map in zip(batch, maps, strict=True):
                _blank_padding(anomaly_map, image.placement.content)
            for image, score, anomaly_map in zip(batch, image_scores(maps).tolist(), maps.numpy(), strict=True):
                yield Prediction(image.path, score, anomaly_map, image.placement)

    def _distances(
        self, items: Iterable[ImageSource], on_bad: OnBad | None, batch_size: int | None
    ) -> Iterator[tuple[list[Loaded], Tensor]]:
        """Batches of images with their patch distances (B, h, w)."""
        backbone, factor = self._fitted()
        loaded = stream(items, self.preprocessing, on_bad=on_bad)
        for batch in _batches(loaded, batch_size or max(1, _batch_size(self.preprocessing.input_size) // 4)):
            yield batch, squared_distances(factor, _embed(backbone, factor.hierarchy, batch)).sqrt_()

    def _document(self) -> Document:
        backbone, preprocessing = self._fitted()[0], self.preprocessing
        return Document(
            detector="padim",
            backbone=BackboneRecord(
                name=backbone.name,
                layers=backbone.layers,
                pretrained=self.pretrained,
                seed=self.seed,
                weights=backbone.weights,
                weights_path=backbone.weights_path,
                sha256=backbone.sha256,
            ),
            preprocessing=PreprocessingRecord(
                resize=preprocessing.resize, crop=preprocessing.crop, aspect=preprocessing.aspect
            ),
            grids=tuple(grid for _, grid in self._shapes),
            n_channels=tuple(n for n, _ in self._shapes),
            channels=tuple(self.channels_.tolist()),
            n_features=self.n_features,
            seed=self.seed,
            regularization=self.regularization,
            n_images=self.n_images_,
            versions={name: version(name) for name in ("flawmap", "numpy", "pillow", "timm", "torch")},
        )


def _batch_size(input_size: Size) -> int:
    return max(1, min(32, BATCH_PIXELS // math.prod(input_size)))


def _batches(images: Iterator[Loaded], size: int) -> Iterator[list[Loaded]]:
    while batch := list(islice(images, size)):
        yield batch


def _embed(backbone: Backbone, hierarchy: Hierarchy, batch: Sequence[Loaded]) -> list[Tensor]:
    """Embeddings of a batch, per level (positions, B, d)."""
    columns = hierarchy.select(backbone.features(np.stack([image.pixels for image in batch])))
    if not all(bool(torch.isfinite(column.sum())) for column in columns):
        raise TrainingSetError(
            f"the backbone's features are not finite for the images from {batch[0].name} on; its weights may be damaged"
        )
    return columns


def _join(parts: Sequence[list[Tensor]]) -> list[Tensor]:
    """Batches of embeddings, per level, as one."""
    return [torch.cat(columns, dim=1) for columns in zip(*parts, strict=True)]


def _blank_padding(anomaly_map: Tensor, content: tuple[int, int, int, int]) -> None:
    """Zero what a letterbox added, in place: no part is there to be judged."""
    top, left, bottom, right = content
    anomaly_map[:top], anomaly_map[bottom:] = 0, 0
    anomaly_map[:, :left], anomaly_map[:, right:] = 0, 0


def _expected_shapes(hierarchy: Hierarchy, layers: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Shapes of a model file's tensors."""
    shapes: dict[str, tuple[int, ...]] = {}
    for level in hierarchy.levels:
        name = layers[level.layer]
        shapes[f"{name}.mean"] = (level.n_positions, level.n_channels)
        shapes[f"{name}.own"] = (level.n_cells, level.n_channels, level.n_channels)
        if level.n_coarser:
            shapes[f"{name}.cross"] = (level.n_cells, level.n_channels, level.n_coarser)
    return shapes


def _matching_backbone(file: ModelFile, weights: str | os.PathLike[str] | None, device: torch.device | str) -> Backbone:
    """The backbone with the very weights the model was fitted with; others would give wrong scores in silence."""
    record = file.document.backbone
    candidates: list[str | os.PathLike[str] | None] = [weights]
    if weights is None and record.weights_path is not None:
        recorded = Path(record.weights_path)
        candidates = [path for path in (recorded, file.path.parent / recorded.name) if path.is_file()] + [None]
    problem = ""
    for candidate in candidates:
        try:
            backbone = load_backbone(
                record.name,
                layers=record.layers,
                pretrained=record.pretrained,
                weights=candidate,
                seed=record.seed,
                device=device,
            )
        except WeightsError as error:
            problem = str(error)
            continue
        if backbone.sha256 == record.sha256:
            return backbone
        problem = f"those found ({backbone.weights or 'random, of another torch version'}) are others"
    raise WeightsError(
        f"{file.path}: was fitted with the {record.name} weights of '{record.weights or 'a random draw'}' (SHA-256 of "
        f"its layers {record.sha256[:12]}...), which are needed again: {problem}. Give that file with --weights PATH, "
        f"put it beside the model, or fit again"
    )
