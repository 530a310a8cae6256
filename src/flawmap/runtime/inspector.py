"""Inspects images by an exported model, without torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawmap.decision import find_regions
from flawmap.errors import ImageError, ModelFileError, ParameterError
from flawmap.files import expand_home
from flawmap.images import ImageCollection, ImageInput, Loaded, Preprocessing, collect, read_image, stream
from flawmap.prediction import Prediction
from flawmap.runtime.graph import PrecisionChoice, open_graph
from flawmap.runtime.metadata import Metadata, Rule

__all__ = ["Inspector"]

BATCH = 8
"""Images per step where all are there from the start: more of them read the model's factors less often."""


class Inspector:
    """An exported model, ready to inspect images: OpenVINO or ONNX Runtime, numpy and Pillow, no torch.

    Args:
        folder: what `flawmap export` or `flawmap.export_model` wrote.
        device: "auto" takes the CPU; or a device that OpenVINO ("GPU") or ONNX Runtime ("cuda") finds here.
        threads: processors to use; None for all.
        precision: "auto" is that of the fit, which thresholds belong to; "bfloat16" computes an OpenVINO graph in 16
            bits, for speed, where the processor has them: scores then differ by about a hundredth; "float32".
        workers: threads that read images; None for one per processor, at most eight.

    Attributes:
        metadata: the checked content of metadata.json.

    Raises ModelFileError for a folder that is damaged, hostile or too new, and MissingDependencyError for a missing
    OpenVINO or ONNX Runtime.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        device: str = "auto",
        threads: int | None = None,
        precision: PrecisionChoice = "auto",
        workers: int | None = None,
    ) -> None:
        self.folder = expand_home(folder)
        self.workers = workers
        self.metadata = Metadata.read(self.folder)
        self._rule: Rule | None = None if self.metadata.decision is None else self.metadata.decision.rule()
        self._graph = open_graph(self.folder, self.metadata, device, threads, precision)

    @property
    def device(self) -> str:
        """The device that runs the graph."""
        return self._graph.device

    @property
    def threshold(self) -> float | None:
        """Image scores above it are labelled anomalous; None for a model that was not calibrated."""
        return None if self._rule is None else self._rule.decision.threshold

    @property
    def pixel_threshold(self) -> float | None:
        """Map values above it are marked; None for a model that was not calibrated."""
        return None if self._rule is None else self._rule.pixel_threshold

    @property
    def false_alarm_rate(self) -> float | None:
        """Share of good images that may be flagged; None where a threshold was set by hand."""
        return None if self._rule is None else self._rule.decision.false_alarm_rate

    def inspect(
        self, images: ImageInput, *, on_bad: Callable[[ImageError], None] | None = None, batch_size: int | None = None
    ) -> list[Prediction]:
        """What `PaDiM.predict` says of these images, in their order; always a list.

        Args:
            images: path, folder, glob, iterable, RGB uint8 array (H, W, 3) or batch of them, PIL image.
            on_bad: is told of each image that cannot be read, which is then left out; None raises ImageError.
            batch_size: images per step; None to choose.
        """
        return list(self.iter_inspect(images, on_bad=on_bad, batch_size=batch_size))

    def iter_inspect(
        self, images: ImageInput, *, on_bad: Callable[[ImageError], None] | None = None, batch_size: int | None = None
    ) -> Iterator[Prediction]:
        """Inspect images one after the other; input and `on_bad` as in `inspect`.

        Those of an iterator, as a camera gives them, are each inspected before the next one is asked for.
        """
        if batch_size is not None and batch_size < 1:
            raise ParameterError(f"batch_size must be a number from 1, got {batch_size}")
        collection = collect(images)
        live = collection.count is None
        if live:
            loaded = self._load_live(collection, on_bad)
        else:
            loaded = stream(collection.items, self._canvas, on_bad=on_bad, workers=self.workers)
        return self._inspect(loaded, batch_size or (1 if live else BATCH))

    def score_batch(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Raw image scores (N,) and anomaly maps (N, h, w), if there are any, of ready images, RGB (N, H, W, 3) uint8.

        Ready means of `metadata.image_size`, or of any one size if the resize is inside the graph. The padding of a
        letterbox counts like everything else. Raises ParameterError for other arrays.
        """
        maps, scores = self._run(self._checked(images))
        return scores, maps

    @property
    def _canvas(self) -> Preprocessing:
        """Preprocessing up to the crop, which the graph does itself."""
        return replace(self.metadata.preprocessing, crop=None)

    def _load_live(self, collection: ImageCollection, on_bad: Callable[[ImageError], None] | None) -> Iterator[Loaded]:
        """Images of an iterator, each read when it is asked for."""
        for number, item in zip(count(1), collection.items, strict=False):
            path = os.fspath(item) if isinstance(item, (str, os.PathLike)) else None
            name = path or f"image {number}"
            try:
                pixels, placement = self._canvas.apply(read_image(item, name=name))
            except ImageError as error:
                if on_bad is None:
                    raise
                on_bad(error)
            else:
                yield Loaded(number, name, path, pixels, placement)

    def _inspect(self, loaded: Iterator[Loaded], size: int) -> Iterator[Prediction]:
        while batch := list(islice(loaded, size)):
            maps, scores = self._run(np.stack([image.pixels for image in batch]))
            yield from self._judge(batch, maps, scores)

    def _judge(
        self, batch: Sequence[Loaded], maps: NDArray[np.float32] | None, scores: NDArray[np.float32]
    ) -> Iterator[Prediction]:
        """Predictions with their decision, the padding of a letterbox left out of maps."""
        for number, (image, raw_score) in enumerate(zip(batch, scores.tolist(), strict=True)):
            placement = self.metadata.preprocessing.place(image.placement.image_size)
            if maps is None:
                yield self._decide(Prediction(image.path, raw_score, None, placement))
                continue
            anomaly_map = maps[number]
            top, left, bottom, right = placement.content
            score = raw_score
            if (bottom - top, right - left) != placement.input_size:
                seen = np.zeros_like(anomaly_map)
                seen[top:bottom, left:right] = anomaly_map[top:bottom, left:right]
                anomaly_map, score = seen, float(seen.max())
            yield self._decide(Prediction(image.path, score, anomaly_map, placement))

    def _decide(self, prediction: Prediction) -> Prediction:
        if self._rule is None:
            return prediction
        decision = self._rule.decision
        label, p_value = decision.label(prediction.pred_score), decision.p_value(prediction.pred_score)
        if prediction.anomaly_map is None:
            return replace(prediction, pred_label=label, p_value=p_value)
        mask = prediction.anomaly_map > self._rule.pixel_threshold
        return replace(
            prediction,
            pred_label=label,
            p_value=p_value,
            pred_mask=mask,
            regions=find_regions(mask, prediction.anomaly_map, prediction.placement),
        )

    def _run(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32] | None, NDArray[np.float32]]:
        maps, scores = self._graph.run(images)
        if not ((maps is None or np.isfinite(maps).all()) and np.isfinite(scores).all()):  # NaN would pass for good
            raise ModelFileError(
                f"{self.folder}: its graph gives scores that are not finite on {self.device}; try device='cpu', or "
                f"export again"
            )
        return maps, scores

    def _checked(self, images: NDArray[Any]) -> NDArray[np.uint8]:
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
            got = images.dtype if isinstance(images, np.ndarray) else type(images).__name__
            raise ParameterError(f"expected a uint8 array (N, H, W, 3), got {got}")
        size = "any height and width" if self.metadata.graph.resize_inside else self.metadata.image_size
        if images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
            raise ParameterError(f"expected RGB images (N, H, W, 3) of {size}, at least one; got shape {images.shape}")
        if not self.metadata.graph.resize_inside and images.shape[1:3] != self.metadata.image_size:
            raise ParameterError(
                f"expected images of {size} (height, width), got {images.shape[1:3]}; resize them, use `inspect`, or "
                f"export with the resize inside"
            )
        return np.ascontiguousarray(images)
