"""Ground truth: black and white pictures, pictures of class numbers, and frames of an array."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flawmap.errors import ImageError
from flawmap.images.depth import DEEP_MODES, scale_to_8_bits
from flawmap.images.read import convert, decode


@dataclass(frozen=True)
class MaskFrame:
    """The mask of one frame: row `index` of an .npy array (N, H, W); anything but 0 is anomalous."""

    path: Path
    index: int

    def __str__(self) -> str:
        return f"{self.path}#{self.index}"

    def read(self) -> NDArray[np.bool_]:
        """The mask (H, W). Of the file only this frame is read. Raises ImageError."""
        stack = load_array(self.path)
        if stack.ndim != 3 or not 0 <= self.index < len(stack):
            raise ImageError(str(self), f"expected an array (N, H, W) with this frame, got {stack.shape}")
        return is_marked(stack[self.index], str(self))


@dataclass(frozen=True)
class ClassMask:
    """A mask file whose values number the kinds of defects: 0 is good, anything else is anomalous."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


MaskSource = str | os.PathLike[str] | MaskFrame | ClassMask
"""One mask: a picture's path, a frame of an array, or a picture of class numbers."""


def read_mask(source: MaskSource) -> NDArray[np.bool_]:
    """Ground truth (H, W), True where anomalous: values above half the range, or above 0 if there are only 0 and 1.

    16 bits that hold no more than 255 are taken for 8. A palette of two colours counts by its indices (0 and 1), but by
    its brightness if it holds greys alone. Frames of arrays and class masks are anomalous where they are not 0. Raises
    ImageError.
    """
    if isinstance(source, MaskFrame):
        return source.read()
    if isinstance(source, ClassMask):
        image, _ = decode(source.path)
        numbered = image.mode in DEEP_MODES | {"1", "L", "P"}
        return np.asarray(np.asarray(image if numbered else convert(image, "L", str(source))) != 0)
    image, bits = decode(source)
    if image.mode in DEEP_MODES:
        values = np.asarray(image)
        if values.max() > 255:
            values = scale_to_8_bits(values, str(source), bits=bits)
    elif image.mode == "P" and _holds_classes(image):
        values = np.asarray(image)
    else:
        values = np.asarray(convert(image, "L", str(source)))
    return values > (127 if values.max() > 1 else 0)


def _holds_classes(image: Image.Image) -> bool:
    """Whether a palette image's indices are just 0 and 1, in colours, as annotation tools write them."""
    if int(np.asarray(image).max()) > 1:
        return False
    colours = np.asarray(image.getpalette("RGB") or (), np.uint8).reshape(-1, 3)[:2]
    return bool((colours != colours[:, :1]).any())


def is_marked(values: NDArray[Any], name: str) -> NDArray[np.bool_]:
    """Where labels or a mask are not 0. ImageError for NaN, which is neither normal nor anomalous."""
    if np.isnan(values).any():
        raise ImageError(name, "holds NaN; expected 0 where normal and another number where anomalous")
    marked: NDArray[np.bool_] = np.asarray(values) != 0
    return marked


def load_array(path: Path) -> NDArray[Any]:
    """An .npy array of numbers, mapped and not read. Raises ImageError."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise ImageError(str(path), "no such file; check the path") from error
    except (OSError, ValueError, EOFError) as error:
        raise ImageError(str(path), f"is no array of numbers in .npy format ({error}); copy it again") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "buif":
        raise ImageError(str(path), "expected an .npy array of numbers")
    return array
