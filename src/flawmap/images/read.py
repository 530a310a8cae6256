"""Decoding: any image file, array or PIL image to RGB (H, W, 3) uint8.

EXIF rotation is applied. Grey, palette, CMYK and other modes become RGB; transparency is laid over white, unless it
hides everything. More than 8 bits are scaled from their full range to 0..255, rounded; of 16-bit colour files Pillow
keeps the high byte, at most one level away. Of several pages the first is read. docs/images.md has formats and sizes.
"""

from __future__ import annotations

import importlib.util
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from flawmap.errors import ImageError, ParameterError, first_line
from flawmap.files import open_file
from flawmap.images.depth import DEEP_MODES, check_array, scale_to_8_bits
from flawmap.images.formats import RAW_SUFFIXES
from flawmap.images.hints import why_missing
from flawmap.images.holes import LOOKS, find_damage
from flawmap.images.memory import MACHINE_MEMORY
from flawmap.images.pages import ImagePage, turn_to
from flawmap.images.photo import Photo
from flawmap.images.tiff import PILLOW_TIFF_MARKS, Directory, check_tiff, correct_grey, quiet_libtiff, refusal
from flawmap.images.video import FrameReader, VideoFrame
from flawmap.images.webp import canvas_size

ImageSource = str | os.PathLike[str] | NDArray[Any] | Image.Image | ImagePage | VideoFrame
"""One image: a path, an array (H, W) or (H, W, 1, 3 or 4), a PIL image, a page of a file, or a frame of a video."""

T = TypeVar("T")

