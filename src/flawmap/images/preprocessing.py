"""From an image of any size to the model's input, and the way back. Sizes are (height, width) in pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flawmap.errors import ParameterError
from flawmap.images.photo import Reduction
from flawmap.options import MAX_BITS, MAX_SIDE, MIN_BITS, Aspect, Reading
from flawmap.prediction import Placement, Size

PADDING = 127
"""Grey level of a letterbox's padding."""


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the model's input.

    Attributes:
        resize: the whole image is resized to this (bilinear, antialiased).
        crop: centre crop after that, or None; what it cuts off is not inspected.
        aspect: "squash" fills `resize`; "letterbox" keeps the image's proportions and pads with grey.
        bits: of each sample of deep images, which are scaled from 0..2**bits - 1; None for those that a file declares.
        reading: "reduced" averages whole numbers of pixels as an image is read, as far as at least two pixels are left
            for each one of the input; "whole" takes all of them.
    """

    resize: Size = (256, 256)
    crop: Size | None = None
    aspect: Aspect = "squash"
    bits: int | None = None
    reading: Reading = "whole"

    @classmethod
    def of(
        cls,
        resize: int | Size = 256,
        crop: int | Size | None = None,
        aspect: Aspect = "squash",
        bits: int | None = None,
        reading: Reading = "whole",
    ) -> Self:
        """Checked preprocessing; an int is a square. Raises ParameterError."""
        size = _size(resize, "resize")
        window = None if crop is None else _size(crop, "crop")
        if window is not None and (window[0] > size[0] or window[1] > size[1]):
            raise ParameterError(f"crop {window} must fit into resize {size}")
        if aspect not in get_args(Aspect):
            raise ParameterError(f"aspect must be 'squash' or 'letterbox', got {aspect!r}")
        if bits is not None and not (_is_whole(bits) and MIN_BITS <= bits <= MAX_BITS):
            raise ParameterError(f"bits must be a whole number from {MIN_BITS} to {MAX_BITS}, or None; got {bits!r}")
        if reading not in get_args(Reading):
            raise ParameterError(f"reading must be 'reduced' or 'whole', got {reading!r}")
        return cls(size, window, aspect, bits, reading)

    @property
    def input_size(self) -> Size:
        """Size of the model's input."""
        return self.crop or self.resize

    @property
    def n_channels(self) -> int:
        """Channels of the model's input."""
        return 3

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the canvas, the image after resize or letterbox, that the crop keeps."""
        (canvas_height, canvas_width), (height, width) = self.resize, self.input_size
        top, left = round((canvas_height - height) / 2), round((canvas_width - width) / 2)
        return slice(top, top + height), slice(left, left + width)

    def content(self, resized_size: Size) -> tuple[int, int, int, int]:
        """Where a resized image lies on the canvas: (top, left, bottom, right)."""
        top, left = self._margin(resized_size)
        return top, left, top + resized_size[0], left + resized_size[1]

    def place(self, image_size: Size) -> Placement:
        """Where the input lies on an image of this size."""
        resized = self.resize
        if self.aspect == "letterbox":
            scale = min(self.resize[0] / image_size[0], self.resize[1] / image_size[1])
            resized = max(1, round(image_size[0] * scale)), max(1, round(image_size[1] * scale))
        (rows, columns), (top, left) = self.window, self._margin(resized)
        return Placement(image_size, resized, (rows.start - top, columns.start - left), self.input_size)

    def apply(
        self, rgb: NDArray[np.uint8] | Image.Image, *, whole: bool = False, reduction: Reduction | None = None
    ) -> tuple[NDArray[np.uint8], Placement]:
        """The model's input (h, w, 3) uint8 from RGB (H, W, 3) uint8 or a Pillow image, and where it lies on the image.

        With `whole` the pixels are the canvas before the crop, of size `resize`; the Placement is still the input's.
        `reduction` is that of an image that was read smaller, or is to be averaged.
        """
        image = rgb if isinstance(rgb, Image.Image) else Image.fromarray(rgb)
        reduction = reduction or Reduction((image.height, image.width))
        placement = self.place(reduction.size)
        canvas = self._canvas(image, placement.resized_size, reduction)
        return canvas if whole else np.ascontiguousarray(canvas[self.window]), placement

    def _canvas(self, image: Image.Image, resized_size: Size, reduction: Reduction) -> NDArray[np.uint8]:
        """The image (*resize, 3), resized and, of a letterbox, padded with grey."""
        (height, width), rest = resized_size, max(1, reduction.factor // reduction.decoded)
        image = image.reduce(rest) if rest > 1 else image
        bottom, right = (side / (reduction.decoded * rest) for side in reduction.size)  # a last pixel counts in part
        small = image.resize((width, height), Image.Resampling.BILINEAR, (0, 0, right, bottom))
        resized = np.asarray(small if small.mode == "RGB" else small.convert("RGB"))
        if resized_size == self.resize:
            return resized
        top, left = self._margin(resized_size)
        canvas = np.full((*self.resize, 3), PADDING, np.uint8)
        canvas[top : top + height, left : left + width] = resized
        return canvas

    def _margin(self, resized_size: Size) -> tuple[int, int]:
        """Rows above and columns left of the resized image on the canvas."""
        return (self.resize[0] - resized_size[0]) // 2, (self.resize[1] - resized_size[1]) // 2

    def apply_mask(self, mask: NDArray[np.bool_], placement: Placement) -> NDArray[np.bool_]:
        """A mask (H, W) of the original image as the model's input sees it (h, w): nearest pixel, False in padding.

        Raises ParameterError if the mask is not of the image's size.
        """
        if mask.shape != placement.image_size:
            raise ParameterError(f"expected a mask of the image's size {placement.image_size}, got {mask.shape}")
        rows, columns = placement.source_indices(0), placement.source_indices(1)
        seen: NDArray[np.bool_] = mask[rows][:, columns] & (rows >= 0)[:, None] & (columns >= 0)
        return seen


def _size(value: int | Size, name: str) -> Size:
    if name == "resize" and isinstance(value, str):
        raise ParameterError(f"resize must be a number of pixels or (height, width) before `fit`; got {value!r}")
    sides = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(sides) != 2 or not all(_is_side(side) for side in sides):
        raise ParameterError(
            f"{name} must be a number of pixels or (height, width), each 1 to {MAX_SIDE}; got {value!r}"
        )
    return int(sides[0]), int(sides[1])


def _is_side(value: object) -> bool:
    return _is_whole(value) and 1 <= int(value) <= MAX_SIDE  # type: ignore[call-overload]


def _is_whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
