"""Decoding: any image file, array or PIL image to RGB (H, W, 3) uint8.

EXIF rotation is applied. Grey, palette, CMYK and other modes become RGB; transparency is laid over white. 16-bit grey
and 16-bit arrays are scaled from their full range (v / 257, rounded); of 16-bit colour files Pillow keeps the high
byte, at most one level away from that. Of files with several pages the first is read, unless a page is asked for.
"""

from __future__ import annotations

import os
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from flawmap.errors import ImageError
from flawmap.images.formats import RAW_SUFFIXES
from flawmap.images.hints import why_missing
from flawmap.images.pages import ImagePage
from flawmap.images.video import FrameReader, VideoFrame

ImageSource = str | os.PathLike[str] | NDArray[Any] | Image.Image | ImagePage | VideoFrame
"""One image: a path, an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), a PIL image, a page of a file, or a frame of a
video."""

MAX_PIXELS = 2**30
"""Largest image read, a gigapixel; more is refused before it is decoded."""

TOO_LARGE = f"more than the {MAX_PIXELS:,} that are read; make it smaller or cut it into pieces"

SIXTEEN_BIT_MODES = {"I;16", "I;16L", "I;16B", "I;16N", "I"}
TO_8_BITS = ((np.arange(65536) + 128) // 257).astype(np.uint8)

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

# what warnings.filterwarnings("ignore", module=...) would insert
_PILLOW_IS_QUIET = ("ignore", None, Warning, re.compile(r"PIL\."), 0)

_lock = threading.Lock()
_n_readers = 0
_limits: list[int | None] = []


def read_image(source: ImageSource, *, name: str | None = None) -> NDArray[np.uint8]:
    """RGB (H, W, 3) uint8, C-contiguous, of an image; it may share memory with `source`, so do not write into it.

    `name` stands in errors for an image that has no path. Raises ImageError.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, name or "image")
    if isinstance(source, Image.Image):
        name = name or os.fsdecode(getattr(source, "filename", "")) or "image"
        with _explained(name), _pillow_for_large_images(MAX_PIXELS):
            source.load()
            source = _upright(source)
        return _to_rgb(source, name)
    if isinstance(source, VideoFrame):
        with FrameReader() as frames:
            return frames.read(source)
    if not isinstance(source, (str, os.PathLike, ImagePage)):
        raise ImageError(name or "image", f"expected a path, an array or a PIL image, got {type(source).__name__}")
    return _to_rgb(decode(source), str(source))


def decode(source: str | os.PathLike[str] | ImagePage) -> Image.Image:
    """A file's image, decoded whole and upright; every failure is an ImageError that names the file and the remedy."""
    path, name = source.path if isinstance(source, ImagePage) else Path(source), str(source)
    if path.suffix.lower() in RAW_SUFFIXES:
        raise ImageError(name, "is a camera's raw file, which cannot be read; convert it to PNG or TIFF")
    with _explained(name), _pillow_for_large_images(MAX_PIXELS):
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(name, "is a folder, expected an image file")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(name, "is a device or pipe, expected an image file")
        if status.st_size == 0:
            raise ImageError(name, "is empty; copy or record it again")
        with Image.open(path) as image:
            if isinstance(source, ImagePage):
                _turn_to(image, source)
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(name, f"has {image.width} x {image.height} pixels, {TOO_LARGE}")
            image.load()
            return _upright(image)


def _turn_to(image: Image.Image, page: ImagePage) -> None:
    try:
        image.seek(page.number - 1)
    except EOFError as error:
        raise ImageError(str(page), "the file has no such page; pages are counted from 1") from error


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn what Pillow and the system raise into an ImageError."""
    try:
        yield
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(name, why_missing(name, "file")) from error
    except PermissionError as error:
        raise ImageError(name, "may not be read by this user; change its permissions") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            name,
            "is not an image of a known format; expected PNG, JPEG, TIFF, BMP, WebP, ... with 8 or 16 bits per channel",
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(name, f"has {TOO_LARGE}") from error
    except MemoryError as error:
        raise ImageError(name, "does not fit in memory; make it smaller") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise ImageError(name, f"cannot be read ({error.strerror}); check the path and the disk") from error
        # Pillow's decoders raise nearly anything for damaged files: SyntaxError, struct.error, IndexError, ...
        raise ImageError(name, f"is damaged or cut short ({error}); copy or record it again") from error


def _upright(image: Image.Image) -> Image.Image:
    """The image as its EXIF orientation wants it shown; an unreadable EXIF block is as good as none."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        return image
    # ImageOps.exif_transpose would also write the EXIF block anew, and fail where that is damaged elsewhere
    method = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image, name: str) -> NDArray[np.uint8]:
    if image.width == 0 or image.height == 0:
        raise ImageError(name, f"expected an image of at least one pixel, got {image.height} x {image.width}")
    if image.mode in SIXTEEN_BIT_MODES:
        grey = scale_to_8_bits(np.asarray(image), name)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode == "F":
        raise ImageError(name, "holds floating-point values, whose range is unknown; save it with 8 or 16 bits")
    if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        rgba = convert(image, "RGBA", name)
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.ascontiguousarray(np.asarray(convert(image, "RGB", name)))


