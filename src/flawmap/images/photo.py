"""What reading an image gives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Photo:
    """An image that was read.

    Attributes:
        rgb: (H, W, 3) uint8, C-contiguous; it may share memory with its source, so do not write into it.
        bits: of a sample, as its source declares them: 8 for 8 or fewer, else 9 to 16.
        highest: highest sample of deep grey or of a uint16 array; None of 8 bits, and of 16-bit colour files.
        remarks: what is unusual about it, in words.

    Example:
        >>> from flawmap.images import read_photo
        >>> read_photo(np.full((2, 2), 4095, np.uint16), bits=12).rgb[0, 0].tolist()
        [255, 255, 255]
    """

    rgb: NDArray[np.uint8]
    bits: int = 8
    highest: int | None = None
    remarks: tuple[str, ...] = ()
