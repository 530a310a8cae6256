"""Photos of parts that vary much, in ways that defects look like."""

from __future__ import annotations

import numpy as np


def spotted_parts(n):
    """Parts (64, 64, 3) of one pattern, each with a bright spot somewhere else."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64]
    pattern = 128 + 40 * np.sin(x / 5) + 30 * np.cos(y / 7)
    images = []
    for _ in range(n):
        row, column = rng.integers(8, 56, 2)
        spot = 60 * np.exp(-((y - row) ** 2 + (x - column) ** 2) / 30)
        images.append(np.clip((pattern + spot)[..., None] + rng.normal(0, 5, (64, 64, 3)), 0, 255).astype(np.uint8))
    return images
