"""What all detectors share: parameters, fit, predictions, thresholds, model files."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Annotated, Any, ClassVar, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from flawmap.backbones import NETWORKS, pick_device, plain_torch, size_step
from flawmap.datasets import Dataset
from flawmap.decision import FALSE_ALARM_RATE, GoodPhotos, judge, label_batch
from flawmap.detectors.batches import Batch, batch_of_one, batch_size, in_batches
from flawmap.detectors.calibration import HeldOutScores, conclude
from flawmap.detectors.canvas import canvas_size
from flawmap.detectors.deciding import Decided
from flawmap.detectors.document import (
    BackboneRecord,
    DecisionRecord,
    Document,
    ImagesRecord,
    Stored,
    decision_tensors,
    describe_document,
    library_versions,
)
from flawmap.detectors.good_images import GoodImages, GoodSources
from flawmap.detectors.parameters import (
    Bits,
    Canvas,
    DeviceName,
    Parametrised,
    Pixels,
    Roi,
    Seed,
    Share,
    Workers,
    are_equal,
)
from flawmap.errors import ImageError, NotFittedError, ParameterError, TrainingSetError
from flawmap.images import ImageCollection, ImageInput, Preprocessing, collect, load_image, stream
from flawmap.images.alignment import AlignedPreprocessing, Aligner
from flawmap.images.roi import RoiPreprocessing, RoiRecord, place_roi, read_roi
from flawmap.model_file import Streamed, write_model_file
from flawmap.options import Aspect, Calibration, FactorDtype, Fdr, GraphDtype, OnBad, Reading
from flawmap.prediction import Prediction, Size
from flawmap.progress import Progress


class Detector(Parametrised, Decided, ABC):
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
        roi_: (h, w) bool, the pixels of the model's input that are inspected; None for all.
        roi_photo_: name of the photo on which the region of interest was taken to lie; not saved.
        resize_: (height, width) of the canvas, where `resize` is a rule such as "long:768"; else None.
        top_share_: part of an anomaly map whose mean is the image's score; 0 for its highest value.
        good_photos_: sizes and depth of the good images, with which later ones are compared; None in older files.

    Example:
        >>> from flawmap import PaDiM
        >>> isinstance(PaDiM.from_preset("padim-r18-rd100", seed=3), Detector)
        True
    """

    name: ClassVar[str]
    takes_roi: ClassVar[bool] = True
    """Whether it can inspect a region of interest alone: its score is the highest value of its map."""
    reads_whole: ClassVar[bool] = False
    """Whether `fit` gets images before their crop."""
    factor_dtypes: ClassVar[tuple[FactorDtype, ...]] = ()
    """Numbers in which `save` can store factors, where there is a choice."""
    graph_dtypes: ClassVar[tuple[GraphDtype, ...]] = get_args(GraphDtype)
    """Numbers in which a graph of it can store constants."""
    libraries: ClassVar[tuple[str, ...]] = ()
    """Further packages whose versions a model file names."""
    before: ClassVar[dict[str, Any]] = {"reading": "whole"}
    """Values of parameters that files of older versions do not name."""

    seed: Annotated[Seed, Field(description="Random seed.")] = 0
    resize: Annotated[
        Canvas,
        Field(description='Size of the whole image: an int, (height, width), or a rule: "long:768", "short:512".'),
    ] = 256
    crop: Annotated[
        Pixels, Field(description="Centre crop after that, an int or (height, width). The rest is not inspected.")
    ] = None
    aspect: Annotated[
        Aspect, Field(description='"squash" fills `resize`; "letterbox" keeps the proportions and pads.')
    ] = "squash"
    roi: Annotated[
        Roi,
        Field(
            description="Region of interest, outside of which nothing is inspected: a mask image, a bool array, a "
            ".json file of polygons, polygons in pixels of the photo, or {'include': ..., 'exclude': ..., 'size': ...}."
        ),
    ] = None
    roi_photo: Annotated[
        Any, Field(exclude=True, description="Photo that the region was drawn on; None: the first good one.")
    ] = None
    bits: Annotated[Bits, Field(description="Bits of a sample that 16-bit images use, such as 12; None: all.")] = None
    reading: Annotated[Reading, Field(description='"reduced": no finer than is needed; "whole".')] = "reduced"
    device: Annotated[DeviceName, Field(description='"auto": a GPU where there is one, else the CPU.')] = "auto"
    calibrate: Annotated[
        Calibration | None,
        Field(description='How good images get held-out scores: "leave-one-out" or "holdout"; None: no threshold.'),
    ] = "leave-one-out"
    false_alarm_rate: Annotated[Share, Field(description="Share of good images that may be flagged.")] = (
        FALSE_ALARM_RATE
    )
    workers: Annotated[
        Workers, Field(description="Threads that read images; None: one per processor, at most eight.")
    ] = None

    def __init__(self, **parameters: Any) -> None:  # noqa: ANN401 (typed by the class's annotations)
        super().__init__(**parameters)
        Decided.__init__(self)
        self.n_images_ = 0
        self.outliers_, self.copies_ = tuple[str, ...](), tuple[str, ...]()
        self.duplicates_, self.groups_ = tuple[tuple[str, str], ...](), tuple[tuple[str, ...], ...]()
        self.remarks_: dict[str, tuple[str, ...]] = {}
        self.good_photos_: GoodPhotos | None = None
        self.aligner_: Aligner | None = None
        self.roi_: NDArray[np.bool_] | None = None
        self.roi_photo_ = ""
        self.resize_: Size | None = None
        self._images: ImagesRecord | None = None
        self.top_share_ = 0.0
        self._input: Preprocessing | None = None
        self._fitted: dict[str, Any] = {}
        self._digests: frozenset[bytes] = frozenset()
        self._network: nn.Module | None = None
        self._stored_dtype: FactorDtype = "float32"

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image becomes the model's input; ParameterError for a rule of `resize` before it met photos."""
        plain = Preprocessing.of(self.resize_ or self.resize, self.crop, self.aspect, self.bits, self.reading)
        whole = plain if self.aligner_ is None else AlignedPreprocessing.of_aligner(plain, self.aligner_)
        return whole if self.roi_ is None else RoiPreprocessing.of_roi(whole, self.roi_)

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
        self.resize_, self.aligner_, self.roi_ = None, None, None
        drawing = None if self.roi is None else read_roi(self.roi)
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
        self.aligner_ = good.align(getattr(self, "align", "none"), in_part=drawing is not None)
        placed = None
        if drawing is not None:
            placed = place_roi(drawing, self.roi_photo, sources.first, self.preprocessing, on_bad=on_bad)
            self.roi_, self.roi_photo_ = placed.roi, placed.photo
            good.inspect(placed.roi)
        held_out = self._learn(good)
        if len(good.learnt) < 2:
            raise TrainingSetError(f"{self.name} learns from at least 2 good images, got {len(good.learnt)} usable")
        self._stored_dtype, self.n_images_, self.copies_ = "float32", len(good.learnt), good.copies()
        alone = self.name if self.calibrate and not hasattr(self, "groups") else None
        self._images, self.remarks_, self.groups_ = ImagesRecord.of(good), good.remarks(alone), good.found()
        if placed is not None:
            self.remarks_ |= placed.remarks(good.photos.sizes(2))
        found = conclude(held_out, good.names, self.false_alarm_rate, lost=good.flagged)
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

    def _check(self) -> None:
        """Raise ParameterError for parameters that `fit` cannot use, before anything is read."""
        _ = self.parameters, self.preprocessing
        if self.calibrate not in (*self.calibrations, None):
            choices = " or ".join(repr(choice) for choice in (*self.calibrations, None))
            raise ParameterError(f"calibrate must be {choices}, got {self.calibrate!r}")
        if (self.roi is not None or self.roi_ is not None) and not (self.localises and self.takes_roi):
            raise ParameterError(
                f"roi is not for {self.name}, whose score is of the whole image. Use crop (--crop), or a detector "
                f"whose score is of its map, such as padim (--detector padim)"
            )
        if self.roi is None and self.roi_photo is not None:
            raise ParameterError(
                "roi_photo (--roi-photo) names the photo of a region of interest; give roi (--roi) too"
            )

    def _image_cache(self) -> float:
        """Megabytes of good images that `fit` keeps between its passes."""
        return 0.0

    def _prepare(self) -> None:
        """Make ready to score, after a fit or a load."""
        names = [
            name for name, field in self.parameters_type.model_fields.items() if not field.exclude or name == "roi"
        ]
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
            roi=None if self.roi_ is None else RoiRecord.of(self.roi_),
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
            if now is not value and not are_equal(now, value):
                change = "" if name == "roi" else f", from {value!r} to {now!r}"  # which may be a whole mask
                raise ParameterError(f"{name} was changed after the fit{change}; fit again")

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
