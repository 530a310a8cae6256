"""Decoding: any image file, array or PIL image to RGB (H, W, 3) uint8.

EXIF rotation is applied. Grey, palette, CMYK and other modes become RGB; transparency is laid over white, unless it
hides everything. More than 8 bits are scaled from their full range to 0..255, rounded; of 16-bit colour files Pillow
keeps the high byte, at most one level away. Of several pages the first is read. docs/images.md has formats and sizes.
"""

from __future__ import annotations

import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from flawmap.errors import ImageError, ParameterError
from flawmap.files import open_file
from flawmap.images.depth import DEEP_MODES, check_array, scale_to_8_bits
from flawmap.images.formats import (
    BYTES_A_PIXEL,
    CODEC_BYTES,
    EXPANSION,
    FORMATS,
    MAX_PIXELS,
    NO_MEMORY,
    RAW_SUFFIXES,
    SMALL_PIXELS,
    TOO_LARGE,
    UNCOMPRESSED,
)
from flawmap.images.hints import why_unreadable
from flawmap.images.holes import LOOKS, find_damage
from flawmap.images.memory import MACHINE_MEMORY, MEMORY_VARIABLE
from flawmap.images.pages import ImagePage, turn_to
from flawmap.images.photo import DCT_SCALES, FINER, SIDEWAYS, UPRIGHT, Canvas, Photo, Reduction
from flawmap.images.tiff import PILLOW_TIFF_MARKS, Directory, check_tiff, correct_grey, quiet_libtiff, refusal
from flawmap.images.video import FrameReader, VideoFrame
from flawmap.images.webp import canvas_size

ImageSource = str | os.PathLike[str] | NDArray[Any] | Image.Image | ImagePage | VideoFrame
"""One image: a path, an array (H, W) or (H, W, 1, 3 or 4), a PIL image, a page of a file, or a frame of a video."""

T = TypeVar("T")

ALL_HIDDEN = "its transparency hides all of it and was ignored"
MOST_HIDDEN = "more than half of it is transparent and was laid over white"
ONE_COLOUR = "all its pixels have one colour"
FEW_LEVELS = "it is 16-bit colour that uses less than a quarter of its range, in few levels; stretch it to 0..65535"

# what warnings.filterwarnings("ignore", module=...) would insert
_PILLOW_IS_QUIET = ("ignore", None, Warning, re.compile(r"PIL\."), 0)

_lock = threading.Lock()
_n_readers = 0
_settings: list[tuple[int | None, bool]] = []


def read_image(source: ImageSource, *, name: str | None = None) -> NDArray[np.uint8]:
    """RGB (H, W, 3) uint8, C-contiguous, of an image; it may share memory with `source`, so do not write into it.

    `name` stands in errors for an image that has no path. Raises ImageError.
    """
    return read_photo(source, name=name).rgb


def read_photo(source: ImageSource, *, name: str | None = None, bits: int | None = None) -> Photo:
    """An image, and what there is to say of it; `bits` are those that deep samples use, None for all. ImageError."""
    return use_photo(source, lambda *_, **__: None, name=name, bits=bits)[0]


def use_photo(
    source: ImageSource,
    use: Callable[..., T],
    *,
    name: str | None = None,
    bits: int | None = None,
    canvas: Canvas | None = None,
) -> tuple[Photo, T]:
    """A photo, and what `use` makes of its image and, by name, its `reduction`, read for a canvas; None: all of it.

    Threads wait for each other where memory is too small for all. Raises ImageError, also for a MemoryError of `use`.
    """
    name = name or _name(source)
    try:
        with ExitStack() as held:
            photo = _read(source, name, bits, canvas, held)
            return photo, use(photo.image, reduction=photo.reduction)
    except MemoryError as error:
        raise ImageError(name, NO_MEMORY) from error


def decode(source: str | os.PathLike[str] | ImagePage) -> tuple[Image.Image, int]:
    """A file's image, decoded and upright (deep grey in one of `DEEP_MODES`), and the bits of a sample. ImageError."""
    with ExitStack() as held:
        return _decode(source, None, held)[:2]


