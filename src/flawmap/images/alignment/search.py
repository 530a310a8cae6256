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

LEVELS = (32, 64, 128, 256)
"""Longer sides of the pictures in which a pose is refined; all poses are tried in the first."""
ANGLE_STEP = 6.0
"""Degrees between the turned references of the coarse search: 1.6 of its pixels at its border."""
SCALE_STEP = 1.08
N_CANDIDATES = 4
"""Poses of the coarse search that are refined."""
KEPT = (2, 1, 1, 1)
"""Poses that are left after each level, the best ones."""
APART = 15.0
"""Degrees by which candidates of one scale differ."""
STEPS = (3, 3, 2, 1)
"""Gauss-Newton steps, at most, on each level."""
SMALL = 0.02
"""Pixels; smaller steps end the refinement."""
FURTHEST = 0.1
"""Part of the longer side by which the refinement may leave the coarse result; further, it has run away."""
LEAST_SHOWN = 0.25
"""Part of the reference that a photo must show of it."""

LOST = -1.0
"""Match where too little is seen, or where there is nothing to be seen."""
LEAST_CONTRAST = 1e-6
"""Variance of grey values from which an image is not of one colour."""

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
    def _levels(self) -> list[_Level]:
        """The reference at the sizes of the refinement, the coarsest first."""
        longest = max(self.grey.shape)
        sizes = sorted({min(level, longest) for level in LEVELS})
        return [_Level(Picture(self.grey, self.frame).resized(self.frame.resized(size)), self.kind) for size in sizes]

    @cached_property
    def _bank(self) -> _Bank:
        first, last = self.angles if self.kind != "shift" else (0.0, 0.0)
        n_angles = math.ceil((last - first) / ANGLE_STEP) + (last - first < 360)
        angles = np.radians(first + ANGLE_STEP * np.arange(n_angles))
        n_scales = 1
        if self.kind == "similarity":
            n_scales += math.ceil(math.log(self.scales[1] / self.scales[0]) / math.log(SCALE_STEP))
        scales = np.geomspace(*self.scales, n_scales) if n_scales > 1 else np.ones(1)
        return _Bank(self._levels[0].picture, [(float(angle), float(scale)) for scale in scales for angle in angles])

    def locate(self, grey: Grey) -> tuple[Matrix, float]:
        """The part's pose in a picture (h, w) of `frame`, and how well they agree, up to 1; `LOST` if not seen."""
        picture = Picture(grey, self.frame)
        pictures = [picture.resized(level.picture.frame).values for level in self._levels]
        poses = self._bank.candidates(pictures[0])
        for level, values, n_steps, n_kept in zip(self._levels, pictures, STEPS, KEPT, strict=False):
            poses = [level.refine(values, pose, n_steps) for pose in poses]
            if len(poses) > n_kept:
                matches = [level.match(values, pose) for pose in poses]
                poses = [poses[i] for i in np.argsort(-np.array(matches), kind="stable")[:n_kept]]
        return poses[0], self.match(grey, poses[0])

    def refine(self, grey: Grey, pose: Matrix) -> tuple[Matrix, float]:
        """The same near a pose."""
        refined = self._levels[-1].refine(grey, pose, STEPS[0])
        return refined, self.match(grey, refined)

    def match(self, grey: Grey, pose: Matrix, counts: Grey | None = None) -> float:
        """How well a picture agrees with the reference in a pose; or with that of the others, of `counts` a pixel."""
        return self._levels[-1].match(grey, pose, counts)


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
        self.picture = picture
        self._values = picture.values.ravel()
        rows, columns = np.gradient(picture.values)
        per_unit = np.diag(picture.frame.pixels)
        down, right = rows * per_unit[0], columns * per_unit[1]
        y, x = picture.frame.points()
        slopes = [down, right]
        if kind != "shift":
            slopes.append(down * x - right * y)
        if kind == "similarity":
            slopes.append(down * y + right * x)
        self._slopes = np.stack([slope.ravel() for slope in slopes]).astype(np.float32)

    def refine(self, values: Grey, start: Matrix, n_steps: int) -> Matrix:
        """The best pose near a start in a picture (h, w); the start where too little is seen, or where it runs away."""
        picture, pose = Image.fromarray(values), start
        for _ in range(n_steps):
            shown = self._shown(picture, pose)
            step = None if shown is None else self._step(*shown)
            if step is None:
                return start
            angle, scale = (step[2] if len(step) > 2 else 0.0), (math.exp(step[3]) if len(step) > 3 else 1.0)
            pose = pose @ np.linalg.inv(pose_matrix(angle, scale, (step[0], step[1])))
            if max(abs(step)) * max(values.shape) < SMALL:
                break
        return pose if np.abs(pose - start)[:2].max() <= FURTHEST else start

    def match(self, values: Grey, pose: Matrix, counts: Grey | None = None) -> float:
        """Correlation of image and reference; or with the mean of the others, of `counts` (h, w) with the image."""
        shown = self._shown(Image.fromarray(values), pose)
        if shown is None:
            return LOST
        seen, moved, count = shown
        reference = self._values
        if counts is not None:
            n = np.maximum(counts.ravel(), 2)
            reference = (n * reference - moved) / (n - 1)
        one, other = (_centred(values, seen, count) for values in (moved, reference))
        norm = math.sqrt(float(one @ one) * float(other @ other))
        return float(one @ other) / norm if norm > LEAST_CONTRAST * count else LOST

    def _shown(self, picture: Image.Image, pose: Matrix) -> tuple[Grey, Grey, int] | None:
        """1 for the reference's pixels that an image shows, else 0; the image there; and how many; None if too few."""
        frame = self.picture.frame
        affine = frame.affine(pose)
        seen = inside(affine, frame.size, (0, 0, *frame.size), margin=0.5).ravel()
        if (count := int(np.count_nonzero(seen))) < LEAST_SHOWN * len(seen):
            return None
        return seen.astype(np.float32), np.asarray(resample(picture, affine, frame.size)).ravel(), count

    def _step(self, seen: Grey, image: Grey, count: int) -> NDArray[np.float64] | None:
        """Change of the reference's pose, in longer sides and radians, that brings it nearest to a * image + b.

        Of what `_shown` gives; None for an image of one colour.
        """
        image = _centred(image, seen, count)
        if float(image @ image) <= LEAST_CONTRAST * count:
            return None
        system = np.empty((len(self._slopes) + 2, len(seen)), np.float32)
        np.multiply(self._slopes, seen, out=system[:-2])
        system[-2], system[-1] = image, seen
        normal = (system @ system.T).astype(np.float64)
        normal[np.diag_indices(len(normal))] += 1e-9 * np.trace(normal)
        target = -system @ _centred(self._values, seen, count)
        return np.asarray(np.linalg.solve(normal, target.astype(np.float64))[:-2])


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
        sizes = zip(moved, self._padded, self.frame.size, np.diag(self.frame.pixels)[:2], strict=True)
        down, right = (float((n - padded if n >= size else n) / per_unit) for n, padded, size, per_unit in sizes)
        return pose_matrix(*self._poses[index], (down, right))


def correlation(one: NDArray[np.floating[Any]], other: NDArray[np.floating[Any]]) -> float:
    """Pearson's correlation of two lists of values; `LOST` where one of them does not vary."""
    one, other = one - one.mean(), other - other.mean()
    norm = math.sqrt(float(one @ one) * float(other @ other))
    return float(one @ other) / norm if norm > LEAST_CONTRAST * len(one) else LOST


def _centred(values: Grey, seen: Grey, count: int) -> Grey:
    """Values less their mean over those that are seen, of which there are `count`; 0 elsewhere."""
    return np.asarray((values - np.float32(float(values @ seen) / count)) * seen)


def usual_border(grey: NDArray[Any]) -> float:
    """Median of the border of a picture (h, w)."""
    return float(np.median(np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])))


def _without_background(grey: Grey) -> Grey:
    """Less the usual border: what lies outside an image counts as background."""
    return np.asarray(grey - np.float32(usual_border(grey)), np.float32)
