"""Ground truth: pictures in any usual convention, pictures of class numbers, folders of them, frames of an array."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawmap.errors import ImageError
from flawmap.files import open_file
from flawmap.images.depth import DEEP_MODES
from flawmap.images.read import convert, decode
from flawmap.images.search import find_images

NUMBERED = DEEP_MODES | {"1", "L", "P"}
"""Modes whose values can number classes."""
DARK = 31
"""Highest value of a mask that nobody would see: its values are numbers of classes, and not brightness."""
FEW = 8
"""Distinct values, or colours, that someone chose; more come from a lossy format or from smooth edges."""
MUCH = 0.5
"""Share of an image from which a mask may be inverted."""
INVERTED = "if it is inverted, paint defects white on black"


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

    def read(self) -> NDArray[Any]:
        """The numbers (H, W); of a colour picture its brightness. Raises ImageError."""
        image, _ = decode(self.path)
        return np.asarray(image if image.mode in NUMBERED else convert(image, "L", str(self)))


@dataclass(frozen=True)
class Saturation:
    """The part of a defect that must be found for it to count as found whole (MVTec LOCO AD).

    Attributes:
        threshold: pixels of the photo, or a share of the defect.
        is_relative: whether it is a share.

    Example:
        >>> Saturation(40.0, False).area(100), Saturation(0.5, True).area(100), Saturation(40.0, False).area(100, 0.25)
        (40.0, 50.0, 10.0)
    """

    threshold: float
    is_relative: bool

    def area(self, n_pixels: int, scale: float = 1.0) -> float:
        """Pixels of a defect of `n_pixels` that must be found, where `scale` pixels stand for one of the photo."""
        wanted = self.threshold * (n_pixels if self.is_relative else scale)
        return float(min(wanted, n_pixels))


Defects = list[tuple[NDArray[np.bool_], Saturation | None]]
"""The mask (H, W) of each defect of an image, and its saturation if it has one."""


@dataclass(frozen=True)
class DefectMasks:
    """A folder with the masks of one image, one for each defect. `saturations` has one for each value of a pixel."""

    path: Path
    saturations: tuple[tuple[int, Saturation], ...] = ()

    def __str__(self) -> str:
        return str(self.path)

    def read(self) -> Defects:
        """The mask (H, W) of each defect, and its saturation if there are any. Raises ImageError."""
        defects: Defects = []
        for file in find_images(self.path):
            found = self._numbered(file) if self.saturations else [(read_mask(file), None)]
            for mask, saturation in found:
                if defects and mask.shape != defects[0][0].shape:
                    expected = " x ".join(str(side) for side in defects[0][0].shape)
                    raise ImageError(
                        str(file), f"is {mask.shape[0]} x {mask.shape[1]}, others in {self} are {expected}"
                    )
                defects.append((mask, saturation))
        if not defects:
            raise ImageError(str(self), "holds no mask; expected one for each defect, such as 000.png")
        return defects

    def _numbered(self, file: Path) -> Defects:
        numbers, saturations = ClassMask(file).read(), dict(self.saturations)
        values = [int(value) for value in np.unique(numbers) if value]
        if unknown := [value for value in values if value not in saturations]:
            known = ", ".join(str(value) for value in sorted(saturations))
            raise ImageError(str(file), f"holds the value {unknown[0]}; defects_config.json has {known}")
        return [(numbers == value, saturations[value]) for value in values] or [(numbers != 0, None)]


MaskSource = str | os.PathLike[str] | MaskFrame | ClassMask | DefectMasks
"""One mask: a picture's path, a frame of an array, a picture of class numbers, a folder with a picture per defect."""


@dataclass(frozen=True, eq=False)
class Mask:
    """Ground truth, as it was read.

    Attributes:
        marked: (H, W), True where anomalous.
        remark: what is unusual about it, in words, or None.
    """

    marked: NDArray[np.bool_]
    remark: str | None = None


def read_mask(source: MaskSource) -> NDArray[np.bool_]:
    """Ground truth (H, W), True where anomalous; see `inspect_mask`. Raises ImageError."""
    return inspect_mask(source).marked


