"""Samples of more than 8 bits, scaled to 8; and what arrays are images."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawmap.errors import ImageError

DEEP_MODES = {"I;16", "I;16L", "I;16B", "I;16N", "I"}
"""Pillow's modes of grey images whose samples have more than 8 bits."""


def scale_to_8_bits(values: NDArray[Any], name: str, *, bits: int = 16) -> NDArray[np.uint8]:
    """Round 0..2**bits - 1 to 0..255. ImageError for values outside."""
    top = 2**bits - 1
    if values.dtype.itemsize > 2 or bits < 16:
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > top:
            remedy = "save it with 16 bits" if bits == 16 else f"{bits} bits are too few for it"
            raise ImageError(name, f"has values from {low} to {high}, expected 0 to {top}; {remedy}")
    scaled: NDArray[np.uint8] = _rounded(bits)[values]
    return scaled


@cache
def _rounded(bits: int) -> NDArray[np.uint8]:
    """What each value of so many bits becomes."""
    top = 2**bits - 1
    return np.asarray((np.arange(2**bits) * 510 + top) // (2 * top), np.uint8)


def check_array(array: NDArray[Any], name: str) -> None:
    """ImageError for an array that is no image: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8 or uint16."""
    shape = array.shape
    if array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (1, 3, 4)) or 0 in shape:
        raise ImageError(name, f"expected an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {shape}")
    if array.dtype.kind != "u" or array.dtype.itemsize > 2:
        raise ImageError(
            name, f"expected uint8 (0 to 255) or uint16 (0 to 65535) values, got {array.dtype}; scale and convert them"
        )
