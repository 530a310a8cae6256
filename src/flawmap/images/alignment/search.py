"""Finding a part: all angles, scales and shifts at once on a small picture, then to a fraction of a pixel.

The coarse search correlates the photo with a bank of turned references by FFT, padded with zeros: a circular
correlation would wrap parts round. The refinement minimises the squared difference of reference and photo, with the
photo's brightness and contrast free (Gauss-Newton, inverse compositional: Baker and Matthews 2004; the same optimum as
the enhanced correlation coefficient of Evangelidis and Psarakis 2008), over those pixels that the photo shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flawmap.images.alignment.pose import Frame, Matrix, inside, pose_matrix, resample
from flawmap.options import AlignmentKind

COARSE = 32
"""Longer side of the picture in which all poses are tried."""
LEVELS = (64, 128, 256)
"""Longer sides of the pictures in which a pose is refined."""
ANGLE_STEP = 6.0
"""Degrees between the turned references of the coarse search: 1.6 of its pixels at its border."""
SCALE_STEP = 1.08
N_CANDIDATES = 4
"""Poses of the coarse search that are refined; the best of them is taken."""
APART = 15.0
"""Degrees by which candidates of one scale differ."""
STEPS = (8, 4, 3)
"""Gauss-Newton steps, at most, on each level."""
SMALL = 0.02
"""Pixels; smaller steps end the refinement."""
FURTHEST = 0.1
"""Part of the longer side by which the refinement may leave the coarse result; further, it has run away."""
LEAST_SHOWN = 0.25
"""Part of the reference that a photo must show of it."""

Grey = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Reference:
    """What the part looks like, and how it may lie.

    Attributes:
        kind: what may differ: "shift", "rigid" (and the angle) or "similarity" (and the scale).
        grey: (h, w) float32, the mean of aligned good images, 256 pixels long or the size of the canvas.
        proportions: (height, width) of what it shows.
        angles: (first, last) in degrees, between which the part lies; 360 apart, any.
        scales: (smallest, largest).
    """

    kind: AlignmentKind
    grey: Grey
    proportions: tuple[float, float]
    angles: tuple[float, float] = (-180.0, 180.0)
    scales: tuple[float, float] = (1.0, 1.0)

    @property
    def frame(self) -> Frame:
        """Of `grey`."""
        return Frame((self.grey.shape[0], self.grey.shape[1]), self.proportions)

    @cached_property
    def levels(self) -> list[_Level]:
        """The reference at the sizes of the refinement, the coarsest first."""
        longest = max(self.grey.shape)
        sizes = sorted({min(level, longest) for level in LEVELS})
        return [_Level(self._at(size), self.kind) for size in sizes]

    @cached_property
    def _bank(self) -> _Bank:
        first, last = self.angles if self.kind != "shift" else (0.0, 0.0)
        n_angles = math.ceil((last - first) / ANGLE_STEP) + (last - first < 360)
        angles = first + ANGLE_STEP * np.arange(n_angles) if n_angles > 1 else np.array([first])
        n_scales = 1
        if self.kind == "similarity":
            n_scales = math.ceil(math.log(self.scales[1] / self.scales[0]) / math.log(SCALE_STEP)) + 1
        scales = np.geomspace(*self.scales, n_scales) if n_scales > 1 else [1.0]
        poses = [(math.radians(angle), float(scale)) for scale in scales for angle in angles]
        return _Bank(self._at(COARSE), poses)

    def _at(self, longest: int) -> Picture:
        frame = self.frame.resized(longest)
        return Picture(self.grey, self.frame).resized(frame)

    def locate(self, grey: Grey) -> tuple[Matrix, float]:
        """The part's pose in a picture (h, w) of `frame`, and how well they agree, -1 to 1; -1 where it is lost."""
        picture = Picture(grey, self.frame)
        starts = self._bank.candidates(picture.resized(self._bank.frame).values)
        first, *finer = self.levels
        small = picture.resized(first.frame)
        pose, match = max((first.refine(small, start, STEPS[0]) for start in starts), key=lambda found: found[1])
        for level, n_steps in zip(finer, STEPS[1:], strict=False):
            pose, match = level.refine(picture.resized(level.frame), pose, n_steps)
        return pose, match

    def refine(self, grey: Grey, pose: Matrix) -> tuple[Matrix, float]:
        """A pose that is nearly known."""
        return self.levels[-1].refine(Picture(grey, self.frame), pose, STEPS[0])

    def match(self, grey: Grey, pose: Matrix, counts: Grey | None = None) -> float:
        """How well a picture agrees with the reference in a pose; or with that of the others, of `counts` a pixel."""
        return self.levels[-1].match(grey, pose, counts)


@dataclass(frozen=True, eq=False)
class Picture:
    """Grey values and their frame."""

    values: Grey
    frame: Frame

    def resized(self, frame: Frame) -> Picture:
        """The same picture with a smaller frame, averaged."""
        if frame.size == self.frame.size:
            return self
        image = Image.fromarray(self.values)
        return Picture(np.asarray(image.resize(frame.size[::-1], Image.Resampling.BOX)), frame)