def convert(image: Image.Image, mode: str, name: str) -> Image.Image:
    """The image in another colour mode. Raises ImageError."""
    try:
        with _pillow_for_large_images(MAX_PIXELS):
            return image.convert(mode)
    except ValueError as error:
        raise ImageError(
            name, f"is in colour mode {image.mode}, which has no conversion to {mode}; save it as RGB"
        ) from error


def _from_array(array: NDArray[Any], name: str) -> NDArray[np.uint8]:
    shape = array.shape
    if array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (1, 3, 4)) or 0 in shape:
        raise ImageError(name, f"expected an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {shape}")
    if array.dtype.kind != "u" or array.dtype.itemsize > 2:
        raise ImageError(
            name, f"expected uint8 (0 to 255) or uint16 (0 to 65535) values, got {array.dtype}; scale and convert them"
        )
    pixels = array if array.dtype == np.uint8 else TO_8_BITS[array]
    if pixels.ndim == 2 or shape[2] == 1:
        return np.repeat(pixels.reshape(*shape[:2], 1), 3, axis=2)
    if shape[2] == 4:
        return _to_rgb(Image.fromarray(np.ascontiguousarray(pixels)), name)
    return np.ascontiguousarray(pixels)


def scale_to_8_bits(values: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Round 0..65535 to 0..255. Raises ImageError for other values."""
    if values.dtype.itemsize > 2:
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 65535:
            raise ImageError(name, f"has values from {low} to {high}, expected 0 to 65535; save it with 16 bits")
    scaled: NDArray[np.uint8] = TO_8_BITS[values]
    return scaled


@contextmanager
def _pillow_for_large_images(max_pixels: int) -> Iterator[None]:
    """Let Pillow open and decode up to `max_pixels`, without its warnings (of size, of odd metadata).

    Both settings belong to the process, and images are decoded in several threads: the first reader sets them, the last
    one restores them. `warnings.catch_warnings` would not do, it puts back a list that another thread has replaced.
    """
    global _n_readers
    with _lock:
        if _n_readers == 0:
            _limits.append(Image.MAX_IMAGE_PIXELS)
            Image.MAX_IMAGE_PIXELS = max_pixels
        if _PILLOW_IS_QUIET not in warnings.filters:
            cast(list[Any], warnings.filters).insert(0, _PILLOW_IS_QUIET)
        _n_readers += 1
    try:
        yield
    finally:
        with _lock:
            _n_readers -= 1
            if _n_readers == 0:
                Image.MAX_IMAGE_PIXELS = _limits.pop()
                while _PILLOW_IS_QUIET in warnings.filters:
                    cast(list[Any], warnings.filters).remove(_PILLOW_IS_QUIET)
