"""What reading an image gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flawmap.options import Aspect
from flawmap.prediction import Size

FINER = 2
"""Pixels, at least, of an image that is read smaller, for each one of the canvas, along rows and columns."""
DCT_SCALES = (8, 4, 2)
"""Pixels of a JPEG, along rows and columns, that may be decoded as one."""
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What each EXIF orientation asks for."""
SIDEWAYS = {turn for orientation, turn in UPRIGHT.items() if orientation >= 5}
"""Those that make a tall image of a wide one."""


class Canvas(NamedTuple):
    """What an image is read for: the (height, width) it becomes, and whether its proportions stay."""

    size: Size
    aspect: Aspect


class Reduction(NamedTuple):
    """How an image lies in the pixels that were read of it.

    Its (height, width); how many of its rows, and columns, became one when it was decoded, and shall be one at last;
    and how its file wants it turned.
    """

    size: Size
    decoded: int = 1
    factor: int = 1
    turn: Image.Transpose | None = None


@dataclass(frozen=True, eq=False)
class Photo:
    """An image that was read.

    Attributes:
        image: upright, RGB or grey of 8 bits; smaller than it is, where it was decoded so.
        bits: of a sample, as its source declares them: 8 for 8 or fewer, else 9 to 16.
        highest: highest sample of deep grey or of a uint16 array; None of 8 bits, and of 16-bit colour files.
        remarks: what is unusual about it, in words.
        reduction: how it lies in its pixels, if it was read smaller, or is to be averaged.

    Example:
        >>> from flawmap.images import read_photo
        >>> read_photo(np.full((2, 2), 4095, np.uint16), bits=12).rgb[0, 0].tolist()
        [255, 255, 255]
    """

    image: Image.Image
    bits: int = 8
    highest: int | None = None
    remarks: tuple[str, ...] = ()
    reduction: Reduction | None = None

    @property
    def rgb(self) -> NDArray[np.uint8]:
        """Its pixels (H, W, 3), C-contiguous, not to be written into."""
        return np.asarray(self.image if self.image.mode == "RGB" else self.image.convert("RGB"))