def _read(source: ImageSource, name: str, bits: int | None, canvas: Canvas | None, held: ExitStack) -> Photo:
    if isinstance(source, VideoFrame):
        with FrameReader() as frames:
            source = frames.read(source)
    if isinstance(source, np.ndarray):
        photo = _from_array(np.asarray(source), name, bits)  # of a subclass, such as a matrix
        return replace(photo, reduction=_reduction(photo.image, canvas))
    if isinstance(source, Image.Image):
        decoded = _from_pil(source, canvas, name, held)
    elif isinstance(source, (str, os.PathLike, ImagePage)):
        decoded = _decode(source, canvas, held)
    else:
        raise ImageError(name, f"expected a path, an array or a PIL image, got {type(source).__name__}")
    return replace(_to_photo(decoded.image, decoded.bits, name, bits), reduction=decoded.reduction)


def _name(source: ImageSource) -> str:
    named = isinstance(source, (str, os.PathLike, ImagePage, VideoFrame))
    return str(source) if named else os.fsdecode(getattr(source, "filename", "")) or "image"


class _Decoded(NamedTuple):
    """A decoded image, upright; the bits of a sample; and how the image lies in its pixels."""

    image: Image.Image
    bits: int
    reduction: Reduction


def _decode(source: str | os.PathLike[str] | ImagePage, canvas: Canvas | None, held: ExitStack) -> _Decoded:
    """As `decode`, for a canvas; memory for the image is set aside until `held` ends."""
    name, page = str(source), source if isinstance(source, ImagePage) else ImagePage(Path(source), 1)
    path, number = page.path, page.number
    if path.suffix.lower() in RAW_SUFFIXES:
        raise ImageError(name, "is a camera's raw file, which cannot be read; convert it to PNG or TIFF")
    with _explained(name), _pillow_for_large_images(MAX_PIXELS), open_file(path) as stream:
        n_bytes = os.fstat(stream.fileno()).st_size
        if n_bytes == 0:
            raise ImageError(name, "is empty; copy or record it again")
        start = stream.read(30)
        stream.seek(0)
        directory = check_tiff(stream, n_bytes, name, number) if start.startswith(PILLOW_TIFF_MARKS) else None
        if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
            webp = canvas_size(start)
            _check_size(webp, webp[0] * webp[1], "RGBA", n_bytes, name, is_raw=False)
        with _open(stream, directory, name, path.suffix.lower()) as image:
            if number != 1 and directory is not None:
                turn_to(image, number, name)
            n_pixels = image.width * image.height if directory is None else directory.n_pixels
            is_raw = image.format in UNCOMPRESSED and "rle" not in str(getattr(image, "tile", ""))
            _check_size(image.size, n_pixels, image.mode, n_bytes, name, is_raw=is_raw)
            a_pixel = BYTES_A_PIXEL + CODEC_BYTES.get(image.format or "", 8 * ("A" in image.mode))
            reduction = _decode_smaller(image, canvas) if image.format == "JPEG" else None
            if reduction is not None and "progressive" not in image.info:  # of which all coefficients are kept
                n_pixels = image.width * image.height
            held.enter_context(_memory.hold(n_pixels * a_pixel, name))
            if number != 1 and directory is None:  # an animation is drawn up to this page
                turn_to(image, number, name)
            return _load(image, canvas, name, reduction)


def _open(stream: BinaryIO, directory: Directory | None, name: str, suffix: str) -> Image.Image:
    """The image of a file in one of the formats that are read, not yet decoded."""
    # nearly any file could be a TGA, which has no mark of its own
    formats = [*FORMATS, "TGA"] if suffix == ".tga" else FORMATS
    try:
        return Image.open(stream, formats=formats)
    except UnidentifiedImageError:
        if directory is not None:
            raise refusal(directory, name) from None
        raise


def _load(image: Image.Image, canvas: Canvas | None, name: str, reduction: Reduction | None = None) -> _Decoded:
    """Decode an image that was opened, of which the `reduction` may be known."""
    if image.format in LOOKS and (damage := find_damage(image)) is not None:
        raise ImageError(name, f"is damaged: {damage}; copy or record it again")
    bits = 16 if image.mode in DEEP_MODES else 8
    unpackers = [str(tile[3]) for tile in getattr(image, "tile", [])]
    if image.format in {"TIFF", "PNG"} and any(";16" in unpacker for unpacker in unpackers):
        bits = 16  # also of colours
    with quiet_libtiff() if image.format == "TIFF" else nullcontext():
        image.load()
    if image.mode in {"P", "PA"} and image.palette is None:
        raise ValueError("it has no palette")
    reduction = reduction or _reduction(image, canvas)
    # ImageOps.exif_transpose would also write the EXIF block anew, and fail where that is damaged elsewhere
    upright = image if reduction.turn is None else image.transpose(reduction.turn)
    if image.format == "TIFF":
        upright, bits = correct_grey(upright, bits, getattr(image, "tag_v2", {}))
    return _Decoded(upright, bits, reduction)