def inspect_mask(source: MaskSource) -> Mask:
    """Ground truth, and what is unusual about it.

    Black is the background, and what is not black is anomalous: of two values the other one, whatever it is. Of two
    values without black the rarer one is anomalous. Many values, as of a JPEG file, are split at half of their range,
    and values up to 31 number classes. Coloured masks mark what differs from their background. Of a mask of one colour
    with a transparent part, the opaque part is anomalous. Frames of arrays and class masks are anomalous where they are
    not 0. Raises ImageError.
    """
    if isinstance(source, MaskFrame):
        return Mask(source.read())
    if isinstance(source, ClassMask):
        return Mask(source.read() != 0)
    if isinstance(source, DefectMasks):
        return Mask(np.logical_or.reduce([mask for mask, _ in source.read()]))
    (image, _), name = decode(source), str(source)
    if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        found = _of_alpha(np.asarray(convert(image, "RGBA", name)))
    elif image.mode in DEEP_MODES | {"1", "L", "F"}:
        found = _of_grey(np.asarray(image), name)
    else:
        first = (image.getpalette("RGB") or [0, 0, 0])[:3] if image.mode == "P" else [0, 0, 0]
        found = _of_colours(np.asarray(convert(image, "RGB", name)), first)
    if found.remark is None and found.marked.mean() > MUCH:
        return Mask(found.marked, f"marks more than {MUCH:.0%} of its image; {INVERTED}")
    return found


def _of_alpha(rgba: NDArray[np.uint8]) -> Mask:
    """A mask (H, W, 4): its opaque part where the colours say nothing, else the colours of that part."""
    colours, alpha = rgba[..., :3], rgba[..., 3]
    low, high = int(alpha.min()), int(alpha.max())
    if low == high:
        return _of_colours(colours)
    opaque = alpha > (low + high) / 2
    shades, counts = np.unique(colours[opaque], axis=0, return_counts=True)
    if len(shades) == 1:
        return Mask(opaque)
    return _of_colours(np.where(opaque[..., None], colours, shades[counts.argmax()]))


def _of_colours(rgb: NDArray[np.uint8], first: list[int] | None = None) -> Mask:
    """A mask (H, W, 3), by how far each pixel is from the background: black, `first`, or the most frequent colour."""
    if (rgb[..., :2] == rgb[..., 1:]).all():
        return _of_grey(rgb[..., 0], "")
    codes = rgb[..., 0].astype(np.uint32) << 16 | rgb[..., 1].astype(np.uint32) << 8 | rgb[..., 2]
    present, counts = np.unique(codes, return_counts=True)
    colours = np.stack([present >> 16, present >> 8 & 255, present & 255], axis=1).astype(np.int16)
    usual = colours[counts.argmax()]
    if len(present) == 1 or (colours.max(axis=1) <= FEW).any():
        usual = np.zeros(3, np.int16)
    elif first is not None and (colours == first).all(axis=1).any():
        usual = np.array(first, np.int16)
    distances = abs(colours - usual).max(axis=1)
    few = len(present) <= FEW and not _is_black_and_white(distances)
    chosen = distances > (0 if few else distances.max() / 2)
    return Mask(chosen[np.searchsorted(present, codes)])


def _of_grey(values: NDArray[Any], name: str) -> Mask:
    """A mask (H, W) of numbers: what is not the background, or what is above half of the range."""
    is_marked(values, name)  # NaN is refused
    if values.dtype == np.uint8:
        counts = np.bincount(values.ravel(), minlength=256)
        present = np.flatnonzero(counts)
        counts = counts[present]
    else:
        present, counts = np.unique(values, return_counts=True)
    few, low, high = len(present) <= FEW, present[0], present[-1]
    shown = ", ".join(f"{value:g}" for value in present[:FEW])
    if len(present) == 1 or (len(present) == 2 and not (low and high)) or (not low and high <= DARK):
        return Mask(values != 0)
    if few and low > 0 and (len(present) == 2 or high <= DARK):
        usual = present[counts.argmax()]
        return Mask(values != usual, f"holds {shown} and no 0; {usual:g} is taken for good, the rest for anomalous")
    half = (float(low) + float(high)) / 2
    unclear = few and not _is_black_and_white(present - low)
    return Mask(values > half, f"holds {shown}; those above {half:g} are taken for anomalous" if unclear else None)


def _is_black_and_white(present: NDArray[Any]) -> bool:
    """Whether values, from 0, lie at the ends of their range alone, but for the noise of a lossy format."""
    near = present.max() / 8
    return bool(((present <= near) | (present >= present.max() - near)).all())


def is_marked(values: NDArray[Any], name: str) -> NDArray[np.bool_]:
    """Where labels or a mask are not 0. ImageError for NaN, which is neither normal nor anomalous."""
    if np.isnan(values).any():
        raise ImageError(name, "holds NaN; expected 0 where normal and another number where anomalous")
    marked: NDArray[np.bool_] = np.asarray(values) != 0
    return marked


def load_array(path: Path) -> NDArray[Any]:
    """An .npy array of numbers, mapped and not read. Raises ImageError."""
    try:
        open_file(path).close()  # no pipe or device, which numpy would read for ever
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise ImageError(str(path), "no such file; check the path") from error
    except (OSError, ValueError, EOFError) as error:
        raise ImageError(str(path), f"is no array of numbers in .npy format ({error}); copy it again") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "buif":
        raise ImageError(str(path), "expected an .npy array of numbers")
    return array
