"""A region of interest as it was drawn, and where it lies on the model's input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flawmap.errors import ParameterError
from flawmap.options import SAME_PROPORTIONS
from flawmap.prediction import Affine, Placement, Size

BEYOND = 1.0
"""Pixels by which a point may lie outside the photo, as drawing programs round it."""

COARSE = (256, 256)
"""Points of a photo by which it is told how much of a region the model's input shows."""

Polygon = NDArray[np.float64]
"""Corners (n, 2), x and y in pixels: the photo's first pixel reaches from 0 to 1."""


@dataclass(frozen=True, eq=False)
class Drawing:
    """A region, drawn on a photo or on a picture of its proportions.

    Attributes:
        name: what errors call it: the path of its file, or "roi".
        mask: (H, W), True where the photo is inspected; None of polygons.
        include: polygons of what is inspected; none of a mask, and where everything is that is not excluded.
        exclude: polygons of what is not.
        size: (height, width) of the picture that it was drawn on; None for the photo itself.
    """

    name: str
    mask: NDArray[np.bool_] | None = None
    include: Sequence[Polygon] = ()
    exclude: Sequence[Polygon] = ()
    size: Size | None = None

    def on_input(self, placement: Placement, photo: str) -> NDArray[np.bool_]:
        """The region (h, w) on the model's input, as that lies on the photo: pixels whose middle lies inside.

        A polygon that crosses itself is filled by the even-odd rule. Raises ParameterError for a region of other
        proportions than the photo, for points outside it, and for a region of which the input shows nothing.
        """
        self._check(placement.image_size, photo)
        placed = placement.on(self.size or placement.image_size)
        if self.mask is not None:
            found = _sampled(self.mask, placed.on_photo, placed.input_size)
        else:
            found = self._filled(placed)
        if not found.any():
            raise ParameterError(
                f"{self.name}: the model sees nothing of the region: the crop cuts it off, or it is thinner than a "
                f"pixel of the model's input, {placed.input_size[0]} x {placed.input_size[1]}. Draw a larger one, or "
                f"change crop (--crop) or resize (--resize)"
            )
        return found

    def share_seen(self, placement: Placement) -> float:
        """Share of what is to be inspected of the photo that the model's input shows, roughly; 1 if all of it is."""
        if self.mask is None and not self.include:
            return 1.0
        photo = placement.image_size
        grid = Placement(photo, COARSE, (0, 0), COARSE).on(self.size or photo)
        found = self._filled(grid) if self.mask is None else _sampled(self.mask, grid.on_photo, COARSE)
        points = (np.argwhere(found) + 0.5) * (np.array(photo) / COARSE)
        if len(points) == 0:
            return 1.0
        on_input = _on_window(points[:, ::-1], placement.on_photo)
        return float(((on_input >= 0) & (on_input <= placement.input_size)).all(axis=1).mean())

    def _filled(self, placed: Placement) -> NDArray[np.bool_]:
        """The polygons (h, w) on the input."""
        found = np.full(placed.input_size, not self.include)
        for polygon in self.include:
            found |= fill(_on_window(polygon, placed.on_photo), placed.input_size)
        had_any = found.any()
        for polygon in self.exclude:
            found &= ~fill(_on_window(polygon, placed.on_photo), placed.input_size)
        if had_any and not found.any():
            raise ParameterError(f"{self.name}: 'exclude' leaves nothing of 'include' to be inspected; make it smaller")
        return found

    def _check(self, photo_size: Size, photo: str) -> None:
        """Raise ParameterError for a drawing that cannot be of this photo."""
        size = self.size or photo_size
        tall, wide = size[0] * photo_size[1], size[1] * photo_size[0]
        if max(tall, wide) > SAME_PROPORTIONS * min(tall, wide):
            raise ParameterError(
                f"{self.name}: was drawn on a picture of {size[0]} x {size[1]}, but {photo} has {photo_size[0]} x "
                f"{photo_size[1]} pixels (height x width), which are other proportions. Draw it on that photo, or name "
                f"the photo that it was drawn on (roi_photo, --roi-photo)"
            )
        for polygon in (*self.include, *self.exclude):
            outside = ((polygon < -BEYOND) | (polygon > np.array(size[::-1]) + BEYOND)).any(axis=1)
            if outside.any():
                x, y = polygon[int(outside.argmax())]
                of = "the photo" if self.size else photo
                raise ParameterError(
                    f"{self.name}: the point ({x:g}, {y:g}) lies outside {of}, {size[1]} pixels wide and {size[0]} "
                    f"high. Draw the region on it, or name the photo that it was drawn on (roi_photo, --roi-photo)"
                )


def fill(polygon: NDArray[np.float64], size: Size) -> NDArray[np.bool_]:
    """Pixels (h, w) whose middle lies inside a polygon of corners (n, 2), row and column; by the even-odd rule."""
    height, width = size
    crossed = np.zeros((height, width + 1), np.uint8)  # 1 where a line enters or leaves the polygon
    for (row, column), (next_row, next_column) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        first, last = (int(np.clip(np.ceil(y - 0.5), 0, height)) for y in sorted((row, next_row)))
        if first < last:
            rows = np.arange(first, last)
            at = column + (rows + 0.5 - row) * ((next_column - column) / (next_row - row))
            crossed[rows, np.clip(np.ceil(at - 0.5), 0, width).astype(np.int64)] ^= 1
    inside: NDArray[np.bool_] = np.bitwise_xor.accumulate(crossed[:, :width], axis=1).astype(bool)
    return inside


def _on_window(polygon: Polygon, on_photo: Affine) -> NDArray[np.float64]:
    """Corners (n, 2), row and column of the window, of a polygon of the photo."""
    affine = np.array(on_photo)
    corners: NDArray[np.float64] = np.linalg.solve(affine[:, :2], polygon[:, ::-1].T - affine[:, 2:]).T
    return corners


def _sampled(mask: NDArray[np.bool_], on_photo: Affine, size: Size) -> NDArray[np.bool_]:
    """A mask of the photo on the window (h, w): the pixel under the middle of each; False beyond the photo."""
    (yy, yx, y0), (xy, xx, x0) = on_photo
    data = (xx, xy, x0, yx, yy, y0)
    image = Image.fromarray(mask.astype(np.uint8))
    return np.asarray(image.transform(size[::-1], Image.Transform.AFFINE, data, Image.Resampling.NEAREST)) > 0
