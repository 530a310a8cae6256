"""SPADE: patches compared with those of the most similar good images (Cohen & Hoshen 2020, arXiv 2005.02357)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flawmap.backbones import DEFAULT_BACKBONE, Backbone, Runtime
from flawmap.datasets import training_images
from flawmap.decision import FALSE_ALARM_RATE, Decision, judge
from flawmap.detectors import passes
from flawmap.detectors.decision_file import decision_record, decision_tensors
from flawmap.detectors.detector import OnBad
from flawmap.detectors.model_backbone import backbone_record, library_versions, matching_backbone, preprocessing_record
from flawmap.detectors.padim.gaussian import MIN_IMAGES
from flawmap.detectors.presets import preset_arguments
from flawmap.detectors.spade import search as spade_passes
from flawmap.detectors.spade.file import described_layout, open_known
from flawmap.detectors.spade.parameters import check_parameters, count_neighbors, load_layers
from flawmap.detectors.spade.search import QUERY_IMAGES, Known, Layout, Sample, Variant
from flawmap.errors import ModelFileError, NotFittedError, ParameterError
from flawmap.images import ImageInput, ImageSource, Loaded, Preprocessing, Replay, collect, stream
from flawmap.model_file import ModelFile, SpadeDocument
from flawmap.prediction import Prediction, Size
from flawmap.progress import Progress, report_progress
from flawmap.tensor_stream import Streamed

__all__ = ["SPADE"]


class SPADE:
    """Remembers good images; scores new ones by their distance to the most similar of these, image and patch alike.

    The image score is the mean distance of the pooled last features to those of the K nearest good images. The map is
    the distance of each patch to the nearest of all patches of these K images (kappa = 1), up-sampled and smoothed. The
    model holds the features of every good image: 5.6 MB each for Wide ResNet-50-2 at 224 x 224.

    Args:
        backbone: a name of `flawmap.backbones.CATALOGUE` or any timm name.
        layers: one to five layers whose patches are compared; None for the backbone's usual ones.
        image_layer: layer that is averaged over the image to find the nearest ones; None for the network's last level.
        n_neighbors: K; None for the variant's, or as many as there are good images if these are fewer.
        variant: "paper" compares the layers' patches as one concatenated vector, by squared distances as in its
            equations, with K = 50; the coarser layers are repeated onto the finest grid, for it does not say how.
            "port" does as the public re-implementation: each layer is searched by itself, by distances, the layers'
            maps are averaged, and K = 5.
        coreset: share of each image's coarsest cells that is kept, with all the patches in them, chosen to cover the
            others (greedy k-centre); None for all. The gallery, its file and the patch search shrink by as much. It
            costs the distances between all cells of an image as it is learnt (under 10 ms at 14 x 14 cells) and raises
            the distances of patches whose nearest one is gone: maps of good images become less even.
        n_mapped: good images, drawn by `seed`, whose maps set the pixel threshold; each takes as long as a prediction.
        seed: fixes that draw, and the weights where `pretrained` is False.
        pretrained: False for random weights.
        weights: a weights file, or `hf-hub:REPO`; None to look on this machine.
        resize: the whole image is resized to this size, an int or (height, width).
        crop: centre crop after that, an int or (height, width); what it cuts off is not inspected.
        aspect: "squash" fills `resize`; "letterbox" keeps the proportions and pads.
        device: "auto" takes a GPU where there is one.
        runtime: of the backbone: "torch", or "openvino" on the CPU; "auto" as in `PaDiM`.
        calibrate: "leave-one-out" scores every good image by its nearest others, for a threshold that keeps its
            promise; None leaves scores without a decision.
        false_alarm_rate: share of good images that may be flagged.
        cache_mb: memory for the gallery; what does not fit is read from a file: a temporary one after `fit` (in
            TMPDIR), the model file after `load`.
        workers: threads that read images; None for one per processor, at most eight.

    Attributes after `fit`:
        n_images_: number of good images learnt from. n_neighbors_: K.
        decision_: leave-one-out scores and thresholds (`flawmap.decision.Decision`), or None: not calibrated, or fewer
            than three images.
        outliers_: names of good images that look unlike the others; not kept in the model file.
        copies_: names of good images that equal an earlier one, which makes the promise too optimistic; not kept.
    """

    def __init__(
        self,
        *,
        backbone: str = DEFAULT_BACKBONE,
        layers: Sequence[str] | None = None,
        image_layer: str | None = None,
        n_neighbors: int | None = None,
        variant: Variant = "paper",
        coreset: float | None = None,
        n_mapped: int = 50,
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
        cache_mb: float = 1024,
        workers: int | None = None,
    ) -> None:
        self.backbone = backbone
        self.layers = layers
        self.image_layer = image_layer
        self.n_neighbors = n_neighbors
        self.variant: Variant = variant
        self.coreset = coreset
        self.n_mapped = n_mapped
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
        self.cache_mb = cache_mb
        self.workers = workers
        self.decision_: Decision | None = None
        self.outliers_: tuple[str, ...] = ()
        self.copies_: tuple[str, ...] = ()
        self._backbone: Backbone | None = None

    @classmethod
    def from_preset(cls, preset: str, **changes: Any) -> Self:  # noqa: ANN401 (the arguments of __init__)
        """A detector as the paper configures it; `changes` are further arguments, such as `weights`."""
        return cls(**{**preset_arguments("spade", preset), **changes})

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
        """Remember good images in one pass, then compare each with the others; the arguments are those of `PaDiM.fit`.

        Raises TrainingSetError for fewer than two images, ParameterError for fewer than `n_neighbors`, ModelFileError
        if the gallery outgrows both `cache_mb` and the disk.
        """
        check_parameters(self)
        preprocessing = self.preprocessing
        collection = collect(training_images(images) if isinstance(images, (str, os.PathLike)) else images)
        if collection.count is not None:
            count_neighbors(self, collection.count)  # before the work, and again without the bad images
        backbone, layers, image_layer = load_layers(self)
        shapes = backbone.shapes(preprocessing.input_size)
        place = backbone.layers.index(image_layer)
        layout = Layout.of(shapes, len(layers), place, variant=self.variant, coreset=self.coreset)
        replay = Replay(collection.items, preprocessing, cache_mb=0, on_bad=on_bad, workers=self.workers)
        sample = Sample(self.n_mapped if self.calibrate else 0, self.seed)
        with report_progress(progress, "Learning", collection.count) as advance:
            batches = passes.batches(replay.first(), batch_size or passes.batch_size(preprocessing.input_size))
            known, names = spade_passes.learn(
                backbone, layout, batches, cache_mb=self.cache_mb, sample=sample, advance=advance
            )
        n_neighbors = count_neighbors(self, len(names))
        decision: Decision | None = None
        if self.calibrate and len(names) >= MIN_IMAGES:
            with report_progress(progress, "Calibrating", len(sample.kept)) as advance:
                decision = spade_passes.calibrate(
                    backbone,
                    layout,
                    known,
                    sample,
                    preprocessing.input_size,
                    n_neighbors=n_neighbors,
                    advance=advance,
                ).at_rate(self.false_alarm_rate)
        self._backbone, self._layout, self._known, self._shapes = backbone, layout, known, shapes
        self._layers, self._image_layer = layers, image_layer
        self.n_images_, self.n_neighbors_, self.decision_ = len(names), n_neighbors, decision
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

    def distances(self, images: ImageInput, *, batch_size: int | None = None) -> list[NDArray[np.float32]]:
        """Patch distances (N, h, w) before up-sampling and smoothing: one array, or one per layer of variant "port"."""
        parts = [maps for _, _, maps in self._distances(collect(images).items, None, batch_size)]
        return [torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True)]

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
        """Anomaly-map values shown as coolest and hottest, the same for every image.

        The pixel threshold is in the middle, the median value of good images is coolest. A model that was not
        calibrated compares its first good image with the others and shows 1.5 to 8 times its median distance.
        """
        if self.decision_ is not None:
            typical = float(self.decision_.pixel_quantiles[0])  # PIXEL_RATES begin with a half
            return typical, max(2 * self.decision_.pixel_threshold - typical, 1.1 * typical)
        typical = spade_passes.typical_distance(*self._fitted()[1:], n_neighbors=self.n_neighbors_)
        return 1.5 * typical, 8 * typical

    def describe(self) -> dict[str, object]:
        """What the model is and what it was fitted on, as plain JSON values."""
        return self._document().model_dump(mode="json")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a model file atomically, an image at a time; the same images, parameters and seed give the same bytes.

        A model loaded from a file may be saved to the same path: the old file is read until the new one is whole.
        """
        known = self._fitted()[2]
        tensors = {"pooled": known.pooled, **decision_tensors(self.decision_)}
        gallery = Streamed((len(known.gallery), known.gallery.n_values), known.gallery.rows())
        ModelFile.write(path, self._document(), tensors, {"gallery": gallery})

    @classmethod
    def from_file(
        cls,
        file: ModelFile[SpadeDocument],
        *,
        weights: str | os.PathLike[str] | None = None,
        device: torch.device | str = "auto",
        runtime: Runtime = "auto",
        cache_mb: float = 1024,
    ) -> Self:
        """The model of an opened file, which must stay where it is; `weights` if the backbone's have moved."""
        document, record = file.document, file.document.backbone
        try:
            model = cls(
                backbone=record.name,
                layers=document.layers,
                image_layer=document.image_layer,
                n_neighbors=document.n_neighbors,
                variant=document.variant,
                coreset=document.coreset,
                n_mapped=document.n_mapped,
                seed=document.seed,
                pretrained=record.pretrained,
                weights=weights,
                resize=document.preprocessing.resize,
                crop=document.preprocessing.crop,
                aspect=document.preprocessing.aspect,
                device=device,
                runtime=runtime,
                cache_mb=cache_mb,
            )
            model._layout = described_layout(document, model.preprocessing.input_size)
        except ParameterError as error:
            raise ModelFileError(
                f"{file.path}: no whole flawmap model file: {error}; fit again or take a backup"
            ) from error
        model._backbone = matching_backbone(file, weights, device, runtime)
        model._known, model.decision_ = open_known(file, model._layout, model._backbone.device, cache_mb=cache_mb)
        model._shapes = list(zip(document.n_channels, document.grids, strict=True))
        if model._backbone.shapes(model.preprocessing.input_size) != model._shapes:
            raise ModelFileError(f"{file.path}: its grids are not those of {record.name}; fit again")
        model._layers, model._image_layer = document.layers, document.image_layer
        model.n_images_, model.n_neighbors_ = document.n_images, document.n_neighbors
        return model

    def _calibrated(self) -> Decision:
        self._fitted()
        if self.decision_ is None:
            raise NotFittedError(
                "this SPADE was not calibrated: fit it with calibrate='leave-one-out' on at least 3 good images"
            )
        return self.decision_

    def _fitted(self) -> tuple[Backbone, Layout, Known]:
        if self._backbone is None:
            raise NotFittedError("this SPADE has learnt nothing yet; call fit(good_images), or flawmap.load(path)")
        return self._backbone, self._layout, self._known

    def _predict(
        self, items: Iterable[ImageSource], on_bad: OnBad | None, batch_size: int | None
    ) -> Iterator[Prediction]:
        input_size = self.preprocessing.input_size
        for batch, scores, distances in self._distances(items, on_bad, batch_size):
            maps = spade_passes.map_batch(batch, distances, input_size).numpy()
            if not np.isfinite(maps).all():  # NaN would pass for good
                raise ModelFileError(f"distances from {batch[0].name} on are not finite: the gallery is damaged")
            yield from judge(batch, maps, scores.cpu().numpy(), self.decision_)

    def _distances(
        self, items: Iterable[ImageSource], on_bad: OnBad | None, batch_size: int | None
    ) -> Iterator[tuple[list[Loaded], Tensor, list[Tensor]]]:
        """Batches of images with their scores (B,) and patch distances (B, h, w) per pyramid."""
        backbone, layout, known = self._fitted()
        loaded = stream(items, self.preprocessing, on_bad=on_bad, workers=self.workers)
        for batch in passes.batches(loaded, batch_size or QUERY_IMAGES):
            yield batch, *spade_passes.patch_distances(backbone, layout, known, batch, n_neighbors=self.n_neighbors_)

    def _document(self) -> SpadeDocument:
        backbone = self._fitted()[0]
        return SpadeDocument(
            detector="spade",
            backbone=backbone_record(backbone, pretrained=self.pretrained, seed=self.seed),
            preprocessing=preprocessing_record(self.preprocessing),
            grids=tuple(grid for _, grid in self._shapes),
            n_channels=tuple(n for n, _ in self._shapes),
            variant=self.variant,
            layers=self._layers,
            image_layer=self._image_layer,
            n_neighbors=self.n_neighbors_,
            coreset=self.coreset,
            n_mapped=self.n_mapped,
            seed=self.seed,
            n_images=self.n_images_,
            decision=decision_record(self.decision_, "leave-one-out"),
            versions=library_versions(),
        )
