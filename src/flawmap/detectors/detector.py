"""What all detectors share: parameters, fit, predictions, thresholds, model files."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, ClassVar, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flawmap.backbones import NETWORKS, Policy, pick_device, plain_torch, size_step
from flawmap.datasets import Dataset
from flawmap.decision import Decision, GoodPhotos, changed, judge, label_batch
from flawmap.detectors.batches import Batch, batch_of_one, batch_size, in_batches
from flawmap.detectors.calibration import HeldOutScores, conclude
from flawmap.detectors.canvas import canvas_size
from flawmap.detectors.document import (
    BackboneRecord,
    DecisionRecord,
    Document,
    ImagesRecord,
    Stored,
    decision_tensors,
    describe_document,
    library_versions,
    restore_decision,
)
from flawmap.detectors.good_images import GoodImages, GoodSources
from flawmap.detectors.parameters import SharedParameters, check
from flawmap.errors import ImageError, ModelFileError, NotFittedError, ParameterError, TrainingSetError
from flawmap.images import ImageCollection, ImageInput, Preprocessing, collect, load_image, stream
from flawmap.images.alignment import AlignedPreprocessing, Aligner
from flawmap.model_file import ModelFile, Streamed, damaged, write_model_file
from flawmap.options import MIN_IMAGES, Calibration, FactorDtype, Fdr, GraphDtype, OnBad
from flawmap.prediction import Prediction, Size
from flawmap.progress import Progress


class Detector(SharedParameters, ABC):
    """Learns from good images alone, then scores new ones; higher means more anomalous.

    A detector is a class with a `name`, and its parameters as annotated attributes. It writes what it learns
    (`_learn`), how it scores (`network`, or `_score`), and what a model file keeps (`_tensors`, `_learnt`, `_unpack`).
    The rest is here.

    Attributes after `fit`:
        n_images_: number of good images it learnt from.
        decision_: held-out scores of good images, and thresholds (`flawmap.decision.Decision`), or None: not
            calibrated, or fewer than three images.
        outliers_: names of good images that look unlike the others.
        copies_, duplicates_: names of copies, pairs of names of near-duplicates, among images of different groups.
        groups_: names of the images of each group that was found.
        remarks_: what is unusual about good images, in words, and the names of those. The last five are not saved.
        aligner_: brings the part of every image to the same place; None where nothing is aligned.
        resize_: (height, width) of the canvas, where `resize` is a rule such as "long:768"; else None.
        top_share_: part of an anomaly map whose mean is the image's score; 0 for its highest value.
        good_photos_: sizes and depth of the good images, with which later ones are compared; None in older files.

    Example:
        >>> from flawmap import PaDiM
        >>> isinstance(PaDiM.from_preset("padim-r18-rd100", seed=3), Detector)
        True
    """

    name: ClassVar[str]
    localises: ClassVar[bool] = True
    """Whether it makes anomaly maps."""
    reads_whole: ClassVar[bool] = False
    """Whether `fit` gets images before their crop."""
    factor_dtypes: ClassVar[tuple[FactorDtype, ...]] = ()
    """Numbers in which `save` can store factors, where there is a choice."""
    graph_dtypes: ClassVar[tuple[GraphDtype, ...]] = get_args(GraphDtype)
    """Numbers in which a graph of it can store constants."""
    libraries: ClassVar[tuple[str, ...]] = ()
    """Further packages whose versions a model file names."""
    calibrations: ClassVar[tuple[Calibration, ...]] = ("leave-one-out",)
    """Ways in which good images can get held-out scores."""

    def __init__(self, **parameters: Any) -> None:  # noqa: ANN401 (typed by the class's annotations)
        super().__init__(**parameters)
        self.n_images_, self.top_share_ = 0, 0.0
        self.decision_: Decision | None = None
        self.outliers_, self.copies_ = tuple[str, ...](), tuple[str, ...]()
        self.duplicates_: tuple[tuple[str, str], ...] = ()
        self.groups_: tuple[tuple[str, ...], ...] = ()
        self.remarks_: dict[str, tuple[str, ...]] = {}
        self.good_photos_: GoodPhotos | None = None
        self.aligner_: Aligner | None = None
        self.resize_: Size | None = None
        self._images: ImagesRecord | None = None
        self._input: Preprocessing | None = None
        self._fitted: dict[str, Any] = {}
        self._digests: frozenset[bytes] = frozenset()
        self._network: nn.Module | None = None
        self._stored_dtype: FactorDtype = "float32"

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image becomes the model's input; ParameterError for a rule of `resize` before it met photos."""
        plain = Preprocessing.of(self.resize_ or self.resize, self.crop, self.aspect, self.bits)
        return plain if self.aligner_ is None else AlignedPreprocessing.of_aligner(plain, self.aligner_)

    @plain_torch()
    def fit(
        self,
        images: ImageInput | Dataset,
        *,
        progress: Progress = False,
        on_bad: OnBad | None = None,
        batch_size: int | None = None,
    ) -> Self:
        """Learn from good images, then calibrate the threshold.

        Args:
            images: path, folder, glob, iterable, RGB uint8 array (H, W, 3) or batch of them, PIL image, `Dataset`. Of a
                data set only its training images are learnt; its clips are groups.
            progress: True for a progress bar, or a function of (done, total) of each pass.
            on_bad: called with each image that cannot be read, which is then left out; None raises ImageError.
            batch_size: images per step; None to choose by the input size.

        Raises ParameterError for a parameter it cannot use, TrainingSetError for images it cannot learn from.
        """
        self.resize_, self.aligner_ = None, None
        if not isinstance(self.resize, str):
            self._check()
        sources = GoodSources.find(images)
        if isinstance(self.resize, str):
            step = size_step(getattr(self, "backbone", None))
            self.resize_ = canvas_size(self.resize, sources.first, step=step, on_bad=on_bad, workers=self.workers)
            self._check()
        good = GoodImages(
            sources,
            self.preprocessing,
            groups=getattr(self, "groups", None),
            hold_out=self.seed if self.calibrate == "holdout" else None,
            cache_mb=self._image_cache(),
            whole=self.reads_whole,
            batch_size=batch_size,
            on_bad=on_bad,
            workers=self.workers,
            progress=progress,
        )
        held_out = self._learn(good)
        if len(good.learnt) < 2:
            raise TrainingSetError(f"{self.name} learns from at least 2 good images, got {len(good.learnt)} usable")
        self.n_images_, self.copies_, self.groups_ = len(good.learnt), good.copies(), good.found()
        alone = self.name if self.calibrate and not hasattr(self, "groups") else None
        self._stored_dtype, self._images, self.remarks_ = "float32", ImagesRecord.of(good), good.remarks(alone)
        found = conclude(held_out, good.names, self.false_alarm_rate, lost=good.lost)
        self.decision_, self.outliers_, self.duplicates_ = found
        self._prepare()
        return self

    def predict(
        self, images: ImageInput, *, on_bad: OnBad | None = None, batch_size: int | None = None, fdr: Fdr = None
    ) -> Prediction | list[Prediction]:
        """Score one image (a Prediction, or an ImageError) or many (a list in input order).

        Args:
            images: as for `fit`.
            on_bad: called with each image that cannot be read. Of many images it is then left out; None raises
                ImageError.
            batch_size: images per step; None to choose.
            fdr: label the images by this false-discovery rate (`flawmap.decision.discover`), not by the threshold.
        """
        self._check_fitted()
        try:
            collection = collect(images)
            if collection.single and self._input is not None:
                image = load_image(1, next(iter(collection.items)), self._input, learnt=self._digests)
                [one] = self._judge(batch_of_one(image, batch_size))
                return one if fdr is None else next(label_batch([one], fdr))
        except ImageError as error:
            if on_bad is not None:
                on_bad(error)
            raise
        predictions = self._predict(collection, on_bad, batch_size)
        return list(predictions if fdr is None else label_batch(predictions, fdr))

    def iter_predict(
        self, images: ImageInput, *, on_bad: OnBad | None = None, batch_size: int | None = None, fdr: Fdr = None
    ) -> Iterator[Prediction]:
        """Score images one after the other, in input order, in bounded memory; arguments as in `predict`.

        Each image of an iterator, such as a camera, is scored before the next one is asked for. With `fdr` all are
        scored, and kept in memory with their maps, before the first is given.
        """
        self._check_fitted()
        collection = collect(images)
        live = collection.count is None
        found = self._predict(collection, on_bad, 1 if live and batch_size is None else batch_size, live=live)
        return found if fdr is None else label_batch(found, fdr)

    @property
    def leave_one_out_scores_(self) -> NDArray[np.float32]:
        """Held-out score (N,) of each good image, in the training order."""
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
        certify: float | None = None,
        pixel_false_alarm_rate: float | None = None,
    ) -> Self:
        """Decide by another rate, by one that holds with a confidence (`certify`), or by a score without a guarantee.

        The model is not fitted again. Arguments as of `flawmap.decision.changed`.
        """
        given = {"value": value, "certify": certify, "pixel_false_alarm_rate": pixel_false_alarm_rate}
        self.decision_ = changed(self._calibrated(), false_alarm_rate=false_alarm_rate, **given)
        return self

    @property
    def map_scale(self) -> tuple[float, float] | None:
        """Map values that pictures show as coolest and hottest, the same for every image; None without maps."""
        if not self.localises:
            return None
        return self._usual_scale() if self.decision_ is None else self.decision_.map_scale

    def describe(self) -> dict[str, Any]:
        """What the model is and what it was fitted on, as plain JSON values."""
        self._check_fitted()
        return describe_document(self._document(self._stored_dtype), self.decision_)

    def save(self, path: str | os.PathLike[str], *, dtype: FactorDtype | None = None) -> None:
        """Write a model file atomically; the same images, parameters and seed give the same bytes.

        `dtype` "float16" or "bfloat16" halves the factors of a detector that has them (`factor_dtypes`).
        """
        self._check_fitted()
        if "name" not in vars(type(self)):
            raise ParameterError(f"{type(self).__name__} has no `name` of its own; its file would load as {self.name}")
        if dtype is not None and dtype not in self.factor_dtypes:
            choices = ", ".join(self.factor_dtypes) or "not given"
            raise ParameterError(f"dtype of {self.name} must be {choices}, got {dtype!r}")
        stored = dtype or self._stored_dtype
        tensors = {**self._tensors(stored), **decision_tensors(self.decision_)}
        write_model_file(path, self._document(stored).model_dump(mode="json"), tensors)

    @classmethod
    @plain_torch()
    def from_document(cls, file: ModelFile, document: Document, **settings: Any) -> Self:  # noqa: ANN401
        """The model of an opened file; `settings` are parameters of this machine. Raises ModelFileError."""
        known = {name: value for name, value in settings.items() if name in cls.parameters_type.model_fields}
        check(cls.__name__, cls.parameters_type, known)
        device = pick_device(known.get("device", "auto"))
        if "runtime" in known:  # one that this device does not have is no damage of the file
            Policy.choose(device, known["runtime"], "float32", n_images=document.n_images)
        try:
            model = cls(**{**cls.before, **document.parameters, **known})
            model.resize_ = document.resize
            model._check()
            stored = Stored(file, document, device, cls.localises, {})
            model._restore(stored)
        except ParameterError as error:
            file.check()  # of a damaged file that says more
            raise damaged(file.path, error) from error
        except ModelFileError:
            file.check()
            raise
        file.check()
        model.n_images_, model._images, model._stored_dtype = document.n_images, document.images, document.factor_dtype
        model.decision_ = restore_decision(file.path, document.decision, stored.tensors)
        model._prepare()
        model._make_ready()
        return model

    def network(self, *, for_graph: bool = False) -> nn.Module:  # noqa: ARG002 (for those that have one)
        """Images (B, h, w, 3) uint8, the model's input, to anomaly maps (B, h, w), if there are any, and scores (B,).

        Of a detector that makes maps, a score is that of its map (`top_share_`). `for_graph` asks for a network of its
        own on the CPU, for a graph format. Raises ParameterError for a detector that is no network.
        """
        raise ParameterError(f"{self.name} has no network that a graph format could hold, and cannot be exported")

    @abstractmethod
    def _learn(self, good: GoodImages) -> HeldOutScores | None:
        """Learn from good images; gives their held-out scores, or None without calibration."""

    @abstractmethod
    def _tensors(self, dtype: FactorDtype) -> dict[str, Tensor | Streamed]:
        """The tensors of a model file by their names; factors, where there are any, in `dtype`."""

    @abstractmethod
    def _unpack(self, stored: Stored) -> None:
        """The way back. Raises ModelFileError, or ParameterError for values that contradict each other."""

    def _learnt(self) -> dict[str, Any]:
        """What a model file keeps beside tensors, as plain JSON values."""
        return {}

    def _score(self, batch: Batch) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
        """Anomaly maps (B, h, w), if any, and scores (B,); None for those of the maps."""
        if self._network is None:
            self._network = self.network().eval()
        with NETWORKS, torch.inference_mode():
            outputs: tuple[Tensor, ...] = self._network(torch.from_numpy(batch.pixels).to(pick_device(self.device)))
        *maps, scores = (output.cpu().numpy() for output in outputs)
        return (maps[0], None) if maps else (None, scores)

    def _usual_scale(self) -> tuple[float, float]:
        """`map_scale` of a model that was not calibrated. Raises ParameterError for a detector without one."""
        raise ParameterError(f"{self.name} has no scale for pictures without a threshold; write _usual_scale")

    def _check(self) -> None:
        """Raise ParameterError for parameters that `fit` cannot use, before anything is read."""
        _ = self.parameters, self.preprocessing
        if self.calibrate not in (*self.calibrations, None):
            choices = " or ".join(repr(choice) for choice in (*self.calibrations, None))
            raise ParameterError(f"calibrate must be {choices}, got {self.calibrate!r}")

    def _image_cache(self) -> float:
        """Megabytes of good images that `fit` keeps between its passes."""
        return 0.0

    def _prepare(self) -> None:
        """Make ready to score, after a fit or a load."""
        names = [name for name, field in self.parameters_type.model_fields.items() if not field.exclude]
        self._fitted = {name: getattr(self, name) for name in ("resize_", *names)}
        self._input, self._network = self.preprocessing, None
        self.good_photos_ = None if self._images is None else self._images.photos(self.aspect)
        self._digests = frozenset() if self._images is None else self._images.learnt
        self._step = max(1, batch_size(self._input.input_size) // 4)

    def _make_ready(self) -> None:
        """Do now, when a model is loaded, what its first prediction would wait for."""

    def _restore(self, stored: Stored) -> None:
        self._unpack(stored)

    def _backbone_record(self) -> BackboneRecord | None:
        return None

    def _document(self, dtype: FactorDtype) -> Document:
        return Document(
            detector=self.name,
            parameters=self.parameters.model_dump(mode="json"),
            resize=self.resize_,
            backbone=self._backbone_record(),
            learnt=self._learnt(),
            factor_dtype=dtype,
            n_images=self.n_images_,
            images=self._images,
            decision=None if self.decision_ is None else DecisionRecord.of(self.decision_, self.calibrate),
            versions=library_versions(*self.libraries),
        )

    def _check_fitted(self) -> None:
        """Raise NotFittedError, or ParameterError for a parameter that was changed after the fit."""
        if self._input is None:
            raise NotFittedError(
                f"this {type(self).__name__} has learnt nothing yet; call fit(good_images), or flawmap.load(path)"
            )
        for name, value in self._fitted.items():
            now = getattr(self, name)
            if now is not value and not np.array_equal(np.asarray(now, object), np.asarray(value, object)):
                raise ParameterError(f"{name} was changed after the fit, from {value!r} to {now!r}; fit again")

    def _calibrated(self) -> Decision:
        self._check_fitted()
        if self.decision_ is None:
            raise NotFittedError(
                f"this {type(self).__name__} was not calibrated: fit it with calibrate={self.calibrations[0]!r} on at "
                f"least {MIN_IMAGES} good images"
            )
        return self.decision_

    def _predict(
        self, collection: ImageCollection, on_bad: OnBad | None, size: int | None, *, live: bool = False
    ) -> Iterator[Prediction]:
        options: dict[str, Any] = {"on_bad": on_bad, "workers": self.workers, "live": live, "learnt": self._digests}
        loaded = stream(collection.items, self._input or self.preprocessing, **options)
        for batch in in_batches(loaded, self._step if size is None else size):
            yield from self._judge(batch)

    def _judge(self, batch: Batch) -> list[Prediction]:
        """What the detector says of some images, and what the decision says of that."""
        with plain_torch() if _is_changed() else nullcontext():
            maps, scores = self._score(batch)
        return judge(batch.images, maps, scores, self.decision_, top_share=self.top_share_, good=self.good_photos_)


def _is_changed() -> bool:
    """Whether the program around has changed torch's default dtype or device, or has switched autocast on."""
    autocast = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
    return autocast or torch.get_default_dtype() != torch.float32 or torch.get_default_device().type != "cpu"
