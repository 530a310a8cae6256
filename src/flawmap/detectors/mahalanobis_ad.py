"""MahalanobisAD: one Gaussian over whole images per level of a network (Rippel et al. 2020, arXiv 2005.14140)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray

from flawmap.backbones import DEFAULT_BACKBONE, Backbone, Runtime, feature_levels, load_backbone
from flawmap.datasets import training_images
from flawmap.decision import FALSE_ALARM_RATE, Decision, judge
from flawmap.detectors import passes
from flawmap.detectors.decision_file import decision_record, decision_shapes, decision_tensors, restore_decision
from flawmap.detectors.detector import OnBad, check_calibration, check_seed
from flawmap.detectors.model_backbone import (
    backbone_record,
    library_versions,
    matching_backbone,
    preprocessing_record,
)
from flawmap.detectors.padim.gaussian import MIN_IMAGES
from flawmap.detectors.pooled_gaussian import PooledGaussian, learn_pooled
from flawmap.detectors.presets import preset_arguments
from flawmap.errors import ModelFileError, NotFittedError, ParameterError, TrainingSetError
from flawmap.images import ImageInput, ImageSource, Loaded, Preprocessing, Replay, collect, stream
from flawmap.model_file import MahalanobisADDocument, ModelFile
from flawmap.prediction import Prediction, Size
from flawmap.progress import Progress, report_progress

__all__ = ["MahalanobisAD"]

MAX_LAYERS = 64


class MahalanobisAD:
    """Learns one Gaussian per level of a network from good images; scores whole images by their Mahalanobis distances.

    It says whether an image is anomalous and not where: its predictions have no anomaly map, mask or regions. The
    pooled features of all good images are kept while it learns: 12 KB an image for EfficientNet-B4.

    Args:
        backbone: a name of `flawmap.backbones.CATALOGUE` or any timm name.
        layers: levels that are pooled; None for all: of an EfficientNet its stem, its stages and its head.
        seed: fixes the weights where `pretrained` is False.
        pretrained: False for random weights.
        weights: a weights file, or `hf-hub:REPO`; None to look on this machine.
        resize: the whole image is resized to this size, an int or (height, width).
        crop: centre crop after that, an int or (height, width); what it cuts off is not inspected.
        aspect: "squash" fills `resize`; "letterbox" keeps the proportions and pads.
        device: "auto" takes a GPU where there is one.
        runtime: of the backbone: "torch", or "openvino" on the CPU; "auto" as in `PaDiM`.
        calibrate: "leave-one-out" scores every good image by the model without it, exactly and without a second pass;
            None leaves scores without a decision.
        false_alarm_rate: share of good images that may be flagged.
        workers: threads that read images; None for one per processor, at most eight.

    Attributes after `fit`:
        gaussians_: the Gaussian of each level (`flawmap.detectors.padim.gaussian.PooledGaussian`).
        n_images_: number of good images learnt from.
        decision_: leave-one-out scores and threshold (`flawmap.decision.Decision`), or None: not calibrated, or fewer
            than three images.
        outliers_: names of good images that look unlike the others; not kept in the model file.
        copies_: names of good images that equal an earlier one, which makes the promise too optimistic; not kept.
    """

    def __init__(
        self,
        *,
        backbone: str = DEFAULT_BACKBONE,
        layers: Sequence[str] | None = None,
        seed: int = 0,
        pretrained: bool = True,
        weights: str | os.PathLike[str] | None = None,
        resize: int | Size = 256,
        crop: int | Size | None = None,
        aspect: Literal["squash", "letterbox"] = "squash",
        device: torch.device | str = "auto",
        runtime: Runtime = "auto",
        calibrate: Literal["leave-one-out"] | None = "leave-one-out",
        false_alarm_rate: float = FALSE_ALARM_RATE,
        workers: int | None = None,
    ) -> None:
        self.backbone = backbone
        self.layers = layers
        self.seed = seed
        self.pretrained = pretrained
        self.weights = weights
        self.resize = resize
        self.crop = crop
        self.aspect = aspect
        self.device = device
        self.runtime = runtime
        self.calibrate = calibrate
        self.false_alarm_rate = false_alarm_rate
        self.workers = workers
        self.decision_: Decision | None = None
        self.outliers_: tuple[str, ...] = ()
        self.copies_: tuple[str, ...] = ()
        self._backbone: Backbone | None = None

    @classmethod
    def from_preset(cls, preset: str, **changes: Any) -> Self:  # noqa: ANN401 (the arguments of __init__)
        """A detector as the paper configures it; `changes` are further arguments, such as `weights`."""
        return cls(**{**preset_arguments("mahalanobis-ad", preset), **changes})

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
        """Learn from good images in one pass; the arguments are those of `PaDiM.fit`.

        Raises TrainingSetError for fewer than two images, and if all look alike.
        """
        check_calibration(self.calibrate, ("leave-one-out", None), self.false_alarm_rate)
        check_seed(self.seed)
        preprocessing = self.preprocessing
        collection = collect(training_images(images) if isinstance(images, (str, os.PathLike)) else images)
        backbone = load_backbone(
            self.backbone,
            layers=feature_levels(self.backbone) if self.layers is None else self.layers,
            pretrained=self.pretrained,
            weights=self.weights,
            seed=self.seed,
            device=self.device,
            runtime=self.runtime,
            most_layers=MAX_LAYERS,
        )
        shapes = backbone.shapes(preprocessing.input_size)
        replay = Replay(collection.items, preprocessing, cache_mb=0, on_bad=on_bad, workers=self.workers)
        names: list[str] = []
        parts: list[list[NDArray[np.float32]]] = []
        with report_progress(progress, "Learning", collection.count) as advance:
            for batch in passes.batches(replay.first(), batch_size or passes.batch_size(preprocessing.input_size)):
                parts.append(passes.pool(backbone, batch))
                names += [image.name for image in batch]
                advance(len(batch))
        if len(names) < 2:
            raise TrainingSetError(
                f"MahalanobisAD learns a spread and needs at least 2 good images, got {len(names)} usable; "
                f"a few dozen are a good start"
            )
        learnt = [learn_pooled(np.concatenate(level)) for level in zip(*parts, strict=True)]
        decision: Decision | None = None
        if self.calibrate and len(names) >= MIN_IMAGES:
            scores = np.sum([left_out for _, left_out in learnt], axis=0).astype(np.float32)
            decision = Decision(scores, np.zeros(0, np.float32)).at_rate(self.false_alarm_rate)
        self._backbone, self.gaussians_, self.n_images_ = backbone, [gaussian for gaussian, _ in learnt], len(names)
        self._shapes, self.decision_ = shapes, decision
        self.copies_ = tuple(names[later] for _, later in replay.copies)
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

    def distances(self, images: ImageInput, *, batch_size: int | None = None) -> NDArray[np.float64]:
        """Mahalanobis distances (N, levels), the sum of which is an image's score."""
        parts = [levels for _, levels in self._distances(collect(images).items, None, batch_size)]
        return np.concatenate(parts) if parts else np.empty((0, len(self.gaussians_)))

    @property
    def backbone_(self) -> Backbone:
        """The frozen network."""
        return self._fitted()

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
        """Decide otherwise, without fitting again; ParameterError for a rate of pixels, which it does not judge."""
        self.decision_ = self._calibrated().changed(
            false_alarm_rate=false_alarm_rate, value=value, pixel_false_alarm_rate=pixel_false_alarm_rate
        )
        return self

    @property
    def map_scale(self) -> None:
        """None: there are no maps to be shown."""
        return None

    def describe(self) -> dict[str, object]:
        """What the model is and what it was fitted on, as plain JSON values."""
        return self._document().model_dump(mode="json")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a model file atomically; the same images, parameters and seed give the same bytes."""
        tensors = {}
        for layer, gaussian in zip(self._fitted().layers, self.gaussians_, strict=True):
            tensors[f"{layer}.mean"] = torch.from_numpy(gaussian.mean)
            tensors[f"{layer}.whitening"] = torch.from_numpy(gaussian.whitening)
        ModelFile.write(path, self._document(), tensors | decision_tensors(self.decision_))

    @classmethod
    def from_file(
        cls,
        file: ModelFile[MahalanobisADDocument],
        *,
        weights: str | os.PathLike[str] | None = None,
        device: torch.device | str = "auto",
        runtime: Runtime = "auto",
    ) -> Self:
        """The model of an opened file; `weights` if the backbone's are not where they were when it was fitted."""
        document, record = file.document, file.document.backbone
        model = cls(
            backbone=record.name,
            layers=record.layers,
            seed=document.seed,
            pretrained=record.pretrained,
            weights=weights,
            resize=document.preprocessing.resize,
            crop=document.preprocessing.crop,
            aspect=document.preprocessing.aspect,
            device=device,
            runtime=runtime,
        )
        try:
            input_size = model.preprocessing.input_size
            if not len(document.n_channels) == len(document.grids) == len(document.shrinkage) == len(record.layers):
                raise ParameterError("layers, channel counts and shrinkages differ in number")
        except ParameterError as error:
            raise ModelFileError(
                f"{file.path}: no whole flawmap model file: {error}; fit again or take a backup"
            ) from error
        expected = decision_shapes(document.decision, localises=False)
        for layer, n in zip(record.layers, document.n_channels, strict=True):
            expected |= {f"{layer}.mean": (n,), f"{layer}.whitening": (n, n)}
        tensors = file.read(expected, torch.device("cpu"))
        model._backbone = matching_backbone(file, weights, device, runtime)
        model._shapes = model._backbone.shapes(input_size)
        if model._shapes != list(zip(document.n_channels, document.grids, strict=True)):
            raise ModelFileError(f"{file.path}: its grids are not those of {record.name}; fit again")
        model.gaussians_ = [
            PooledGaussian(tensors[f"{layer}.mean"].numpy(), tensors[f"{layer}.whitening"].numpy(), shrinkage)
            for layer, shrinkage in zip(record.layers, document.shrinkage, strict=True)
        ]
        model.n_images_ = document.n_images
        model.decision_ = restore_decision(file, tensors)
        return model

    def _calibrated(self) -> Decision:
        self._fitted()
        if self.decision_ is None:
            raise NotFittedError(
                "this MahalanobisAD was not calibrated: fit it with calibrate='leave-one-out' on at least 3 good images"
            )
        return self.decision_

    def _fitted(self) -> Backbone:
        if self._backbone is None:
            raise NotFittedError(
                "this MahalanobisAD has learnt nothing yet; call fit(good_images), or flawmap.load(path)"
            )
        return self._backbone

    def _predict(
        self, items: Iterable[ImageSource], on_bad: OnBad | None, batch_size: int | None
    ) -> Iterator[Prediction]:
        for batch, distances in self._distances(items, on_bad, batch_size):
            yield from judge(batch, None, distances.sum(axis=1), self.decision_)

    def _distances(
        self, items: Iterable[ImageSource], on_bad: OnBad | None, batch_size: int | None
    ) -> Iterator[tuple[list[Loaded], NDArray[np.float64]]]:
        """Batches of images with their distances (B, levels)."""
        backbone = self._fitted()
        size = batch_size or max(1, passes.batch_size(self.preprocessing.input_size) // 4)
        loaded = stream(items, self.preprocessing, on_bad=on_bad, workers=self.workers)
        for batch in passes.batches(loaded, size):
            levels = passes.pool(backbone, batch)
            columns = [gaussian.distances(vectors) for gaussian, vectors in zip(self.gaussians_, levels, strict=True)]
            yield batch, np.stack(columns, axis=1)

    def _document(self) -> MahalanobisADDocument:
        backbone = self._fitted()
        return MahalanobisADDocument(
            detector="mahalanobis-ad",
            backbone=backbone_record(backbone, pretrained=self.pretrained, seed=self.seed),
            preprocessing=preprocessing_record(self.preprocessing),
            grids=tuple(grid for _, grid in self._shapes),
            n_channels=tuple(n for n, _ in self._shapes),
            shrinkage=tuple(gaussian.shrinkage for gaussian in self.gaussians_),
            seed=self.seed,
            n_images=self.n_images_,
            decision=decision_record(self.decision_, "leave-one-out"),
            versions=library_versions("scikit-learn"),
        )
