from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from flawmap.datasets import LAYOUTS, Counts


@pytest.fixture
def write():
    """Write an image of a grey, or of dots that differ from path to path, making its folders."""

    def write_image(path, value=None, size=(6, 8)):
        path.parent.mkdir(parents=True, exist_ok=True)
        dots = np.random.default_rng(zlib.crc32(str(path).encode())).integers(0, 256, size, np.uint8)
        Image.fromarray(dots if value is None else np.full(size, value, np.uint8)).save(path)
        return path

    return write_image


@pytest.fixture
def publish(monkeypatch):
    """Replace a layout's published numbers by those of a small tree; "whole" stands for the whole."""

    def replace_numbers(name, **numbers):
        counts = {"" if key == "whole" else key: Counts(**value) for key, value in numbers.items()}
        monkeypatch.setitem(LAYOUTS, name, replace(LAYOUTS[name], published=counts))

    return replace_numbers
