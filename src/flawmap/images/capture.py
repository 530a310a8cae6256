"""When photos were taken, by their EXIF data."""

from __future__ import annotations

import os
from collections.abc import Sequence

from PIL import ExifTags, Image

from flawmap.images.read import ImageSource

EXIF_SUFFIXES = (".jpg", ".jpeg", ".tif", ".tiff", ".webp")
"""Files in which cameras write EXIF data."""


def capture_times(sources: Sequence[ImageSource | None]) -> list[str] | None:
    """When each photo was taken, as texts that sort by time; None unless all of them say so."""
    times = list[str]()
    for source in sources:
        time = _capture_time(source) if isinstance(source, (str, os.PathLike)) else ""
        if not time:
            return None
        times.append(time)
    return times


def _capture_time(path: str | os.PathLike[str]) -> str:
    """Such as 2026:11:27 20:25:19.04; empty without one."""
    try:
        with Image.open(path) as image:
            exif = image.getexif().get_ifd(ExifTags.IFD.Exif)
        time, part = (exif.get(tag) for tag in (ExifTags.Base.DateTimeOriginal, ExifTags.Base.SubsecTimeOriginal))
    except Exception:  # damaged EXIF data raise errors of many kinds, and are as good as none
        return ""
    return f"{time}.{part or 0}" if isinstance(time, str) and time[:1].isdigit() else ""
