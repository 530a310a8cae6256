"""Ground truth that is more than one black and white picture: frames of an array, and class numbers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawmap.errors import ImageError

__all__ = ["ClassMask", "MaskFrame", "MaskSource", "is_marked", "load_array"]


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
