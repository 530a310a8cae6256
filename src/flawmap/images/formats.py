"""Which files are images: those with an image's ending, and others whose first bytes are those of an image.

And which of them are read.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

from flawmap.errors import counted
from flawmap.files import open_file


def _endings(words: str) -> frozenset[str]:
    return frozenset(f".{word}" for word in words.split())


SUFFIXES = _endings(
    "apng avif bmp dib gif j2c j2k jfif jp2 jpc jpe jpeg jpf jpg jpx mpo pbm pgm png pnm ppm tga tif tiff webp"
)
"""Endings of images. A file that has one and is no image is a bad image, and is not passed over."""

RAW_SUFFIXES = _endings(
    "3fr arw cr2 cr3 crw dcr dng erf fff iiq kdc mef mos mrw nef nrw orf pef raf rw2 rwl sr2 srf srw x3f"
)
"""Endings of cameras' raw files. Many are TIFF files whose first image is a thumbnail."""

OTHER_SUFFIXES = _endings("ai dcm emf eps exr fits hdr heic heif hif ico jxl pcx pdf psb psd svg wmf xcf")
"""Endings of pictures in formats that are not read."""

VIDEO_SUFFIXES = _endings("3gp avi m2ts m4v mkv mov mp4 mpeg mpg mts ogv webm wmv")
"""Endings of videos. A video that is named is judged frame by frame; one in a folder is passed over."""

SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})
"""What file managers leave in folders, in lower case; like hidden files it is not counted."""

SKIPPED = "__MACOSX"
"""Folder of an archive's metadata, whose files are named like images."""

RUN_FOLDERS = OVERLAYS, MAPS, MASKS = ("overlays", "maps", "masks")
"""Folders in which `flawmap predict` leaves each image's files."""
RUN_TABLES = TABLE, LINES = ("predictions.csv", "predictions.jsonl")
"""Tables beside them."""
RUN = re.compile(rb"tEXtrun\0\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ-[0-9a-f]{6}")
"""How its pictures name the run."""

TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MARKS = (
    b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", *TIFF_MARKS, b"GIF87a", b"GIF89a", b"\0\0\0\x0cjP  \r\n\x87\n",
    b"\xff\x4f\xff\x51",
)  # fmt: skip
"""First bytes of PNG, JPEG, TIFF and BigTIFF, GIF, JPEG 2000 and its bare codestream."""
BMP_HEADERS = {12, 40, 52, 56, 64, 108, 124}
"""Lengths of the header that follows a BMP's first 14 bytes."""
PNM = re.compile(rb"P[1-6]\s+(#|\d)")

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
BYTES_A_PIXEL, CODEC_BYTES = 12, {"JPEG2000": 16, "WEBP": 8, "AVIF": 8}
"""What decoding takes at its peak: image, RGB copies and array; and what a format's decoder takes on top of that."""

SHOWN = 8
"""Endings of files passed over that are named."""


def is_image(path: str | os.PathLike[str]) -> bool:
    """Whether a file's ending, or else its first bytes, are those of an image that can be read."""
    suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122 (paths are strings here, of which there are many)
    if suffix in SUFFIXES:
        return True
    return suffix not in RAW_SUFFIXES | OTHER_SUFFIXES | VIDEO_SUFFIXES and _has_mark(path)


def _has_mark(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as an image of a format that is read; False for what cannot be opened, or is no file."""
    try:
        with open_file(path) as stream:
            start = stream.read(64)
    except (OSError, ValueError):
        return False
    if start.startswith(MARKS):
        return start[8:10] != b"CR"  # a camera's raw file (CR2), whose first image is a thumbnail
    if start[:4] == b"RIFF":
        return start[8:12] == b"WEBP"
    if start[:2] == b"BM":
        return int.from_bytes(start[14:18], "little") in BMP_HEADERS
    if start[4:8] == b"ftyp":
        return any(brand in start[8:32] for brand in (b"avif", b"avis"))
    return PNM.match(start) is not None


def holds_run(folder: str, names: AbstractSet[str]) -> bool:
    """Whether a table of an earlier run is among the files of these names in a folder."""
    return any(name in names and _is_table(os.path.join(folder, name)) for name in RUN_TABLES)  # noqa: PTH118


def _is_table(path: str) -> bool:
    try:
        with open_file(path) as stream:
            start = stream.read(4096).removeprefix(b"\xef\xbb\xbf")
    except (OSError, ValueError):
        return False
    return start.startswith(b"path,pred_score,") or (start.startswith(b'{"path": ') and b'"pred_score": ' in start)


def describe_results(pictures: Sequence[Path]) -> str:
    """How many pictures of earlier runs were left out."""
    return f"{counted(len(pictures), 'picture')} left out: results of an earlier run, such as {pictures[0]}"


def describe_passed_over(paths: Sequence[Path]) -> str:
    """How many files of which endings were passed over, and what to do about pictures and videos among them."""
    endings = Counter(path.suffix.lower() for path in paths)
    ranked = sorted(endings, key=lambda ending: (-endings[ending], ending))
    kinds = [f"{endings[ending]} {ending or 'without an ending'}" for ending in ranked[:SHOWN]]
    if more := sum(endings[ending] for ending in ranked[SHOWN:]):
        kinds.append(f"{more} others")
    told = f"{counted(len(paths), 'file')} passed over: {', '.join(kinds)}"
    if pictures := [ending for ending in ranked if ending in RAW_SUFFIXES | OTHER_SUFFIXES]:
        told += f"; {', '.join(pictures)} cannot be read: convert them to PNG or TIFF"
    if videos := [ending for ending in ranked if ending in VIDEO_SUFFIXES]:
        told += f"; {', '.join(videos)} {'is a video' if len(videos) == 1 else 'are videos'}: name the file itself"
    return told
