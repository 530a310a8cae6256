"""Decoding: any image file, array or PIL image to RGB (H, W, 3) uint8.

EXIF rotation is applied. Grey, palette, CMYK and other modes become RGB; transparency is laid over white. 16-bit values
are scaled from their full range (v / 257). Of files with several frames the first is read.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from flawmap.errors import ImageError

__all__ = ["MAX_PIXELS", "ImageSource", "read_image", "read_mask"]

ImageSource = str | os.PathLike[str] | NDArray[Any] | Image.Image
"""One image: a path, an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or a PIL image."""

MAX_PIXELS = 2**30
"""Largest image read, a gigapixel; more is refused before it is decoded."""

SIXTEEN_BIT_MODES = {"I;16", "I;16L", "I;16B", "I;16N", "I"}
_pil_settings = threading.Lock()


def read_image(source: ImageSource, *, name: str | None = None) -> NDArray[np.uint8]:
    """RGB (H, W, 3) uint8 of an image; `name` is used in errors for one that has no path. Raises ImageError."""
    if isinstance(source, np.ndarray):
        return _from_array(source, name or "image")
    if isinstance(source, Image.Image):
        name = name or getattr(source, "filename", "") or "image"
        with _explained(name):
            return _to_rgb(_upright(source), name)
    path = Path(source)
    name = str(source)
    with _opened(path, name) as image:
        return _to_rgb(_upright(image), name)


def read_mask(path: str | os.PathLike[str]) -> NDArray[np.bool_]:
    """Ground truth (H, W), True where anomalous: values above half the range, or above 0 if there are only 0 and 1."""
    name = str(path)
    with _opened(Path(path), name) as image:
        upright = _upright(image)
        if upright.mode in SIXTEEN_BIT_MODES:
            values = _scale_to_8_bits(np.asarray(upright), name)
        else:
            values = np.asarray(upright if upright.mode == "P" and _holds_classes(upright) else upright.convert("L"))
    return values > (127 if values.max() > 1 else 0)


def _holds_classes(image: Image.Image) -> bool:
    """Whether a palette image's indices are just 0 and 1, as annotation tools write them."""
    return int(np.asarray(image).max()) <= 1


@contextmanager
def _opened(path: Path, name: str) -> Iterator[Image.Image]:
    """A file's image, decoded whole; every failure is an ImageError that names the file and the remedy."""
    with _explained(name):
        if path.stat().st_size == 0:
            raise ImageError(name, "is empty; copy or record it again")
        with _without_size_limit():
            image = Image.open(path)
        with image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(
                    name,
                    f"has {image.width} x {image.height} pixels, more than the {MAX_PIXELS:,} that are read; make it "
                    f"smaller or cut it into pieces",
                )
            image.load()
            yield image


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn what Pillow and the system raise into an ImageError."""
    try:
        yield
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(name, "no such file") from error
    except IsADirectoryError as error:
        raise ImageError(name, "is a folder, expected an image file") from error
    except PermissionError as error:
        raise ImageError(name, "may not be read by this user; change its permissions") from error
    except UnidentifiedImageError as error:
        raise ImageError(name, "is not an image of a known format; expected PNG, JPEG, TIFF, BMP, WebP, ...") from error
    except MemoryError as error:
        raise ImageError(name, "does not fit in memory; make it smaller") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError) as error:
        # Pillow's decoders raise all of these for damaged files
        raise ImageError(name, f"is damaged or cut short ({error}); copy or record it again") from error


@contextmanager
def _without_size_limit() -> Iterator[None]:
    """Open images that Pillow would warn of for their size; the limit is checked by us, and Pillow's is put back."""
    with _pil_settings:
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _upright(image: Image.Image) -> Image.Image:
    """The image as its EXIF orientation wants it shown; an unreadable EXIF block is as good as none."""
    try:
        return ImageOps.exif_transpose(image)
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError):
        return image


def _to_rgb(image: Image.Image, name: str) -> NDArray[np.uint8]:
    if image.width == 0 or image.height == 0:
        raise ImageError(name, f"is empty ({image.height} x {image.width} pixels)")
    if image.mode in SIXTEEN_BIT_MODES:
        grey = _scale_to_8_bits(np.asarray(image), name)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode == "F":
        raise ImageError(name, "holds floating-point values, whose range is unknown; save it with 8 or 16 bits")
    if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.ascontiguousarray(np.asarray(image.convert("RGB")))


def _from_array(array: NDArray[Any], name: str) -> NDArray[np.uint8]:
    shape = array.shape
    if array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (1, 3, 4)) or 0 in shape:
        raise ImageError(name, f"expected an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {shape}")
    if array.dtype not in (np.uint8, np.uint16):
        raise ImageError(
            name, f"expected uint8 (0 to 255) or uint16 (0 to 65535) values, got {array.dtype}; scale and convert them"
        )
    pixels = array if array.dtype == np.uint8 else _scale_to_8_bits(array, name)
    if pixels.ndim == 2 or shape[2] == 1:
        return np.repeat(pixels.reshape(*shape[:2], 1), 3, axis=2)
    if shape[2] == 4:
        return _to_rgb(Image.fromarray(np.ascontiguousarray(pixels)), name)
    return np.ascontiguousarray(pixels)


def _scale_to_8_bits(values: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Round 0..65535 to 0..255."""
    if values.dtype != np.uint16:
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 65535:
            raise ImageError(name, f"has values from {low} to {high}, expected 0 to 65535; save it with 16 bits")
        values = values.astype(np.uint16)
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
