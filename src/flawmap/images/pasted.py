"""Small defects pasted onto good images, to see how a detector would find real ones.

Three kinds, in pixels of an image of 256 (they grow with it): a strip of 10 to 25 by 2 to 6 pixels from elsewhere in
the image, turned; a blot of 2 to 8 pixels in radius, 20 to 70 grey levels darker or lighter; a disc of 4 to 10 pixels
in radius, blurred. They are placed where the image has structure.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates

Pixels = NDArray[np.uint8]
Values = NDArray[np.float32]

UNIT = 256
"""Side of an image in which sizes are given, in pixels."""
REDUCED = 4
"""Structure is looked for in an image reduced by this factor."""
REACH = 24
"""Half of the side of what a defect may change, in pixels of `UNIT`."""
SOFT = 0.7
"""Deviation of the blur of a defect's border, in pixels of `UNIT`."""


def paste_defect(pixels: Pixels, allowed: NDArray[np.bool_], rng: Generator) -> Pixels:
    """A copy of an image (H, W, C), RGB first, with one small defect, whose centre is `allowed` (H, W) if any is."""
    unit = max(pixels.shape[:2]) / UNIT
    places = _places(pixels, allowed)
    centre = _draw(places, rng)
    half = math.ceil(REACH * unit)
    window = tuple(slice(max(0, c - half), c + half + 1) for c in centre)
    y, x = (np.arange(part.start, min(part.stop, side)) for part, side in zip(window, pixels.shape, strict=False))
    angle = rng.uniform(0, math.pi)
    along = (x[None] - centre[1]) * math.cos(angle) + (y[:, None] - centre[0]) * math.sin(angle)
    across = (y[:, None] - centre[0]) * math.cos(angle) - (x[None] - centre[1]) * math.sin(angle)
    before = pixels[..., :3][window].astype(np.float32)
    kind = rng.integers(3)
    if kind == 0:
        inside = (abs(along) < rng.uniform(5, 12.5) * unit) & (abs(across) < rng.uniform(1, 3) * unit)
        after = _from_elsewhere(pixels, _draw(places, rng), along, across)
    elif kind == 1:
        radius, flat = rng.uniform(2, 8) * unit, rng.uniform(0.5, 1)
        inside = along**2 + (across / flat) ** 2 < radius**2
        after = before + np.float32(rng.choice([-1, 1]) * rng.uniform(20, 70))
    else:
        inside = along**2 + across**2 < (rng.uniform(4, 10) * unit) ** 2
        after = gaussian_filter(before, (*2 * (rng.uniform(1.5, 3) * unit,), 0))
    weight = gaussian_filter(inside.astype(np.float32), SOFT * unit)[..., None]
    pasted = pixels.copy()
    pasted[..., :3][window] = np.clip(np.round(before + weight * (after - before)), 0, 255)
    return pasted


def _places(pixels: Pixels, allowed: NDArray[np.bool_]) -> Values:
    """How likely a centre is at each pixel of the reduced image: where the image changes, and it is allowed."""
    height, width = pixels.shape[:2]
    size = (max(1, width // REDUCED), max(1, height // REDUCED))
    grey = Image.fromarray(np.ascontiguousarray(pixels[..., :3])).convert("L").resize(size, Image.Resampling.BOX)
    slopes = np.gradient(np.asarray(grey, np.float32)) if min(size) > 1 else [np.ones(size[::-1], np.float32)]
    structure = gaussian_filter(np.hypot(slopes[0], slopes[-1]), max(size) / 64)
    where = np.asarray(Image.fromarray(allowed).resize(size, Image.Resampling.NEAREST))
    places = (structure + 1e-6) * (where if where.any() else 1)
    return np.asarray(places / places.sum(), np.float32)


def _draw(places: Values, rng: Generator) -> tuple[int, int]:
    """A pixel of the whole image."""
    chosen = np.searchsorted(np.cumsum(places), rng.uniform(0, float(places.sum(dtype=np.float64))))
    row, column = divmod(min(int(chosen), places.size - 1), places.shape[1])
    return row * REDUCED + REDUCED // 2, column * REDUCED + REDUCED // 2


def _from_elsewhere(
    pixels: Pixels, place: tuple[int, int], along: NDArray[np.float64], across: NDArray[np.float64]
) -> Values:
    """The image at coordinates (h, w) from another place; beyond its border it is mirrored."""
    at = np.stack([place[0] + across, place[1] + along])
    channels = [
        map_coordinates(pixels[..., channel], at, order=1, mode="reflect", output=np.float32) for channel in range(3)
    ]
    return np.stack(channels, axis=-1)
