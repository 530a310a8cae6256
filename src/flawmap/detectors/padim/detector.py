"""PaDiM: one Gaussian per patch position, Mahalanobis distances (Defard et al. 2020, arXiv 2011.08785)."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from flawmap.backbones import DEFAULT_BACKBONE, Backbone, PrecisionChoice, Runtime, load_backbone
from flawmap.datasets import training_images
from flawmap.decision import FALSE_ALARM_RATE, Decision, judge
from flawmap.detectors import passes
from flawmap.detectors.detector import OnBad
from flawmap.detectors.model_backbone import matching_backbone
from flawmap.detectors.padim.file import describe_model, described_hierarchy, pack, unpack
from flawmap.detectors.padim.fit import Fitting, Method, check_parameters
from flawmap.detectors.padim.gaussian import (
    Factor,
    Regularization,
    covariance_at,
    mean_at,
    typical_distance,
)
from flawmap.detectors.padim.reduction import choose_channels, reduced_hierarchy
from flawmap.detectors.padim.scorer import Scorer
from flawmap.detectors.presets import preset_arguments
from flawmap.errors import (
    ModelFileError,
    NotFittedError,
    ParameterError,
)
from flawmap.images import ImageInput, ImageSource, Loaded, Preprocessing, Replay, collect, stream
from flawmap.model_file import FactorDtype, ModelFile
from flawmap.prediction import Prediction, Size
from flawmap.progress import Progress

__all__ = ["PaDiM"]


class PaDiM:
    """Learns one Gaussian per patch position from good images; scores new ones by their Mahalanobis distance.

    Args:
        backbone: a name of `flawmap.backbones.CATALOGUE` or any timm name.
        layers: one to five module names; None for the backbone's usual ones.
        n_features: channels drawn at random (by `seed`) from the concatenated layers; None for all.
        reduction: "random" draws them; "pca" takes that many principal components of all patches instead, which costs
            one more pass, a larger model and, on the mean of the paper's classes, accuracy.
        channels: indices into the concatenated layers, in place of a draw.
        seed: fixes the draw, and the weights where `pretrained` is False.
        regularization: "auto" chooses, by leave-one-out likelihood, what regularises the covariances; "paper" adds 0.01
            to every variance; a number adds that; a pair (a, eps) also shrinks towards what all patches share, by a.
        pretrained: False for random weights.
        weights: a weights file, or `hf-hub:REPO`; None to look on this machine.
        resize: the whole image is resized to this size, an int or (height, width).
        crop: centre crop after that, an int or (height, width); what it cuts off is not inspected.
        aspect: "squash" fills `resize`; "letterbox" keeps the proportions and pads.
        device: "auto" takes a GPU where there is one.
        runtime: "torch", or "openvino" on the CPU; "auto" takes torch on a GPU, else OpenVINO from the 33rd image on.
        precision: "float32", whose scores are the same on every machine; "bfloat16": twice as fast where the processor
            has it, with slightly other scores; "auto": bfloat16 there alone. The model keeps to what it was fitted in.
        calibrate: "leave-one-out" makes `fit` score every good image by the model without it, for a threshold that
            keeps its promise; "holdout" learns from three quarters and scores the rest; None leaves scores without a
            decision.
        false_alarm_rate: share of good images that may be flagged.
        groups: what belongs together and would vouch for each other, such as augmented copies or frames of a clip: a
            regular expression on the path, whose first group (or match) names the image's; "folder"; or a function of
            the path. None: every image stands alone.
        cache_mb: memory for images and their embeddings between the two passes of a calibrated fit; those beyond it
            are read and computed again.
        workers: threads that read images; None for one per processor, at most eight.

    Attributes after `fit`:
        factor_: the Gaussians. channels_: (d,) indices into the concatenated layers.
        regularization_: what the covariances were regularised by (`flawmap.detectors.padim.gaussian.Regularization`).
        n_images_: number of good images learnt from. shapes_: channels and grid (h, w) of each layer.
        decision_: honest scores of good images, and thresholds (`flawmap.decision.Decision`), or None: not
            calibrated, or fewer than three images.
        outliers_: names of good images that look unlike the others.
        copies_: names of good images that equal an earlier one.
        duplicates_: pairs of names of near-duplicates, that belong in one group. The last three are not saved.
    """

    def __init__(
        self,
        *,
        backbone: str = DEFAULT_BACKBONE,
        layers: Sequence[str] | None = None,
        n_features: int | None = None,
        reduction: Literal["random", "pca"] = "random",
        channels: ArrayLike | None = None,
        seed: int = 0,
        regularization: Literal["auto", "paper"] | float | tuple[float, float] = "auto",
        pretrained: bool = True,
        weights: str | os.PathLike[str] | None = None,
        resize: int | Size = 256,
        crop: int | Size | None = None,
        aspect: Literal["squash", "letterbox"] = "squash",
        device: torch.device | str = "auto",
        runtime: Runtime = "auto",
        precision: PrecisionChoice = "float32",
        calibrate: Method | None = "leave-one-out",
        false_alarm_rate: float = FALSE_ALARM_RATE,
        groups: str | Callable[[str], Hashable] | None = None,
        cache_mb: float = 448,
        workers: int | None = None,
    ) -> None:
        self.backbone = backbone
        self.layers = layers
        self.n_features = n_features
        self.reduction = reduction
        self.channels = channels
        self.seed = seed
        self.regularization = regularization
        self.pretrained = pretrained
        self.weights = weights
        self.resize = resize
        self.crop = crop
        self.aspect = aspect
        self.device = device
        self.runtime = runtime
        self.precision = precision
        self.calibrate = calibrate
        self.false_alarm_rate = false_alarm_rate
        self.groups = groups
        self.cache_mb = cache_mb
        self.workers = workers
        self.decision_: Decision | None = None
        self.outliers_: tuple[str, ...] = ()
        self.copies_: tuple[str, ...] = ()
        self.duplicates_: tuple[tuple[str, str], ...] = ()
        self._backbone: Backbone | None = None
        self._last_scorer: Scorer | None = None
        self._stored: FactorDtype = "float32"

    @classmethod
    def from_preset(cls, preset: str, **changes: Any) -> Self:  # noqa: ANN401 (the arguments of __init__)
        """A detector as the paper configures it; `changes` are further arguments, such as `weights`."""
        return cls(**{**preset_arguments("padim", preset), **changes})

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
        regularization = Regularization.of(self.regularization)
        check_parameters(self.calibrate, self.cache_mb, self.false_alarm_rate, self.seed)
        preprocessing = self.preprocessing
        collection = collect(training_images(images) if isinstance(images, (str, os.PathLike)) else images)
        backbone = load_backbone(
            self.backbone,
            layers=self.layers,
            pretrained=self.pretrained,
            weights=self.weights,
            seed=self.seed,
            device=self.device,
            runtime=self.runtime,
            precision=self.precision,
        )
        shapes = backbone.shapes(preprocessing.input_size)
        n_total = sum(n for n, _ in shapes)
        channels = choose_channels(n_total, self.reduction, self.n_features, self.channels, self.seed)
        items, size = collection.items, batch_size or passes.batch_size(preprocessing.input_size)
        if self.reduction == "pca":
            items = list(items)  # which are gone through once more
        features = self._features(backbone, items, size, on_bad)  # which only principal components look at
        hierarchy = reduced_hierarchy(shapes, channels, self.reduction, self.n_features, features)
        fitting = Fitting(
            backbone,
            hierarchy.to(backbone.device),
            preprocessing.input_size,
            batch_size or passes.batch_size(preprocessing.input_size, hierarchy),
            regularization,
            self.calibrate,
            self.groups,
            self.seed,
        )
        cache_mb = self.cache_mb if self.calibrate else 0
        replay = Replay(items, preprocessing, cache_mb=cache_mb, on_bad=on_bad, workers=self.workers)
        learnt = fitting.run(replay, collection.count, progress)
        self._backbone, self.shapes_, self.channels_ = backbone, shapes, channels
        self.factor_, self.regularization_, self.n_images_ = learnt.factor, learnt.regularization, learnt.count
        self.decision_ = learnt.decision.at_rate(self.false_alarm_rate) if learnt.decision else None
        self.outliers_, self.copies_, self.duplicates_ = learnt.outliers, learnt.copies, learnt.duplicates
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
        scorer = self._scorer()
        maps = [
            scorer.distances(batch).cpu().numpy() for batch in self._batches(collect(images).items, None, batch_size)
        ]
        return np.concatenate(maps) if maps else np.empty((0, *scorer.factor.hierarchy.grid), np.float32)

    def gaussian(self, row: int, column: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean (d,) and regularised covariance (d, d) of a patch of the finest grid, in the order of `channels_`.

        Of a model reduced by principal components, in theirs.
        """
        _, factor = self._fitted()
        height, width = factor.hierarchy.grid
        if not (0 <= row < height and 0 <= column < width):
            raise ParameterError(f"the grid has {height} x {width} patches, got ({row}, {column})")
        position = row * width + column
        return mean_at(factor, position).numpy(), covariance_at(factor, position).numpy()

    @property
    def backbone_(self) -> Backbone:
        """The frozen network, its weights and its normalisation."""
        return self._fitted()[0]

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
        self.decision_ = self._calibrated().changed(
            false_alarm_rate=false_alarm_rate, value=value, pixel_false_alarm_rate=pixel_false_alarm_rate
        )
        return self

    @property
    def map_scale(self) -> tuple[float, float]:
        """Anomaly-map values shown as coolest and hottest, the same for every image: `Decision.map_scale`.

        A model that was not calibrated shows 1.5 to 8 times a typical good patch's distance.
        """
        if self.decision_ is not None:
            return self.decision_.map_scale
        typical = typical_distance(self._fitted()[1], regularization=self.regularization_, count=self.n_images_)
        return 1.5 * typical, 8 * typical

    def describe(self) -> dict[str, object]:
        """What the model is and what it was fitted on, as plain JSON values."""
        return describe_model(self).model_dump(mode="json", exclude={"channels"})

    def save(self, path: str | os.PathLike[str], *, dtype: FactorDtype | None = None) -> None:
        """Write a model file atomically; the same images, parameters and seed give the same bytes.

        `dtype` "float16" or "bfloat16" halves the file, with map values within a hundredth; None keeps that of the file
        the model was loaded from, or else "float32".
        """
        backbone, factor = self._fitted()
        stored = dtype or self._stored
        if stored not in get_args(FactorDtype):
            raise ParameterError(f"dtype must be one of {', '.join(get_args(FactorDtype))}, got {dtype!r}")
        tensors = pack(factor, self.decision_, backbone.layers, stored)
        ModelFile.write(path, describe_model(self, stored), tensors)

    @classmethod
    def from_file(
        cls,
        file: ModelFile,
        *,
        weights: str | os.PathLike[str] | None = None,
        device: torch.device | str = "auto",
        runtime: Runtime = "auto",
    ) -> Self:
        """The model of an opened file; `weights` if the backbone's are not where they were when it was fitted."""
        document, record = file.document, file.document.backbone
        regularization, decided = document.regularization, document.decision
        try:
            model = cls(
                backbone=record.name,
                layers=record.layers,
                n_features=document.n_features,
                channels=None if document.reduction == "pca" else document.channels,
                reduction=document.reduction,
                seed=document.seed,
                regularization="auto"
                if regularization.chosen == "auto"
                else (regularization.sharing, regularization.ridge),
                pretrained=record.pretrained,
                weights=weights,
                resize=document.preprocessing.resize,
                crop=document.preprocessing.crop,
                aspect=document.preprocessing.aspect,
                device=device,
                runtime=runtime,
                precision=record.precision,
                calibrate=decided.method if decided else None,
                false_alarm_rate=(decided.false_alarm_rate if decided else None) or FALSE_ALARM_RATE,
            )
            hierarchy = described_hierarchy(document, model.preprocessing.input_size)
        except ParameterError as error:
            raise ModelFileError(
                f"{file.path}: no whole flawmap model file: {error}; fit again or take a backup"
            ) from error
        model._backbone = matching_backbone(file, weights, device, runtime)
        model.factor_, model.decision_ = unpack(file, hierarchy, model._backbone.device)
        model.regularization_ = Regularization(regularization.ridge, regularization.sharing)
        model._stored = document.factor_dtype
        model.channels_, model.n_images_ = np.array(document.channels, np.int64), document.n_images
        model.shapes_ = list(zip(document.n_channels, document.grids, strict=True))
        if model._backbone.shapes(model.preprocessing.input_size) != model.shapes_:
            raise ModelFileError(f"{file.path}: its grids are not those of {record.name}; fit again")
        return model

    def _features(
        self, backbone: Backbone, items: Iterable[ImageSource], batch_size: int, on_bad: OnBad | None
    ) -> Iterator[list[Tensor]]:
        """Feature maps of all images, for what is learnt before the Gaussians."""
        quietly = on_bad and (lambda _: None)  # the next pass tells of them
        loaded = stream(items, self.preprocessing, on_bad=quietly, workers=self.workers)
        return (backbone.features(passes.pixels_of(batch)) for batch in passes.batches(loaded, batch_size))

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
        scorer = self._scorer()
        for batch in self._batches(items, on_bad, batch_size):
            maps, scores = scorer(batch)
            yield from judge(batch, maps.numpy(), scores.numpy(), self.decision_)

    def _batches(
        self, items: Iterable[ImageSource], on_bad: OnBad | None, batch_size: int | None
    ) -> Iterator[list[Loaded]]:
        loaded = stream(items, self.preprocessing, on_bad=on_bad, workers=self.workers)
        return passes.batches(loaded, batch_size or max(1, passes.batch_size(self.preprocessing.input_size) // 4))

    def _scorer(self) -> Scorer:
        """What makes maps, the same as long as the model is."""
        backbone, factor = self._fitted()
        if self._last_scorer is None or self._last_scorer.factor is not factor:
            self._last_scorer = Scorer(backbone, factor, self.preprocessing.input_size)
        return self._last_scorer
