"""Frozen records that are handed from one stage to the next. Sizes are (height, width), boxes half-open, pixels."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flawmap.errors import ParameterError

__all__ = ["Placement", "Pose", "Prediction", "Region", "Size"]

Size = tuple[int, int]
"""(height, width) in pixels."""
Affine = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Takes (row, column, 1) to (row, column); a pixel's middle lies at half a pixel."""


@dataclass(frozen=True)
class Pose:
    """How a part lies in a photo, against the reference of a model that aligns.

    Attributes:
        angle: degrees, clockwise, -180 to 180.
        scale: how many times larger it is.
        shift: (y, x) of the reference's middle from the photo's, in pixels of the photo.
        match: correlation of part and reference, -1 to 1.
        found: whether that is as high as good parts have it, and the photo shows as much of the part as theirs do.

    Example:
        >>> Pose(angle=90.0, scale=1.0, shift=(0.0, 12.0), match=0.97, found=True).found
        True
    """

    angle: float
    scale: float
    shift: tuple[float, float]
    match: float
    found: bool


@dataclass(frozen=True)
class Placement:
    """Where the model's input window lies on the original image.

    The whole image, `image_size`, is resized to `resized_size`; the window of `input_size` starts at `offset` (top,
    left) of that resized image. A crop has a positive offset; a letterbox has a negative one (the window is larger).
    A model that aligns then turns and shifts the part as its reference lies: `affine` takes the window to the original.

    Attributes:
        image_size: (height, width) of the original image.
        resized_size: (height, width) of the image after the resize.
        offset: (top, left) of the window on the resized image.
        input_size: (height, width) of the window.
        affine: from (row, column) of the window to those of the original image; None where nothing was aligned.
        pose: the same for people, and how well it was found; None where nothing was aligned.
        roi: (h, w), pixels of the window that are inspected; None for all.
        content: part of the window that shows image and not padding: (top, left, bottom, right) in input pixels; all
            of it where the image was aligned.

        on_photo: from (row, column) of the window to those of the original image, aligned or not.

    Example:
        >>> letterbox = Placement(image_size=(100, 200), resized_size=(32, 64), offset=(-16, 0), input_size=(64, 64))
        >>> letterbox.content
        (16, 0, 48, 64)
    """

    image_size: Size
    resized_size: Size
    offset: tuple[int, int]
    input_size: Size
    affine: Affine | None = None
    pose: Pose | None = None
    roi: NDArray[np.bool_] | None = field(default=None, compare=False, repr=False)
    content: tuple[int, int, int, int] = field(init=False, compare=False, repr=False)
    on_photo: Affine = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        (height, width), (top, left) = self.input_size, self.offset
        resized_height, resized_width = self.resized_size
        bottom, right = min(height, resized_height - top), min(width, resized_width - left)
        plain_content = (max(0, -top), max(0, -left), bottom, right)
        object.__setattr__(self, "content", plain_content if self.affine is None else (0, 0, height, width))
        tall, wide = (self.image_size[axis] / self.resized_size[axis] for axis in (0, 1))
        plain = (tall, 0.0, top * tall), (0.0, wide, left * wide)
        object.__setattr__(self, "on_photo", self.affine or plain)

    def source_indices(self, axis: int) -> NDArray[np.int64]:
        """Original row (axis 0) or column (axis 1) under each row or column of the window; -1 in the padding.

        The nearest one, as Pillow resizes by nearest: where a pixel's centre falls just between two, its rounding.
        """
        resized = self.resized_size[axis]
        step = np.full(resized, self.image_size[axis] / resized)
        step[0] *= 0.5
        # Pillow too adds up steps, and so rounds in the same direction where a centre lies on an edge
        source = np.minimum(np.cumsum(step).astype(np.int64), self.image_size[axis] - 1)
        position = np.arange(self.input_size[axis]) + self.offset[axis]
        inside = (position >= 0) & (position < resized)
        return np.where(inside, source[np.clip(position, 0, resized - 1)], -1)

    @property
    def unaligned(self) -> Placement:
        """The window as it would lie without alignment, with what is inspected of it."""
        plain = replace(self, affine=None, pose=None)
        if self.affine is None or self.roi is None:
            return plain
        return replace(plain, roi=self._resample(self.roi, plain.on_photo, self.input_size, 0) > 0.5)

    def inspected(self, window: NDArray[np.float32]) -> NDArray[np.float32]:
        """Values (n,) of those pixels of a window (H, W) that show image and lie in the region of interest."""
        top, left, bottom, right = self.content
        shown = window[top:bottom, left:right]
        return shown.ravel() if self.roi is None else shown[self.roi[top:bottom, left:right]]

    def on(self, image_size: Size) -> Placement:
        """The same window on a larger or smaller picture of the original image."""
        if self.affine is None:
            return replace(self, image_size=image_size)
        scales = [new / old for new, old in zip(image_size, self.image_size, strict=True)]
        rows, columns = (
            (a * scale, b * scale, c * scale) for (a, b, c), scale in zip(self.affine, scales, strict=True)
        )
        return replace(self, image_size=image_size, affine=(rows, columns))

    def straighten(self, window: NDArray[np.float32], outside: float = 0.0) -> NDArray[np.float32]:
        """A window (H, W) as it would be without alignment: with the part as it lies in the image."""
        return self._resample(window, self.unaligned.on_photo, self.input_size, outside)

    def _resample(
        self, window: NDArray[np.generic], to_photo: Affine, size: Size, outside: float
    ) -> NDArray[np.float32]:
        """A window on pixels (h, w) that `to_photo` takes to the original image, bilinear."""
        last = (0.0, 0.0, 1.0)
        (yy, yx, y0), (xy, xx, x0), _ = np.linalg.solve(np.array([*self.on_photo, last]), np.array([*to_photo, last]))
        data = (xx, xy, x0, yx, yy, y0)
        image = Image.fromarray(np.ascontiguousarray(window, np.float32))
        bilinear = Image.Resampling.BILINEAR
        moved = image.transform(size[::-1], Image.Transform.AFFINE, data, bilinear, fillcolor=outside)
        return np.asarray(moved)

    def to_original(self, window: NDArray[np.float32], outside: float = 0.0) -> NDArray[np.float32]:
        """Resample a window (H, W) bilinearly onto the original image (H0, W0); `outside` fills what it never saw."""
        if window.shape != self.input_size:
            raise ValueError(f"expected a window of {self.input_size}, got {window.shape}")
        if self.affine is not None:
            return self._resample(window, ((1, 0, 0), (0, 1, 0)), self.image_size, outside)
        content = self.content
        rows, row_weight, row_inside = self._taps(0, content[0], content[2])
        columns, column_weight, column_inside = self._taps(1, content[1], content[3])
        tall = window[rows[0]] * (1 - row_weight)[:, None] + window[rows[1]] * row_weight[:, None]
        full = tall[:, columns[0]]
        full *= 1 - column_weight
        full += tall[:, columns[1]] * column_weight
        full[~row_inside] = outside
        full[:, ~column_inside] = outside
        return full

    def _taps(
        self, axis: int, first: int, last: int
    ) -> tuple[tuple[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float32], NDArray[np.bool_]]:
        """Two source indices and the weight of the second for each original row or column, and whether it was seen."""
        scale = self.resized_size[axis] / self.image_size[axis]
        centre = (np.arange(self.image_size[axis]) + 0.5) * scale - self.offset[axis]
        inside = (centre > first) & (centre < last)
        position = np.clip(centre - 0.5, first, last - 1)
        low = np.floor(position).astype(np.int64)
        high = np.minimum(low + 1, last - 1)
        return (low, high), (position - low).astype(np.float32), inside