def _reduction(image: Image.Image, canvas: Canvas | None) -> Reduction:
    """That of an image which is decoded, but not turned; without a canvas all of it is kept."""
    turn = _turn(image)
    size = (image.width, image.height) if turn in SIDEWAYS else (image.height, image.width)
    if canvas is None:
        return Reduction(size, turn=turn)
    fitting = min if canvas.aspect == "squash" else max  # a letterbox's image fills one side of the canvas alone
    factor = fitting(side // (FINER * wanted) for side, wanted in zip(size, canvas.size, strict=True))
    return Reduction(size, factor=max(1, factor), turn=turn)


def _decode_smaller(image: Image.Image, canvas: Canvas | None) -> Reduction:
    """The same of a JPEG that was opened, and will be decoded so.

    libjpeg leaves out the fine part of each block's cosines, which costs a fraction of decoding all of it.
    """
    found, (width, height) = _reduction(image, canvas), image.size
    for scale in DCT_SCALES:
        # turned, a last column that the image covers in part would come first
        if scale <= found.factor and (found.turn is None or width % scale == height % scale == 0):
            image.draft(None, (width // scale, height // scale))
            return found._replace(decoded=scale)
    return found


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What the image's EXIF orientation asks for; an unreadable EXIF block is as good as none."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        return None
    return UPRIGHT.get(orientation) if isinstance(orientation, int) else None


def _from_pil(image: Image.Image, canvas: Canvas | None, name: str, held: ExitStack) -> _Decoded:
    """A PIL image as of `decode`. A TIFF that is merely opened is read from its path: Pillow turns some wrong."""
    path = os.fsdecode(getattr(image, "filename", ""))
    is_opened = image.format == "TIFF" and bool(getattr(image, "tile", None)) and image.tell() == 0
    if is_opened and path and Path(path).is_file():
        return _decode(path, canvas, held)
    with _explained(name), _pillow_for_large_images(MAX_PIXELS):
        return _load(image, canvas, name)


def _check_size(size: tuple[int, int], n_pixels: int, mode: str, n_bytes: int, name: str, *, is_raw: bool) -> None:
    """ImageError for more pixels than are read, or than a file of so many bytes can hold; `is_raw` if uncompressed."""
    what = f"has {size[0]} x {size[1]} pixels"
    if n_pixels > MAX_PIXELS:
        raise ImageError(name, f"{what}, {TOO_LARGE}")
    n_needed = n_pixels / 8 if mode in {"1", "L", "P"} else n_pixels * Image.getmodebands(mode)
    if n_needed > n_bytes * (2 if is_raw else EXPANSION) and (is_raw or n_pixels > SMALL_PIXELS):
        raise ImageError(
            name,
            f"{what}, too many for its {n_bytes} bytes: it is damaged or cut short, or a large blank image; copy it "
            f"again or make it smaller",
        )


class Memory:
    """What the images of this process take while they are decoded; threads wait for it."""

    def __init__(self) -> None:
        self._taken = 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, n_bytes: int, name: str) -> Iterator[None]:
        """Set so much aside for a block. ImageError if it is more than there is for all."""
        limit = image_memory()
        if n_bytes > limit:
            raise ImageError(
                name,
                f"needs about {n_bytes >> 20} MB of memory to be read, more than the {limit >> 20} MB that images may "
                f"take; make it smaller, or set the environment variable {MEMORY_VARIABLE}={(n_bytes >> 20) + 1}",
            )
        with self._changed:
            self._changed.wait_for(lambda: self._taken + n_bytes <= limit or not self._taken)
            self._taken += n_bytes
        try:
            yield
        finally:
            with self._changed:
                self._taken -= n_bytes
                self._changed.notify_all()


_memory = Memory()


def image_memory() -> int:
    """Bytes that images may take while they are decoded: half of the machine's, or FLAWMAP_IMAGE_MEMORY megabytes.

    Raises ParameterError for a variable that is no number.
    """
    asked = os.environ.get(MEMORY_VARIABLE)
    if asked is None:
        return MACHINE_MEMORY // 2
    if not asked.isdecimal() or int(asked) == 0:
        raise ParameterError(f"{MEMORY_VARIABLE} must be a number of megabytes from 1, got '{asked}'")
    return int(asked) * 2**20


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn what Pillow and the system raise into an ImageError."""
    try:
        yield
    except (ImageError, ParameterError):
        raise
    except Exception as error:
        raise ImageError(name, why_unreadable(name, error)) from error


def _to_photo(image: Image.Image, bits: int, name: str, used: int | None) -> Photo:
    """RGB of a decoded image with samples of `bits`, of which the lowest are `used`."""
    if image.width == 0 or image.height == 0:
        raise ImageError(name, f"expected an image of at least one pixel, got {image.height} x {image.width}")
    if image.mode in DEEP_MODES:
        values = np.asarray(image)
        grey = Image.fromarray(scale_to_8_bits(values, name, bits=used or bits))
        return Photo(grey, bits, int(values.max()), _remarks(grey))
    if image.mode == "F":
        raise ImageError(name, "holds floating-point values, whose range is unknown; save it with 8 or 16 bits")
    if bits > 8 and used is not None:
        raise ImageError(name, f"is 16-bit colour, of which the high bytes are read: --bits {used} is for grey")
    remarks: tuple[str, ...] = ()
    if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        image, remarks = _over_white(image, name)
    image = image if image.mode in {"L", "RGB"} else convert(image, "RGB", name)
    if bits > 8 and np.asarray(image).max() < 64:
        remarks = (*remarks, FEW_LEVELS)
    return Photo(image, bits, None, (*remarks, *_remarks(image)))


def _over_white(image: Image.Image, name: str) -> tuple[Image.Image, tuple[str, ...]]:
    """A transparent image as RGB, and what there is to say of it."""
    rgba = convert(convert(image, "LA", name) if image.mode == "La" else image, "RGBA", name)
    alpha = np.asarray(rgba.getchannel("A"))
    if not alpha.any():  # cameras and programs that do not know of it leave it 0
        return rgba.convert("RGB"), (ALL_HIDDEN,)
    remarks = (MOST_HIDDEN,) if alpha.mean() < 127.5 else ()
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba), remarks


def _remarks(image: Image.Image) -> tuple[str, ...]:
    """What there is to say of an image, grey or RGB, that shows nothing at all."""
    some = np.asarray(image.resize((image.width, min(image.height, 16)), Image.Resampling.NEAREST))
    if (some != some[0, 0]).any():  # as of nearly all photos
        return ()
    ranges = image.getextrema() if image.mode == "RGB" else (image.getextrema(),)
    return (ONE_COLOUR,) if all(low == high for low, high in cast(tuple[tuple[int, int], ...], ranges)) else ()


def convert(image: Image.Image, mode: str, name: str) -> Image.Image:
    """The image in another colour mode. Raises ImageError."""
    with _explained(name), _pillow_for_large_images(MAX_PIXELS):
        try:
            return image.convert(mode)
        except ValueError as error:
            reason = f"is in colour mode {image.mode}, which has no conversion to {mode}; save it as RGB"
            raise ImageError(name, reason) from error


def _from_array(array: NDArray[Any], name: str, used: int | None) -> Photo:
    check_array(array, name)
    bits, highest, pixels = 8, None, array
    if array.dtype != np.uint8:
        bits, highest, pixels = 16, int(array.max()), scale_to_8_bits(array, name, bits=used or 16)
    image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels))
    return replace(_to_photo(image, 8, name, None), bits=bits, highest=highest)


@contextmanager
def _pillow_for_large_images(max_pixels: int) -> Iterator[None]:
    """Let Pillow open and decode up to `max_pixels`, without its warnings (of size, of odd metadata); no cut files.

    They belong to the process, and images are decoded in several threads: the first reader sets them, the last one
    restores them. `warnings.catch_warnings` would not do, it puts back a list that another thread has replaced.
    """
    global _n_readers
    with _lock:
        if _n_readers == 0:
            _settings.append((Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES))
            Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = max_pixels, False
        if _PILLOW_IS_QUIET not in warnings.filters:
            cast(list[Any], warnings.filters).insert(0, _PILLOW_IS_QUIET)
        _n_readers += 1
    try:
        yield
    finally:
        with _lock:
            _n_readers -= 1
            if _n_readers == 0:
                Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = _settings.pop()
                while _PILLOW_IS_QUIET in warnings.filters:
                    cast(list[Any], warnings.filters).remove(_PILLOW_IS_QUIET)
