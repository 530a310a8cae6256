"""A picture of some test images of a class, each beside its heat map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from flawmap.benchmark.paper.class_images import LabelledImage
from flawmap.files import replace_atomically
from flawmap.images import FrameReader, VideoFrame, read_image
from flawmap.prediction import Prediction
from flawmap.results import Tile, contact_sheet, overlay

PER_TYPE = 4
MAX_TYPES = 12


class Gallery:
    """Collects the maps of a few images of each type, spread evenly over it, while all are scored."""

    def __init__(self, images: Sequence[LabelledImage]) -> None:
        self._images = images
        self._chosen: set[int] = set()
        for kind in list(dict.fromkeys(image.type for image in images))[:MAX_TYPES]:
            places = [i for i, image in enumerate(images) if image.type == kind]
            self._chosen.update(places[i] for i in np.linspace(0, len(places) - 1, PER_TYPE).astype(int))
        self._peaks_of_good: list[float] = []
        self._shown: dict[int, Prediction] = {}

    def take(self, index: int, prediction: Prediction) -> None:
        """Store an image's map, if it is to be shown."""
        if prediction.anomaly_map is None:
            return
        if not self._images[index].is_anomalous:
            self._peaks_of_good.append(float(prediction.anomaly_map.max()))
        if index in self._chosen:
            self._shown[index] = replace(prediction, anomaly_map=prediction.anomaly_map.copy())  # not its whole batch

    def save(self, path: Path, title: str) -> None:
        """Write a JPEG. The scale goes from the median of good images' highest values to twice their highest."""
        if not self._shown:
            return
        shown = self._shown.values()
        peaks = self._peaks_of_good or [float(one.anomaly_map.max()) for one in shown if one.anomaly_map is not None]
        scale = float(np.median(peaks)), 2 * max(peaks) - float(np.median(peaks))
        sections: dict[str, list[Tile]] = {}
        for index, prediction in self._shown.items():
            image = self._images[index]
            sections.setdefault(image.type, []).append(_tile(index, image, prediction, scale))
        path.parent.mkdir(exist_ok=True)
        with replace_atomically(path) as temporary:
            contact_sheet(title, list(sections.items())).save(temporary, format="JPEG", quality=88)


def _tile(index: int, image: LabelledImage, prediction: Prediction, scale: tuple[float, float]) -> Tile:
    source = image.source
    rgb = FrameReader().read(source) if isinstance(source, VideoFrame) else read_image(source)
    name = Path(source).name if isinstance(source, (str, Path)) else f"image {index}"
    return Tile(rgb, overlay(rgb, prediction, scale), f"{name}  {prediction.pred_score:.1f}")