@dataclass(frozen=True)
class Region:
    """A region above the pixel threshold, in pixels (y, x) of the original image.

    Attributes:
        box: (top, left, bottom, right), half-open.
        area: its size in pixels.
        peak: highest value of the anomaly map in it.
        peak_at: (y, x) of that.
        centroid: (y, x) of its middle.

    Example:
        >>> Region(box=(2, 3, 6, 9), area=20.0, peak=7.5, peak_at=(4.0, 5.0), centroid=(4.0, 6.0)).peak_at
        (4.0, 5.0)
    """

    box: tuple[int, int, int, int]
    area: float
    peak: float
    peak_at: tuple[float, float]
    centroid: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Prediction:
    """The result of one image. Higher means more anomalous.

    The last four are None (no regions) if the model was not calibrated. The map, the mask and the regions are None (no
    regions) if the detector is image-level.

    Attributes:
        path: the image file, or None for an image that came from memory.
        pred_score: image score (a distance, >= 0); of PaDiM, the maximum of the anomaly map.
        anomaly_map: (H, W) float32 at the model's input size, 0 in the padding of a letterbox and outside the region of
            interest; or None.
        placement: where the model's input lies on the original image.
        pred_label: 1 if anomalous, 0 if good.
        p_value: share of good images that would score as high.
        pred_mask: (H, W) bool at the model's input size, the pixels above the pixel threshold.
        regions: connected regions of the mask, highest peak first.
        remarks: what is unusual about the image, in words; none in most cases.

    Example:
        >>> placement = Placement((8, 6), (4, 3), (0, 0), (4, 3))
        >>> Prediction("part.png", 2.0, np.ones((4, 3), np.float32), placement).original_map().shape
        (8, 6)
    """

    path: str | None
    pred_score: float
    anomaly_map: NDArray[np.float32] | None
    placement: Placement
    pred_label: int | None = None
    p_value: float | None = None
    pred_mask: NDArray[np.bool_] | None = None
    regions: tuple[Region, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def found(self) -> bool:
        """Whether the part was found; True of a model that does not align."""
        return self.placement.pose is None or self.placement.pose.found

    @property
    def image_size(self) -> Size:
        """Size (height, width) of the original image, after its EXIF rotation."""
        return self.placement.image_size

    def original_map(self, outside: float = 0.0) -> NDArray[np.float32]:
        """Anomaly map (H0, W0) at the original image's size and position; `outside` fills what a crop left unseen.

        ParameterError if there is no map.
        """
        if self.anomaly_map is None:
            raise ParameterError("this detector is image-level: its predictions have no anomaly map")
        return self.placement.to_original(self.anomaly_map, outside)
