"""Runs an exported model on images, without torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawmap.decision import Decision, judge, label_batch
from flawmap.errors import ImageError, ModelFileError, NotFittedError, ParameterError
from flawmap.files import expand_home
from flawmap.images import ImageCollection, ImageInput, Loaded, Preprocessing, collect, load_image, stream
from flawmap.options import Fdr, OnBad, PrecisionChoice
from flawmap.prediction import Prediction
from flawmap.runtime.export_files import read_export
from flawmap.runtime.graphs import Result, open_graph

BATCH = 8
"""Images per step if all are known from the start: more of them read the model's factors less often."""


class Inspector:
    """An exported model, with the names of a fitted detector: OpenVINO or ONNX Runtime, numpy and Pillow, no torch.

    Args:
        folder: an export folder of `flawmap export` or `flawmap.export_model`.
        device: "auto" is the CPU; or a device of OpenVINO ("GPU") or ONNX Runtime ("cuda") on this machine.
        threads: processors to use; None for all.
        precision: "auto" is that of the fit, on which thresholds depend; "bfloat16" computes an OpenVINO graph in 16
            bits, for speed, if the processor has them: scores then differ by about a hundredth; "float32".
        workers: threads that read images; None for one per processor, at most eight.

    Attributes:
        metadata: the checked content of metadata.json.
        decision_: thresholds and held-out scores, from metadata.json; None if the model was not calibrated.

    A pickled one, or a copy, opens its folder again, as it then is.

    Raises ModelFileError for a folder that is damaged, hostile or too new, MissingDependencyError for a missing
    OpenVINO or ONNX Runtime, ParameterError for what is no path and for a device that is not available.

    See Also:
        flawmap.export_model: writes the folder.
        flawmap.PaDiM: a detector; it is fitted with torch.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from flawmap import Inspector, PaDiM, export_model
        >>> good = np.random.default_rng(0).integers(100, 140, (8, 64, 64, 3), np.uint8)
        >>> model = PaDiM(backbone="efficientnet_lite0", layers=["blocks.1"], resize=64, n_features=4).fit(good)
        >>> scratched = good[0].copy()
        >>> scratched[20:40, 30:34] = 255
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     inspector = Inspector(export_model(model, f"{folder}/part"))
        ...     prediction = inspector.predict(scratched)
        >>> prediction.pred_label
        1
        >>> prediction.pred_score > inspector.threshold_
        True
        >>> prediction.anomaly_map.shape
        (64, 64)
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
        self._given = {"device": device, "threads": threads, "precision": precision}
        export = read_export(self.folder)
        self.metadata = export.metadata
        described = self.metadata.decision
        self.decision_: Decision | None = None if described is None else described.to_decision()
        self._preprocessing = export.preprocessing()
        self._graph = open_graph(export, device, threads, precision)

    @property
    def device(self) -> str:
        """The device that runs the graph."""
        return self._graph.device

    @property
    def preprocessing(self) -> Preprocessing:
        """From an image of any size to the model's input."""
        return self._preprocessing

    @property
    def threshold_(self) -> float:
        """Images with higher scores are anomalous. Raises NotFittedError if the model was not calibrated."""
        if self.decision_ is None:
            raise NotFittedError(f"{self.folder}: the model was not calibrated. Fit it with calibration and export it")
        return self.decision_.threshold

    @property
    def false_alarm_rate(self) -> float | None:
        """Guaranteed share of good images above the threshold; None if the user set the threshold, or there is none."""
        return None if self.decision_ is None else self.decision_.false_alarm_rate

    @property
    def map_scale(self) -> tuple[float, float] | None:
        """Anomaly-map values shown as coolest and hottest, the same for every image; None if there are no maps."""
        return self.metadata.map_scale

    def predict(
        self, images: ImageInput, *, on_bad: OnBad | None = None, batch_size: int | None = None, fdr: Fdr = None
    ) -> Prediction | list[Prediction]:
        """Score images: a Prediction of one image, else a list of them in input order.

        Args:
            images: path, folder, glob, iterable, RGB uint8 array (H, W, 3) or batch of them, PIL image.
            on_bad: called with the ImageError of each image that cannot be used; of many images it is then left out. A
                single image that cannot be used raises ImageError in any case.
            batch_size: images per step; None to choose.
            fdr: label the images by this false-discovery rate (`flawmap.decision.discover`), not by the threshold.
        """
        _check_batch_size(batch_size)
        try:
            collection = collect(images)
            if collection.single:
                image = load_image(1, next(iter(collection.items)), self.preprocessing, whole=True)
        except ImageError as error:
            if on_bad is not None:
                on_bad(error)
            raise
        if collection.single:
            [one] = self._judge([image])
            return one if fdr is None else next(label_batch([one], fdr))
        predictions = self._predict(collection, on_bad, batch_size)
        return list(predictions if fdr is None else label_batch(predictions, fdr))

    def iter_predict(
        self, images: ImageInput, *, on_bad: OnBad | None = None, batch_size: int | None = None, fdr: Fdr = None
    ) -> Iterator[Prediction]:
        """Score images one after the other, in input order, in bounded memory; arguments as in `predict`.

        Each image of an iterator, such as a camera, is scored before the next one is asked for. With `fdr` all are
        scored, and kept in memory with their maps, before the first is given.
        """
        _check_batch_size(batch_size)
        predictions = self._predict(collect(images), on_bad, batch_size)
        return predictions if fdr is None else label_batch(predictions, fdr)

    def score_batch(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Raw image scores (N,) and anomaly maps (N, h, w), if there are any, of ready images, RGB (N, H, W, 3) uint8.

        Ready means of `metadata.image_size`, or of any one size if the resize is inside the graph. The padding of a
        letterbox counts like everything else. Raises ParameterError for other arrays.
        """
        maps, scores = self._run(self._checked(images))
        return scores, maps

    def __getstate__(self) -> dict[str, Any]:
        """What opens its folder again, in another process or for a copy."""
        return {"folder": self.folder.absolute(), "workers": self.workers, **self._given}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _predict(
        self, collection: ImageCollection, on_bad: OnBad | None, batch_size: int | None
    ) -> Iterator[Prediction]:
        live = collection.count is None
        loaded = stream(
            collection.items, self.preprocessing, on_bad=on_bad, workers=self.workers, whole=True, live=live
        )
        while batch := list(islice(loaded, batch_size or (1 if live else BATCH))):
            yield from self._judge(batch)

    def _judge(self, batch: list[Loaded]) -> list[Prediction]:
        """Predictions of images that hold their canvas: the graph crops."""
        maps, scores = self._run(np.stack([image.pixels for image in batch]))
        # of images that were not aligned, the graph's scores may count the padding of a letterbox
        pads = maps is not None and batch[0].placement.pose is None
        return judge(
            batch,
            maps,
            None if pads else scores,
            self.decision_,
            top_share=self.metadata.top_share,
            good=self.metadata.images,
        )

    def _run(self, images: NDArray[np.uint8]) -> Result:
        """What the graph says of images (N, H, W, 3), checked. Raises ModelFileError."""
        maps, scores = self._graph.run(images)
        wanted = (len(images), *self.metadata.map_size)
        if scores.shape != wanted[:1] or (maps is not None and maps.shape != wanted):
            raise ModelFileError(
                f"{self.folder}: its graph gives scores of shape {scores.shape} and maps of shape "
                f"{None if maps is None else maps.shape}, expected {wanted[:1]} and {wanted}. Export again"
            )
        if not ((maps is None or np.isfinite(maps).all()) and np.isfinite(scores).all()):
            raise ModelFileError(
                f"{self.folder}: scores of its graph are not finite on {self.device}. Use device 'cpu', or export again"
            )
        return maps, scores

    def _checked(self, images: NDArray[Any]) -> NDArray[np.uint8]:
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
            got = getattr(images, "dtype", type(images).__name__)
            raise ParameterError(f"expected a uint8 array (N, H, W, 3), got {got}")
        fixed = None if self.metadata.graph.resize_inside else self.metadata.image_size
        if (
            images.ndim != 4
            or images.shape[3] != self.metadata.n_channels
            or 0 in images.shape
            or fixed not in (None, images.shape[1:3])
        ):
            raise ParameterError(
                f"expected RGB images (N, H, W, 3) of {fixed or 'any'} (height, width), at least one; got shape "
                f"{images.shape}. Resize them, use `predict`, or export with the resize inside"
            )
        return np.ascontiguousarray(images)


def _check_batch_size(batch_size: int | None) -> None:
    """Raise ParameterError for no number of images."""
    if batch_size is None:
        return
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ParameterError(f"batch_size must be a number from 1, or None to choose; got {batch_size!r}")
