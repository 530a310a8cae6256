"""Generated parts with a known answer: textured good ones, and others with a pasted scratch or blot and its mask."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["Parts", "generate_parts"]


@dataclass(frozen=True, eq=False)
class Parts:
    """Generated images, RGB uint8.

    Attributes:
        train: (n, side, side, 3) good parts to learn from.
        test: (m, side, side, 3) unseen parts: good ones first, then scratched ones, then ones with a blot.
        masks: (m, side, side) bool, what was pasted.
    """

    train: NDArray[np.uint8]
    test: NDArray[np.uint8]
    masks: NDArray[np.bool_]

    @property
    def labels(self) -> NDArray[np.int64]:
        """(m,) 1 for parts with a defect."""
        return np.asarray(self.masks.any(axis=(1, 2)), np.int64)


def generate_parts(*, n_train: int = 120, n_each: int = 30, side: int = 64, seed: int = 0) -> Parts:
    """Parts that the seed fixes: `n_train` to learn from, `n_each` good, scratched and blotted ones to test with."""
    rng = np.random.default_rng(seed)
    train = np.stack([_to_image(_good_part(side, rng), rng) for _ in range(n_train)])
    test, masks = [], []
    for paste in (None, _scratch, _blot):
        for _ in range(n_each):
            part = _good_part(side, rng)
            mask = np.zeros((side, side), np.uint8)
            if paste is not None:
                paste(mask, rng)
                part[mask > 0] += rng.choice([-1, 1]) * rng.uniform(50, 90)
            test.append(_to_image(part, rng))
            masks.append(mask > 0)
    return Parts(train, np.stack(test), np.stack(masks))


def _good_part(side: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """A woven pattern (side, side), that lies a little differently on each part, under light of its own."""
    rows, columns = np.mgrid[:side, :side] * (64 / side)
    down, across = rng.uniform(-2, 2, size=2)
    pattern = 120 + 40 * np.sin((columns + across) / 5) + 30 * np.cos((rows + down) / 7)
    return np.asarray(pattern * rng.uniform(0.95, 1.05))


def _to_image(part: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The part as a camera with noise sees it, in a warm light."""
    coloured = part[..., None] * np.array([1.0, 0.95, 0.85]) + rng.normal(0, 5, (*part.shape, 3))
    return np.asarray(np.clip(np.rint(coloured), 0, 255), np.uint8)


def _scratch(mask: NDArray[np.uint8], rng: np.random.Generator) -> None:
    side = len(mask)
    centre, angle = rng.uniform(0.25, 0.75, size=2) * side, rng.uniform(0, np.pi)
    reach = rng.uniform(0.12, 0.22) * side * np.array([np.cos(angle), np.sin(angle)])
    ends = [tuple(np.rint(end).astype(int).tolist()) for end in (centre - reach, centre + reach)]
    cv2.line(mask, ends[0], ends[1], 1, thickness=max(2, round(side / 28)))


def _blot(mask: NDArray[np.uint8], rng: np.random.Generator) -> None:
    side = len(mask)
    centre = np.rint(rng.uniform(0.2, 0.8, size=2) * side).astype(int)
    axes = np.rint(rng.uniform(0.05, 0.1, size=2) * side).astype(int) + 1
    cv2.ellipse(mask, centre.tolist(), axes.tolist(), rng.uniform(0, 180), 0, 360, 1, -1)