class _Level:
    """The reference at one size, and how it changes with the pose."""

    def __init__(self, picture: Picture, kind: AlignmentKind) -> None:
        self.frame, self._values = picture.frame, picture.values
        per_unit = np.diag(self.frame.pixels)[:2]
        gradient = [g * scale for g, scale in zip(np.gradient(picture.values), per_unit, strict=True)]
        y, x = self.frame.points()
        columns = [gradient[0], gradient[1]]
        if kind != "shift":
            columns.append(gradient[0] * x - gradient[1] * y)
        if kind == "similarity":
            columns.append(gradient[0] * y + gradient[1] * x)
        self._slopes = np.stack([column.ravel() for column in columns], axis=1).astype(np.float32)

    def refine(self, image: Picture, start: Matrix, n_steps: int) -> tuple[Matrix, float]:
        """The best pose near a start, and the match there; the start and -1 where too little of the part is seen."""
        picture, pose = Image.fromarray(image.values), start
        for _ in range(n_steps):
            shown = self._shown(picture, pose)
            if shown is None:
                return start, -1.0
            seen, moved = shown
            step = self._step(moved, self._values.ravel()[seen], self._slopes[seen])
            if step is None:
                return start, -1.0
            angle, scale = (step[2] if len(step) > 2 else 0.0), (math.exp(step[3]) if len(step) > 3 else 1.0)
            pose = pose @ np.linalg.inv(pose_matrix(angle, scale, (step[0], step[1])))
            if max(abs(step)) * max(self.frame.size) < SMALL:
                break
        if np.abs(pose - start)[:2].max() > FURTHEST:
            pose = start
        return pose, self.match(image.values, pose)

    def match(self, values: Grey, pose: Matrix, counts: Grey | None = None) -> float:
        """Correlation of image and reference; or with the mean of the others, of `counts` (h, w) with the image."""
        shown = self._shown(Image.fromarray(values), pose)
        if shown is None:
            return -1.0
        seen, moved = shown
        reference = self._values.ravel()[seen]
        if counts is not None:
            n = np.maximum(counts.ravel()[seen], 2)
            reference = (n * reference - moved) / (n - 1)
        return correlation(moved, reference)

    def _shown(self, picture: Image.Image, pose: Matrix) -> tuple[NDArray[np.intp], Grey] | None:
        """Indices of the reference's pixels that an image shows, and the image there; None if they are too few."""
        affine = self.frame.affine(pose)
        seen = np.flatnonzero(inside(affine, self.frame.size, self.frame.size, margin=0.5))
        if len(seen) < LEAST_SHOWN * self._values.size:
            return None
        return seen, np.asarray(resample(picture, affine, self.frame.size)).ravel()[seen]

    @staticmethod
    def _step(image: Grey, reference: Grey, slopes: Grey) -> NDArray[np.float64] | None:
        """Change of the reference's pose, in longer sides and radians, that brings it nearest to a * image + b."""
        image, target = image - image.mean(), reference - reference.mean()
        if float(image @ image) <= 1e-6 * len(image):
            return None
        system = np.column_stack([slopes - slopes.mean(axis=0), -image])
        normal = system.T.astype(np.float64) @ system
        normal[np.diag_indices(len(normal))] += 1e-9 * np.trace(normal)
        solved: NDArray[np.float64] = np.linalg.solve(normal, -(system.T @ target).astype(np.float64))
        return solved[:-1]


class _Bank:
    """The reference turned and scaled in many ways, ready for correlation."""

    def __init__(self, reference: Picture, poses: Sequence[tuple[float, float]]) -> None:
        self.frame, self._poses = reference.frame, poses
        self._padded = (2 * self.frame.size[0], 2 * self.frame.size[1])
        flat = Image.fromarray(_without_background(reference.values))
        turned = []
        for angle, scale in poses:
            affine = np.linalg.inv(self.frame.affine(pose_matrix(angle, scale)))
            values = np.asarray(resample(flat, np.asarray(affine, np.float64), self.frame.size))
            turned.append(values / max(float(np.linalg.norm(values)), 1e-6))
        self._spectra = np.conj(np.fft.rfft2(np.stack(turned), s=self._padded, axes=(1, 2))).astype(np.complex64)

    def candidates(self, grey: Grey) -> list[Matrix]:
        """The poses of the highest correlations, apart in angle or scale, highest first."""
        spectrum = np.fft.rfft2(_without_background(grey), s=self._padded).astype(np.complex64)
        planes = np.fft.irfft2(self._spectra * spectrum, s=self._padded, axes=(1, 2)).reshape(len(self._poses), -1)
        best = planes.argmax(axis=1)
        heights = planes[np.arange(len(planes)), best]
        chosen: list[int] = []
        for index in np.argsort(-heights, kind="stable"):
            if all(self._are_apart(int(index), other) for other in chosen):
                chosen.append(int(index))
            if len(chosen) == N_CANDIDATES:
                break
        return [self._pose(index, int(best[index])) for index in chosen]

    def _are_apart(self, one: int, other: int) -> bool:
        (angle, scale), (other_angle, other_scale) = self._poses[one], self._poses[other]
        turn = abs(math.remainder(angle - other_angle, 2 * math.pi))
        return turn >= math.radians(APART) or not math.isclose(scale, other_scale, rel_tol=0.1)

    def _pose(self, index: int, place: int) -> Matrix:
        moved = divmod(place, self._padded[1])
        pixels = [n - padded if n >= size else n for n, padded, size in zip(moved, self._padded, self.frame.size)]  # noqa: B905
        per_unit = np.diag(self.frame.pixels)[:2]
        angle, scale = self._poses[index]
        return pose_matrix(angle, scale, (float(pixels[0] / per_unit[0]), float(pixels[1] / per_unit[1])))


def correlation(one: NDArray[np.floating[Any]], other: NDArray[np.floating[Any]]) -> float:
    """Pearson's correlation of two lists of values; -1 where one of them does not vary."""
    one, other = one - one.mean(), other - other.mean()
    norm = math.sqrt(float(one @ one) * float(other @ other))
    return float(one @ other) / norm if norm > 1e-6 * len(one) else -1.0


def _without_background(grey: Grey) -> Grey:
    """Less the median of the border: what lies outside an image counts as background."""
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    return np.asarray(grey - np.median(border), np.float32)
