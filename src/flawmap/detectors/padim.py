"""PaDiM: one Gaussian per patch position, Mahalanobis distances (Defard et al. 2020, arXiv 2011.08785)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from flawmap.backbones import DEFAULT_BACKBONE, Backbone, load_backbone
from flawmap.decision import FALSE_ALARM_RATE, PIXEL_RATES, Decision
from flawmap.detectors import passes
from flawmap.detectors.detector import OnBad
from flawmap.detectors.model_backbone import matching_backbone
from flawmap.detectors.padim_file import described_hierarchy, pack, unpack
from flawmap.detectors.presets import PRESETS
from flawmap.embedding import build_hierarchy, draw_channels
from flawmap.errors import (
    ModelFileError,
    NotFittedError,
    ParameterError,
)
from flawmap.gaussian import (
    MIN_IMAGES,
    Factor,
    covariance_at,
    factorise,
    mean_at,
    squared_distances,
    typical_distance,
)
from flawmap.images import ImageInput, ImageSource, Loaded, Preprocessing, Replay, collect, stream, training_images
from flawmap.model_file import BackboneRecord, DecisionRecord, Document, ModelFile, PreprocessingRecord
from flawmap.progress import Progress, report_progress
from flawmap.records import Prediction, Size

__all__ = ["PaDiM"]


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
        calibrate: "leave-one-out" makes `fit` score every good image by the model without it, for a threshold that
            keeps its promise; None leaves scores without a decision.
        false_alarm_rate: share of good images that may be flagged.
        cache_mb: memory for images between the two passes of a calibrated fit; those beyond it are read again.

    Attributes after `fit`:
        factor_: the Gaussians (`flawmap.gaussian.Factor`). channels_: (d,) indices into the concatenated layers.
        n_images_: number of good images learnt from.
        decision_: leave-one-out scores and thresholds (`flawmap.decision.Decision`), or None: not calibrated, or
            fewer than three images.
        outliers_: names of good images that look unlike the others; not kept in the model file.
        copies_: names of good images that equal an earlier one, which makes the promise too optimistic; not kept.
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
        calibrate: Literal["leave-one-out"] | None = "leave-one-out",
        false_alarm_rate: float = FALSE_ALARM_RATE,
        cache_mb: float = 64,
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
        self.calibrate = calibrate
        self.false_alarm_rate = false_alarm_rate
        self.cache_mb = cache_mb
        self.decision_: Decision | None = None
        self.outliers_: tuple[str, ...] = ()
        self.copies_: tuple[str, ...] = ()
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
        """Learn from good images, streaming: one pass for the Gaussians, one for the threshold; constant memory.

        Args:
            images: path, folder, glob, iterable, RGB uint8 array (H, W, 3) or batch of them, PIL image. Of a data set's
                folder only train/good is learnt.
            progress: True for a progress bar, or a function of (done, total) of each pass.
            on_bad: is told of each image that cannot be read, which is then left out; None raises ImageError.
            batch_size: images per step; None to choose by the input size.
        """
        self._check_parameters()
        preprocessing = self.preprocessing
        collection = collect(training_images(images) if isinstance(images, (str, os.PathLike)) else images)
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
        size = batch_size or passes.batch_size(preprocessing.input_size)
        replay = Replay(collection.items, preprocessing, cache_mb=self.cache_mb if self.calibrate else 0, on_bad=on_bad)
        with report_progress(progress, "Learning", collection.count) as advance:
            moments = passes.learn(backbone, hierarchy, passes.batches(replay.first(), size), advance)
        factor, count = factorise(moments, regularization=self.regularization), moments.count
        del moments
        decision: Decision | None = None
        names: list[str] = []
        if self.calibrate and count >= MIN_IMAGES:
            with report_progress(progress, "Calibrating", replay.n_again) as advance:
                batches = passes.batches(replay.second(), size)
                names, scores, pixels = passes.leave_out(
                    backbone, factor, batches, preprocessing.input_size, count, advance
                )
            decision = Decision(scores, pixels.exceeded_by(PIXEL_RATES)).at_rate(self.false_alarm_rate)
        self._backbone, self.factor_, self.channels_, self.n_images_ = backbone, factor, channels, count
        self._shapes, self.decision_ = shapes, decision
        self.copies_ = tuple(replay.copies)
        self.outliers_ = tuple(names[i] for i in decision.outliers()) if decision else ()
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
    def leave_one_out_scores_(self) -> NDArray[np.float32]:
        """Score (N,) of each good image by the model without it, in training order."""
        return self._calibrated().scores

    @property
    def threshold_(self) -> float:
        """Image scores above it are labelled anomalous."""
        return self._calibrated().threshold

    def set_threshold(
        self,
        *,
        false_alarm_rate: float | None = None,
        value: float | None = None,
        pixel_false_alarm_rate: float | None = None,
    ) -> Self:
        """Decide otherwise, without fitting again: by a promised rate, or by a score, for which nothing is promised."""
        decision = self._calibrated()
        if false_alarm_rate is not None and value is not None:
            raise ParameterError("give either false_alarm_rate or value")
        if false_alarm_rate is not None:
            decision = decision.at_rate(false_alarm_rate)
        if value is not None:
            decision = decision.at_value(value)
        if pixel_false_alarm_rate is not None:
            decision = decision.at_pixel_rate(pixel_false_alarm_rate)
        self.decision_ = decision
        return self

    @property
    def map_scale(self) -> tuple[float, float]:
        """Anomaly-map values shown as coolest and hottest, the same for every image.

        The threshold is in the middle, the median score of good images is coolest; a model that was not calibrated
        shows 1.5 to 8 times a typical good patch's distance.
        """
        if self.decision_ is not None:
            typical = min(float(np.median(self.decision_.scores)), 0.9 * self.decision_.threshold)
            return typical, 2 * self.decision_.threshold - typical
        typical = typical_distance(self._fitted()[1], regularization=self.regularization, count=self.n_images_)
        return 1.5 * typical, 8 * typical

    def describe(self) -> dict[str, object]:
        """What the model is and what it was fitted on, as plain JSON values."""
        return self._document().model_dump(mode="json", exclude={"channels"})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a model file atomically; the same images, parameters and seed give the same bytes."""
        backbone, factor = self._fitted()
        ModelFile.write(path, self._document(), pack(factor, self.decision_, backbone.layers))

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
            hierarchy = described_hierarchy(document, model.preprocessing.input_size)
        except ParameterError as error:
            raise ModelFileError(
                f"{file.path}: no whole flawmap model file: {error}; fit again or take a backup"
            ) from error
        model._backbone = matching_backbone(file, weights, device)
        model.factor_, model.decision_ = unpack(file, hierarchy, model._backbone.device)
        model.channels_, model.n_images_ = np.array(document.channels, np.int64), document.n_images
        model._shapes = list(zip(document.n_channels, document.grids, strict=True))
        if model._backbone.shapes(model.preprocessing.input_size) != model._shapes:
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

    def _check_parameters(self) -> None:
        if not (math.isfinite(self.regularization) and self.regularization >= 0):
            raise ParameterError(f"regularization must be a finite number >= 0, got {self.regularization}")
        if self.calibrate not in ("leave-one-out", None):
            raise ParameterError(f"calibrate must be 'leave-one-out' or None, got {self.calibrate!r}")
        if not (math.isfinite(self.cache_mb) and self.cache_mb >= 0):
            raise ParameterError(f"cache_mb must be a finite number >= 0, got {self.cache_mb}")
        if not 0 < self.false_alarm_rate < 1:
            raise ParameterError(f"false_alarm_rate must lie between 0 and 1, got {self.false_alarm_rate}")

    def _calibrated(self) -> Decision:
        self._fitted()
        if self.decision_ is None:
            raise NotFittedError(
                "this PaDiM was not calibrated: fit it with calibrate='leave-one-out' on at least 3 good images"
            )
        return self.decision_

    def _fitted(self) -> tuple[Backbone, Factor]:
        if self._backbone is None:
            raise NotFittedError("this PaDiM has learnt nothing yet; call fit(good_images), or flawmap.load(path)")
        return self._backbone, self.factor_

    def _predict(
        self, items: Iterable[ImageSource], on_bad: OnBad | None, batch_size: int | None
    ) -> Iterator[Prediction]:
        input_size = self.preprocessing.input_size
        for batch, distances in self._distances(items, on_bad, batch_size):
            maps, scores = passes.map_batch(batch, distances, input_size)
            for image, score, anomaly_map in zip(batch, scores.tolist(), maps.numpy(), strict=True):
                prediction = Prediction(image.path, score, anomaly_map, image.placement)
                yield prediction if self.decision_ is None else self.decision_.judge(prediction)

    def _distances(
        self, items: Iterable[ImageSource], on_bad: OnBad | None, batch_size: int | None
    ) -> Iterator[tuple[list[Loaded], Tensor]]:
        """Batches of images with their patch distances (B, h, w)."""
        backbone, factor = self._fitted()
        loaded = stream(items, self.preprocessing, on_bad=on_bad)
        size = batch_size or max(1, passes.batch_size(self.preprocessing.input_size) // 4)
        for batch in passes.batches(loaded, size):
            yield batch, squared_distances(factor, passes.embed(backbone, factor.hierarchy, batch)).sqrt_()

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
            decision=None
            if self.decision_ is None
            else DecisionRecord(
                n_scores=len(self.decision_.scores),
                threshold=self.decision_.threshold,
                false_alarm_rate=self.decision_.false_alarm_rate,
                pixel_false_alarm_rate=self.decision_.pixel_false_alarm_rate,
            ),
            versions={name: version(name) for name in ("flawmap", "numpy", "pillow", "timm", "torch")},
        )