FORMATS = ["PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "JPEG2000", "DIB"]
"""Formats that are read, by Pillow's names: some of the others are decoded by outside programs."""
if importlib.util.find_spec("PIL.AvifImagePlugin"):
    FORMATS.append("AVIF")

MAX_PIXELS = 2**30
"""Largest image read, a gigapixel; more is refused before it is decoded."""
TOO_LARGE = f"more than the {MAX_PIXELS:,} that are read; make it smaller or cut it into pieces"
NO_MEMORY = "does not fit in memory; make it smaller"
SMALL_PIXELS = 2**25
"""Images up to this size are decoded from however few bytes: a blank one needs next to none."""
EXPANSION = 1500
"""Most bytes of pixels in a byte of a larger file: deflate reaches 1032, LZW about 1400."""
UNCOMPRESSED = {"BMP", "DIB", "PPM", "TGA"}
MEMORY_VARIABLE = "FLAWMAP_IMAGE_MEMORY"
"""Environment variable with the megabytes that images may take while they are decoded."""
BYTES_A_PIXEL, CODEC_BYTES = 12, {"JPEG2000": 16, "WEBP": 8, "AVIF": 8}
"""What decoding takes at its peak: image, RGB copies and array; and what a format's decoder takes on top of that."""

ALL_HIDDEN = "its transparency hides all of it and was ignored"
MOST_HIDDEN = "more than half of it is transparent and was laid over white"
ONE_COLOUR = "all its pixels have one colour"
FEW_LEVELS = "it is 16-bit colour that uses less than a quarter of its range, in few levels; stretch it to 0..65535"

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
_settings: list[tuple[int | None, bool]] = []


def read_image(source: ImageSource, *, name: str | None = None) -> NDArray[np.uint8]:
    """RGB (H, W, 3) uint8, C-contiguous, of an image; it may share memory with `source`, so do not write into it.

    `name` stands in errors for an image that has no path. Raises ImageError.
    """
    return read_photo(source, name=name).rgb


def read_photo(source: ImageSource, *, name: str | None = None, bits: int | None = None) -> Photo:
    """An image, and what there is to say of it; `bits` are those that deep samples use, None for all. ImageError."""
    return use_photo(source, lambda _: None, name=name, bits=bits)[0]


def use_photo(
    source: ImageSource, use: Callable[[NDArray[np.uint8]], T], *, name: str | None = None, bits: int | None = None
) -> tuple[Photo, T]:
    """An image, and what `use` makes of its pixels. Threads wait for each other where memory is too small for all.

    Raises ImageError, also for a MemoryError of `use`.
    """
    name = name or _name(source)
    try:
        with ExitStack() as held:
            photo = _read(source, name, bits, held)
            return photo, use(photo.rgb)
    except MemoryError as error:
        raise ImageError(name, NO_MEMORY) from error


def decode(source: str | os.PathLike[str] | ImagePage) -> tuple[Image.Image, int]:
    """A file's image, decoded and upright (deep grey in one of `DEEP_MODES`), and the bits of a sample. ImageError."""
    with ExitStack() as held:
        return _decode(source, held)


def _read(source: ImageSource, name: str, bits: int | None, held: ExitStack) -> Photo:
    if isinstance(source, np.ndarray):
        return _from_array(np.asarray(source), name, bits)  # of a subclass, such as a matrix
    if isinstance(source, VideoFrame):
        with FrameReader() as frames:
            return Photo(frames.read(source))
    if isinstance(source, Image.Image):
        return _to_photo(*_from_pil(source, name, held), name, bits)
    if not isinstance(source, (str, os.PathLike, ImagePage)):
        raise ImageError(name, f"expected a path, an array or a PIL image, got {type(source).__name__}")
    return _to_photo(*_decode(source, held), name, bits)


def _name(source: ImageSource) -> str:
    named = isinstance(source, (str, os.PathLike, ImagePage, VideoFrame))
    return str(source) if named else os.fsdecode(getattr(source, "filename", "")) or "image"


def _decode(source: str | os.PathLike[str] | ImagePage, held: ExitStack) -> tuple[Image.Image, int]:
    """As `decode`; memory for the image is set aside until `held` ends."""
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
            canvas = canvas_size(start)
            _check_size(canvas, canvas[0] * canvas[1], "RGBA", n_bytes, name, is_raw=False)
        with _open(stream, directory, name, path.suffix.lower()) as image:
            if number != 1 and directory is not None:
                turn_to(image, number, name)
            n_pixels = image.width * image.height if directory is None else directory.n_pixels
            is_raw = image.format in UNCOMPRESSED and "rle" not in str(getattr(image, "tile", ""))
            _check_size(image.size, n_pixels, image.mode, n_bytes, name, is_raw=is_raw)
            a_pixel = BYTES_A_PIXEL + CODEC_BYTES.get(image.format or "", 8 * ("A" in image.mode))
            held.enter_context(_memory.hold(n_pixels * a_pixel, name))
            if number != 1 and directory is None:  # an animation is drawn up to this page
                turn_to(image, number, name)
            return _load(image, name)


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


def _load(image: Image.Image, name: str) -> tuple[Image.Image, int]:
    """Decode an image that was opened: the image, upright, and the bits of a sample."""
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
    upright = _upright(image)
    return correct_grey(upright, bits, getattr(image, "tag_v2", {})) if image.format == "TIFF" else (upright, bits)


def _from_pil(image: Image.Image, name: str, held: ExitStack) -> tuple[Image.Image, int]:
    """A PIL image as of `decode`. A TIFF that is merely opened is read from its path: Pillow turns some wrong."""
    path = os.fsdecode(getattr(image, "filename", ""))
    is_opened = image.format == "TIFF" and bool(getattr(image, "tile", None)) and image.tell() == 0
    if is_opened and path and Path(path).is_file():
        return _decode(path, held)
    with _explained(name), _pillow_for_large_images(MAX_PIXELS):
        return _load(image, name)


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
    except MemoryError as error:
        raise ImageError(name, NO_MEMORY) from error
    except FileNotFoundError as error:
        raise ImageError(name, why_missing(name, "file")) from error
    except IsADirectoryError as error:
        raise ImageError(name, "is a folder, expected an image file") from error
    except PermissionError as error:
        raise ImageError(name, "may not be read by this user; change its permissions") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            name,
            "is not an image of a known format; expected PNG, JPEG, TIFF, BMP, WebP, ... with 8 or 16 bits per channel",
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(name, f"has {TOO_LARGE}") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise ImageError(name, f"cannot be read ({error.strerror}); check the path and the disk") from error
        # Pillow's decoders raise nearly anything for damaged files: SyntaxError, struct.error, IndexError, ...
        raise ImageError(name, f"is damaged or cut short ({first_line(error)}); copy or record it again") from error


def _upright(image: Image.Image) -> Image.Image:
    """The image as its EXIF orientation wants it shown; an unreadable EXIF block is as good as none."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        return image
    # ImageOps.exif_transpose would also write the EXIF block anew, and fail where that is damaged elsewhere
    method = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _to_photo(image: Image.Image, bits: int, name: str, used: int | None) -> Photo:
    """RGB of a decoded image with samples of `bits`, of which the lowest are `used`."""
    if image.width == 0 or image.height == 0:
        raise ImageError(name, f"expected an image of at least one pixel, got {image.height} x {image.width}")
    if image.mode in DEEP_MODES:
        values = np.asarray(image)
        return _remarked(_repeat(scale_to_8_bits(values, name, bits=used or bits)), bits, int(values.max()))
    if image.mode == "F":
        raise ImageError(name, "holds floating-point values, whose range is unknown; save it with 8 or 16 bits")
    if bits > 8 and used is not None:
        raise ImageError(name, f"is 16-bit colour, of which the high bytes are read: --bits {used} is for grey")
    remarks: tuple[str, ...] = ()
    if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        image, remarks = _over_white(image, name)
    rgb = np.asarray(image if image.mode == "RGB" else convert(image, "RGB", name))
    if bits > 8 and rgb.max() < 64:
        remarks = (*remarks, FEW_LEVELS)
    return _remarked(np.ascontiguousarray(rgb), bits, None, remarks)


def _over_white(image: Image.Image, name: str) -> tuple[Image.Image, tuple[str, ...]]:
    """A transparent image as RGB, and what there is to say of it."""
    rgba = convert(convert(image, "LA", name) if image.mode == "La" else image, "RGBA", name)
    alpha = np.asarray(rgba.getchannel("A"))
    if not alpha.any():  # cameras and programs that do not know of it leave it 0
        return rgba.convert("RGB"), (ALL_HIDDEN,)
    remarks = (MOST_HIDDEN,) if alpha.mean() < 127.5 else ()
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba), remarks


def _remarked(rgb: NDArray[np.uint8], bits: int, highest: int | None, remarks: tuple[str, ...] = ()) -> Photo:
    """The photo, with a remark if it shows nothing at all."""
    rows = chain(rgb[:: max(1, len(rgb) // 16)], rgb)  # some rows say of nearly all photos that they show something
    if all((row == rgb[0, 0]).all() for row in rows):
        remarks = (*remarks, ONE_COLOUR)
    return Photo(rgb, bits, highest, remarks)


def _repeat(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(grey[..., None], 3, axis=2)


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
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return _remarked(_repeat(pixels.reshape(pixels.shape[:2])), bits, highest)
    if pixels.shape[2] == 4:
        over_white = _to_photo(Image.fromarray(np.ascontiguousarray(pixels)), 8, name, None)
        return replace(over_white, bits=bits, highest=highest)
    return _remarked(np.ascontiguousarray(pixels), bits, highest)


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
