"""Pillow's process-wide settings, set aside while flawmap reads an image and put back after the last one."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from PIL import Image

__all__ = ["pillow_for_large_images"]

# what warnings.filterwarnings("ignore", module=...) would insert
_PILLOW_IS_QUIET = ("ignore", None, Warning, re.compile(r"PIL\."), 0)

_lock = threading.Lock()
_n_readers = 0
_limits: list[int | None] = []


@contextmanager
def pillow_for_large_images(max_pixels: int) -> Iterator[None]:
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
