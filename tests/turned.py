"""Photos of a part that is turned, scaled and shifted by known amounts."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

OVER = 4
"""Pixels in which each pixel is drawn, along each side."""
OUTLINE = ((-0.3, -0.09), (0.2, -0.09), (0.2, -0.2), (0.32, -0.2), (0.32, 0.09), (-0.3, 0.09))
"""Corners (x, y) of the part, in longer sides from the middle."""
HOLE = (-0.2, 0.0, 0.045)


def photo(
    size=(128, 128), *, angle=0.0, scale=1.0, shift=(0.0, 0.0), noise=2.0, seed=0, gain=1.0, mirrored=False,
    scratched=False, background=190,
):  # fmt: skip
    """A photo (H, W, 3) uint8; the angle in degrees, clockwise; the shift (y, x) in pixels."""
    height, width = size
    image = Image.new("L", (width * OVER, height * OVER), background)
    draw = ImageDraw.Draw(image)

    def place(points):
        cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        for x, y in points:
            u, v = (-x if mirrored else x) * scale * max(size), y * scale * max(size)
            yield (
                (cosine * u - sine * v + width / 2 + shift[1]) * OVER,
                (sine * u + cosine * v + height / 2 + shift[0]) * OVER,
            )

    draw.polygon([*place(OUTLINE)], fill=70)
    x, y, radius = HOLE
    circle = [(x + radius * math.cos(t), y + radius * math.sin(t)) for t in np.linspace(0, 2 * math.pi, 24)]
    draw.polygon([*place(circle)], fill=background)
    if scratched:
        draw.polygon([*place([(0.0, -0.05), (0.06, -0.05), (0.06, 0.05), (0.0, 0.05)])], fill=150)
    grey = np.asarray(image.resize((width, height), Image.Resampling.BOX), np.float64) * gain
    grey = grey[..., None] + np.random.default_rng(seed).normal(0, noise, (height, width, 3))
    return np.clip(grey, 0, 255).astype(np.uint8)
