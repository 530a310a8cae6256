"""How a part lies in a photo, and the resampling that follows from it.

Coordinates are (y, x) from the middle of the image, in units of its longer side, so that a pose holds at every
resolution. A frame says how many pixels an image has and what proportions it shows: a photo that was squashed into a
square still turns as it did before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flawmap.prediction import Size

Box = tuple[int, int, int, int]
"""(top, left, bottom, right) in pixels, half-open."""
Matrix = NDArray[np.float64]
"""(3, 3): takes a point (y, x, 1) of the reference to where it lies in the image."""


LEVEL = 1e-12
"""Slope below which a line counts as level."""


@dataclass(frozen=True)
class Frame:
    """Pixels of an image, and the proportions of what it shows.

    Attributes:
        size: (height, width) in pixels.
        proportions: (height, width) of what it shows, in any unit.
    """

    size: Size
    proportions: tuple[float, float]

    @cached_property
    def pixels(self) -> Matrix:
        """(3, 3): from coordinates in longer sides to pixels (row, column), of which the first begins at 0."""
        longer = max(self.proportions)
        per_unit = [size * longer / extent for size, extent in zip(self.size, self.proportions, strict=True)]
        return np.array([[per_unit[0], 0, self.size[0] / 2], [0, per_unit[1], self.size[1] / 2], [0, 0, 1]])

    def resized(self, longest: int) -> Frame:
        """The same picture with `longest` pixels on its longer side at most."""
        scale = min(longest, max(self.size)) / max(self.proportions)
        height, width = (max(8, round(extent * scale)) for extent in self.proportions)
        return Frame((height, width), self.proportions)

    def affine(self, pose: Matrix) -> Matrix:
        """A pose in pixels: (3, 3), from (row, column, 1) of the reference to that of the image."""
        affine: Matrix = self.pixels @ pose @ self._units
        return affine

    @cached_property
    def _units(self) -> Matrix:
        """(3, 3): the way back from pixels."""
        units: Matrix = np.linalg.inv(self.pixels).astype(np.float64)
        return units

    def points(self) -> NDArray[np.float32]:
        """Coordinates (2, h, w) of the middle of each pixel."""
        rows, columns = (np.arange(n) + 0.5 for n in self.size)
        y = rows * self._units[0, 0] + self._units[0, 2]
        x = columns * self._units[1, 1] + self._units[1, 2]
        return np.stack(np.meshgrid(y, x, indexing="ij")).astype(np.float32)


def pose_matrix(angle: float, scale: float = 1.0, shift: tuple[float, float] = (0.0, 0.0)) -> Matrix:
    """The pose of a part that is turned by an angle (radians, clockwise), scaled, then shifted by (y, x)."""
    cosine, sine = scale * math.cos(angle), scale * math.sin(angle)
    return np.array([[cosine, sine, shift[0]], [-sine, cosine, shift[1]], [0, 0, 1]])


def resample(image: Image.Image, affine: Matrix, size: Size, fill: float | tuple[int, ...] = 0) -> Image.Image:
    """An image of `size` whose pixel (row, column) shows the given one at affine @ (row, column, 1); bilinear."""
    (yy, yx, y0), (xy, xx, x0), _ = affine
    data = (xx, xy, x0, yx, yy, y0)
    return image.transform(size[::-1], Image.Transform.AFFINE, data, Image.Resampling.BILINEAR, fillcolor=fill)


def inside(affine: Matrix, size: Size, content: Box, margin: float = 0.0) -> NDArray[np.bool_]:
    """Pixels (h, w) of an image of `size` that lie in the content of another one, `margin` pixels inside its border."""
    rows, columns = np.arange(size[0]) + 0.5, np.arange(size[1], dtype=np.float32) + np.float32(0.5)
    left, right = np.full(size[0], -np.inf), np.full(size[0], np.inf)
    for (by_row, by_column, offset), first, last in zip(affine[:2], content[:2], content[2:], strict=True):
        low, high = first + margin - by_row * rows - offset, last - margin - by_row * rows - offset
        if abs(by_column) < LEVEL:  # all of a row, or nothing
            right[(low > 0) | (high < 0)] = -np.inf
            continue
        ends = np.sort([low / by_column, high / by_column], axis=0)
        left, right = np.maximum(left, ends[0]), np.minimum(right, ends[1])
    begin, end = (side.astype(np.float32)[:, None] for side in (left, right))
    return np.asarray((columns >= begin) & (columns <= end))
