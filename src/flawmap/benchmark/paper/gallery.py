"""A picture of some test images of a class, each beside its heat map."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flawmap.benchmark.paper.class_images import ClassImages
from flawmap.files import replace_atomically
from flawmap.images import FrameReader, Preprocessing, VideoFrame, read_image
from flawmap.prediction import Prediction
from flawmap.results import Tile, contact_sheet, overlay

__all__ = ["Gallery"]

PER_TYPE = 4
MAX_TYPES = 12


@dataclass
class Gallery:
    """Collects the maps of a few images of each type while all are scored.

    Attributes:
        images: images of the class.
        indices: indices of the test images to show.
    """

    images: ClassImages
    indices: frozenset[int]
    _good: list[float] = field(default_factory=list)
    _maps: dict[int, tuple[float, NDArray[np.float32]]] = field(default_factory=dict)

    @classmethod
    def of(cls, images: ClassImages) -> Gallery:
        """A gallery of images spread evenly over each type."""
        chosen: set[int] = set()
        for kind in list(dict.fromkeys(images.types))[:MAX_TYPES]:
            places = [i for i, own in enumerate(images.types) if own == kind]
            chosen.update(places[i] for i in np.linspace(0, len(places) - 1, PER_TYPE).astype(int))
        return cls(images, frozenset(chosen))

    def take(self, index: int, score: float, anomaly_map: NDArray[np.float32]) -> None:
        """Store an image's map, if it is to be shown."""
        if not self.images.is_anomalous(index):
            self._good.append(float(anomaly_map.max()))
        if index in self.indices:
            self._maps[index] = score, anomaly_map.copy()

    def save(self, path: Path, preprocessing: Preprocessing, title: str) -> None:
        """Write a JPEG. The scale goes from the median of good images' highest values to twice their highest."""
        if not self._maps:
            return
        peaks = self._good or [float(one.max()) for _, one in self._maps.values()]
        scale = float(np.median(peaks)), 2 * max(peaks) - float(np.median(peaks))
        sections = []
        for kind in dict.fromkeys(self.images.types[index] for index in sorted(self._maps)):
            shown = [index for index in sorted(self._maps) if self.images.types[index] == kind]
            sections.append((kind, [self._tile(index, preprocessing, scale) for index in shown]))
        with replace_atomically(path) as temporary:
            contact_sheet(title, sections).save(temporary, format="JPEG", quality=88)

    def _tile(self, index: int, preprocessing: Preprocessing, scale: tuple[float, float]) -> Tile:
        source = self.images.test[index]
        rgb = FrameReader().read(source) if isinstance(source, VideoFrame) else read_image(source)
        score, anomaly_map = self._maps[index]
        prediction = Prediction(None, score, anomaly_map, preprocessing.place((rgb.shape[0], rgb.shape[1])))
        name = Path(source).name if isinstance(source, (str, Path)) else f"image {index}"
        return Tile(rgb, overlay(rgb, prediction, scale), f"{name}  {score:.1f}")
